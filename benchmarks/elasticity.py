"""What elastic levels save and cost: time, FLOPs and AP50 of a detector at every level.

    python benchmarks/elasticity.py --dataset DIR [--fit-dataset DIR]

AP50 counts all vehicles fused. Each level is compared in three forms: *compensated*, as devices
run it; *plain*, the same heads and neurons cut out without compensation; and, with
``--fit-dataset``, *transfer*, compensated and with an adapter X' = W X in front of the head (paper
§4.1), fitted there. Times are of float32, batch 1; accuracies do not depend on the machine. The
last line is one JSON object; ``time_saved_at_2pt`` is the largest share of measured time that a
compensated level saves at no more than two points of AP50.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

from lapdtr_ros.calibration.frames import load_moments
from lapdtr_ros.datasets.opv2v import open_dataset
from lapdtr_ros.elastic.measure import FeatureError, run_frames, unit_flops
from lapdtr_ros.elastic.parts import parts_of, replace_parts, with_children
from lapdtr_ros.elastic.store import apply_level, known_levels, order_name, reader_name
from lapdtr_ros.evaluation.average_precision import EvaluationProtocol
from lapdtr_ros.evaluation.detected import score
from lapdtr_ros.evaluation.detector import Detector, detect_scenarios
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.features.calibration import Calibration
from lapdtr_ros.features.transfer import Adapter, fit_adapter
from lapdtr_ros.models.facts import input_shape, model_spec
from lapdtr_ros.models.layout import NCHW
from lapdtr_ros.models.preprocess import picture_to_input
from lapdtr_ros.models.weights import StageModule, load_units
from lapdtr_ros.perception.boxes import CAMERA_RANGE
from lapdtr_ros.perception.fusion import FusionSettings

MODEL = 'vit_small_patch14_focus:blocks.8@308x420+detection'
WEIGHTS = 'vit_small_focus_detection.safetensors'
CALIBRATION = 'weights/vit_small_focus_detection.calibration.safetensors'
PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
TWO_POINTS = 0.02
HELD_OUT = 4
TIME_GOAL = 0.30


class Adapted(nn.Module):
    """The head behind an adapter."""

    def __init__(self, adapter: Adapter, head: nn.Module, layout: str) -> None:
        super().__init__()
        self._adapter = adapter
        self._layout = layout
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Adapt, then run the head."""
        rows = self._adapter.apply(features.float().numpy(), self._layout)
        return self.head(torch.from_numpy(rows))


def plain_level(stage: StageModule, level: int, source: Calibration) -> StageModule:
    """The level's heads and neurons cut out of the model's own matrices, nothing made up for."""
    units = []
    for number, unit in enumerate(stage.units):
        modules = {}
        for part in parts_of(unit):
            reader = f'{reader_name(level, number, part.path)}.weight'
            if reader in source:
                width = source.tensor(reader).shape[1] // part.group
                kept = source.tensor(order_name(number, part.path))[:width].long()
                weight, bias = part.reader_matrix()
                modules[part.path] = part.shrunk(kept, weight[:, part.channels(kept)], bias)
        units.append(replace_parts(unit, modules) if modules else unit)
    return with_children(stage, units=nn.ModuleList(units))


def with_transfer(stage: StageModule, full: StageModule, pictures: list[Tensor]) -> StageModule:
    """The stage with an adapter before its head, if one lowers the error on held-out pictures."""
    layout = model_spec(stage.model).layout.kind
    pairs = list(
        zip(
            run_frames(list(stage.units)[:-1], pictures),
            run_frames(list(full.units)[:-1], pictures),
            strict=True,
        )
    )
    cut = len(stage.units) - 1
    adapter, report = fit_adapter(pairs[HELD_OUT:], pairs[:HELD_OUT], lambda x: x, layout, cut, cut)
    print(f'adapter: {report}')
    if adapter is None:
        return stage
    units = [*list(stage.units)[:-1], Adapted(adapter, stage.units[-1], layout)]
    return with_children(stage, units=nn.ModuleList(units))


def ap50(
    stage: StageModule, options: argparse.Namespace, protocol: EvaluationProtocol, title: str
) -> float:
    """AP50 of a stage on the data set, all vehicles fused."""
    detector = Detector(stage, PRECISIONS[options.precision])
    scenarios = open_dataset(options.dataset)[: options.scenes]
    progress = partial(tqdm, desc=title, unit='scene', leave=False)
    frames = list(detect_scenarios(detector, scenarios, protocol, progress=progress))
    return score(frames, protocol, FusionSettings(), alone=False).ap50


def flops_of(stage: StageModule) -> float:
    """FLOPs of one frame."""
    return sum(
        unit_flops(unit, torch.zeros(input_shape(stage.model, number)))
        for number, unit in enumerate(stage.units)
    )


def times_of(runners: Mapping[int, StageRunner], rounds: int) -> dict[int, float]:
    """Median seconds of a frame by level; levels take turns, so that the machine's load cancels."""
    picture = np.zeros(model_spec(runners[0].model).picture_shape, np.uint8)
    times: dict[int, list[float]] = {level: [] for level in runners}
    for runner in runners.values():
        runner.run(picture)
    for _ in tqdm(range(rounds), desc='times', leave=False):
        for level, runner in runners.items():
            begin = time.perf_counter()
            runner.run(picture)
            times[level].append(time.perf_counter() - begin)
    return {level: statistics.median(values) for level, values in times.items()}


def switch_times(runner: StageRunner, levels: Iterable[int], rounds: int) -> list[float]:
    """Seconds to get a runner of the same units at another level."""
    times = []
    for _ in range(rounds):
        for level in levels:
            begin = time.perf_counter()
            runner.with_level(level)
            times.append(time.perf_counter() - begin)
    return times


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    units = len(model_spec(options.model).unit_names)
    source = Calibration(options.calibration, options.model, options.weights)
    full = load_units(options.model, 0, units, options.weights)
    levels = known_levels(source)
    stages = {level: apply_level(full, level, source) for level in (0, *levels)}
    runner = StageRunner(
        options.model,
        options.weights,
        0,
        units,
        threads=options.threads,
        calibration=options.calibration,
    )
    runners = {level: runner.with_level(level) for level in stages}
    seconds = times_of(runners, options.rounds)
    switches = switch_times(runner, levels, options.rounds)
    protocol = EvaluationProtocol(f'{options.dataset.name}/test', limits=CAMERA_RANGE)
    pictures = _fit_pictures(options) if options.fit_dataset else []
    base = ap50(full, options, protocol, 'level 0')
    rows = []
    for level, stage in stages.items():
        row = {
            'level': level,
            'flops': flops_of(stage) / flops_of(full),
            'time_s': seconds[level],
            'time': seconds[level] / seconds[0],
            'parameter_bytes': stage.parameter_bytes / full.parameter_bytes,
            'ap50': base,
        }
        if level:
            row['ap50'] = ap50(stage, options, protocol, f'level {level}')
            plain = plain_level(full, level, source)
            row['ap50_plain'] = ap50(plain, options, protocol, f'level {level}, plain')
        if level and pictures:
            adapted = with_transfer(stage, full, pictures)
            row['ap50_transfer'] = ap50(adapted, options, protocol, f'level {level}, transfer')
        if pictures:
            row['nmse'] = _nmse(stage, full, pictures[:HELD_OUT])
        rows.append(row)
    saved = [1 - row['time'] for row in rows if row['ap50'] >= base - TWO_POINTS]
    return {
        'model': options.model,
        'weights': Path(options.weights).name,
        'dataset': options.dataset.name,
        'scenes': min(options.scenes, len(open_dataset(options.dataset))),
        'precision_of_ap': options.precision,
        'threads': options.threads,
        'levels': rows,
        'time_saved_at_2pt': max(saved),
        'goal_time_saved': TIME_GOAL,
        'switch_ms': 1e3 * statistics.median(switches),
        'switch_ms_max': 1e3 * max(switches),
    }


def _fit_pictures(options: argparse.Namespace) -> list[Tensor]:
    moments = load_moments(
        options.fit_dataset, options.model, options.fit_pictures, 1, lambda items, _: items
    )
    spec = model_spec(options.model)
    views = [moment.views[i % len(moment.views)] for i, moment in enumerate(moments)]
    return [torch.from_numpy(picture_to_input(view.picture, spec)) for view in views]


def _nmse(stage: StageModule, full: StageModule, pictures: list[Tensor]) -> float:
    reference = run_frames(list(full.units)[:-1], pictures)
    error = FeatureError(reference, model_spec(stage.model).layout.kind == NCHW)
    return error(run_frames(list(stage.units)[:-1], pictures))


def show(result: Mapping[str, Any]) -> None:
    """Print a table for people."""
    table = Table(title=f'{result["model"]}, AP50 of all vehicles, {result["scenes"]} scenes')
    columns = ('level', 'flops', 'time', 'parameter_bytes', 'ap50', 'ap50_plain', 'ap50_transfer')
    for column in columns:
        table.add_column(column)
    for row in result['levels']:
        table.add_row(
            str(row['level']), *(f'{row[c]:.3f}' if c in row else '' for c in columns[1:])
        )
    Console().print(table)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--dataset', type=Path, required=True, help='OPV2V directory to test on')
    parser.add_argument('--fit-dataset', type=Path, help='OPV2V directory to fit adapters on')
    parser.add_argument('--model', default=MODEL)
    parser.add_argument('--weights', default=WEIGHTS)
    parser.add_argument('--calibration', default=CALIBRATION)
    parser.add_argument('--scenes', type=int, default=1_000_000, help='at most so many')
    parser.add_argument('--fit-pictures', type=int, default=40)
    parser.add_argument('--rounds', type=int, default=15, help='of timing')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--precision', choices=PRECISIONS, default='float32', help='of AP only')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options)
    show(result)
    print(json.dumps(result))


if __name__ == '__main__':
    main()

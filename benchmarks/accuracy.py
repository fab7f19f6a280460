"""Accuracy of the shipped detectors: one vehicle against several, on scenes nobody trained on.

Test sets of generated scenes with different seeds show how far the gain of cooperation spreads; a
real OPV2V directory can take their place. A ladder of sanity checks tells whether the figures mean
what they say: an untrained head, the ground truth fed back, boxes shifted by a metre and detections
of another scene. AP is *measured* offline, in one process. That the split model finds the same is
*measured* on a few moments that run through live nodes over DDS, every frame on two boards or more.

    tools/run python benchmarks/accuracy.py --scenes out/accuracy [--weights weights/*.safetensors]
    tools/run python benchmarks/accuracy.py --dataset OPV2V/test --frame-step 20
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lapdtr_ros.commands.evaluate import DetectedScene, run_live
from lapdtr_ros.datasets.generator import generate_dataset
from lapdtr_ros.datasets.opv2v import Scenario, open_dataset
from lapdtr_ros.evaluation.average_precision import EvaluationProtocol, evaluate_frames
from lapdtr_ros.evaluation.detected import DetectedFrame, fused_boxes
from lapdtr_ros.evaluation.detector import (
    FUSIONS,
    Detector,
    DetectorReport,
    detect_scenarios,
    score_detections,
)
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.weights import load_units
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes
from lapdtr_ros.perception.fusion import NMS, FusionSettings
from lapdtr_ros.perception.ground_truth import ground_truth
from lapdtr_ros.scenario import Scenario as LoadedFleet
from lapdtr_ros.scenario import load_scenario
from lapdtr_ros.training.trainer import PRECISIONS

SEEDS = (11, 12, 13)  # of the test sets; training and validation scenes come from other data seeds
SHIFT_M = 1.0
THRESHOLDS = (30, 50, 70)
LIVE_SEED = 14
# Of the ways to merge, this one was best on the validation scenes; the test scenes decide nothing.
CHOSEN = FusionSettings().name

Frames = list[DetectedFrame]


def test_sets(options: argparse.Namespace) -> dict[str, list[Scenario]]:
    """The scenes to test on, by name of the set."""
    if options.dataset:
        return {options.dataset.name: open_dataset(options.dataset)}
    sets = {}
    for seed in options.seeds:
        root = options.scenes / f'seed{seed}'
        generate_dataset(
            root, {'test': options.scenes_per_set}, 1, seed, width=800, height=600, workers=1
        )
        sets[f'seed{seed}'] = open_dataset(root, 'test')
    return sets


def model_of(weights: Path) -> str:
    """The model that shipped weights belong to, from the log next to them."""
    return json.loads(weights.with_suffix('.json').read_text(encoding='utf-8'))['options']['model']


def live_scene(options: argparse.Namespace, moments: int) -> Scenario:
    """A scene for the live check: two vehicles, which keeps the number of processes small."""
    if options.dataset:
        return open_dataset(options.dataset)[0]
    root = options.scenes / f'live{moments}'
    generate_dataset(
        root,
        {'test': 1},
        moments,
        LIVE_SEED,
        width=800,
        height=600,
        vehicles=(2, 2),
        workers=1,
        progress=False,
    )
    return open_dataset(root, 'test')[0]


def live_fleet(folder: Path, boards: int) -> LoadedFleet:
    """Boards on which the highest frame rate needs a split."""
    names = [f'board{number}' for number in range(boards)]
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    content = {
        'name': 'boards',
        'model': {'name': 'deit_tiny_patch16_224', 'weights': 'random:0'},  # replaced
        'devices': {name: {'class': 'raspberry_pi_4', 'battery_wh': 480} for name in names},
        'links': [{'between': list(pair), 'class': 'ethernet'} for pair in pairs],
        'streams': {f'{names[0]}/camera0': {'source': names[0], 'image_topic': '/image'}},
        'requirements': {'weights': {'energy': 0, 'period': 1}, 'pictures_stay': True},
        'execution': {'max_in_flight': 1, 'frame_timeout_s': 300.0},
    }
    path = folder / 'boards.yaml'
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding='utf-8')
    return load_scenario(path)


def live_equals_unsplit(model: str, weights: str, options: argparse.Namespace) -> dict[str, Any]:
    """Play a few moments through live nodes over DDS and compare every fused box with offline."""
    scene = live_scene(options, options.live_moments)
    protocol = EvaluationProtocol('live check', limits=CAMERA_RANGE)
    # In float32, as the fleet computes.
    found = detect_scenarios(Detector.load(model, weights), [scene], protocol)
    detected = DetectedScene(scene, tuple(islice(found, options.live_moments)))
    boards = max(2, len(detected.frames[0].frame))
    out = options.out / Path(weights).stem
    live = run_live(
        detected, out, model, weights, protocol, template=live_fleet(options.out, boards)
    )
    frames = live.record.frames
    stages = [len(frame.stages) for frame in frames]
    finished = sum(frame.outcome == 'finished' for frame in frames)
    split = min(stages, default=0) >= 2
    return {
        'level': 'measured: live nodes over DDS',
        'moments': live.agreement.moments,
        'frames': len(frames),
        'frames_finished': finished,
        'stages': sorted(set(stages)),
        'live_boxes': live.agreement.live_boxes,
        'offline_boxes': live.agreement.offline_boxes,
        'max_abs_diff': live.agreement.max_abs_diff,
        'equal': live.agreement.holds and finished == len(frames) and split,
    }


def cuts_equal_unsplit(model: str, weights: str) -> dict[str, Any]:
    """Compare every cut of the model with the whole model, in this process and without ROS."""
    spec = model_spec(model)
    units = len(spec.unit_names)
    height, width, _ = spec.picture_shape
    picture = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    whole = load_units(model, 0, units, weights)
    largest = 0.0
    with torch.inference_mode():
        expected = whole(picture)
        for cut in range(1, units):
            parts = load_units(model, 0, cut, weights), load_units(model, cut, units, weights)
            result = parts[1](parts[0](picture))
            largest = max(largest, float((result - expected).abs().max()))
    return {
        'level': 'offline: every cut, one process, no messages',
        'cuts': units - 1,
        'max_difference': largest,
        'equal': largest <= 1e-5,
    }


def sanity_ladder(
    frames: Frames, scenarios: Sequence[Scenario], model: str, protocol: EvaluationProtocol
) -> dict[str, float]:
    """AP50 of things whose AP is known beforehand, or nearly so."""
    rule = protocol.ground_truth_rule
    truths = [ground_truth(f.frame, f.ego, rule) for f in frames]
    found = [fused_boxes(f, f.frame, FUSIONS[CHOSEN]) for f in frames]
    shifted = [
        dataclasses.replace(t, centers=t.centers + np.array([SHIFT_M, 0, 0])) for t in truths
    ]
    untrained = Detector.load(model, 'random:0')
    few = list(detect_scenarios(untrained, scenarios[:3], protocol))
    nothing = [
        (fused_boxes(f, f.frame, FUSIONS[NMS]), ground_truth(f.frame, f.ego, rule)) for f in few
    ]

    def ap50(detections: Sequence[Boxes], against: Sequence[Boxes]) -> float:
        return evaluate_frames(zip(detections, against, strict=True), protocol).ap50

    return {
        'ground_truth_fed_back': ap50(truths, truths),
        'ground_truth_shifted_1m': ap50(shifted, truths),
        'detections_of_another_scene': ap50(found[1:] + found[:1], truths),
        'untrained_head': evaluate_frames(nothing, protocol).ap50,
    }


def evaluate(
    weights: Path, sets: Mapping[str, Sequence[Scenario]], options: argparse.Namespace
) -> dict[str, Any]:
    """All figures of one detector."""
    model = model_of(weights)
    detector = Detector.load(model, str(weights), precision=PRECISIONS[options.precision])
    protocols = {name: EvaluationProtocol(f'{name}/test', limits=CAMERA_RANGE) for name in sets}
    frames = {
        name: list(
            detect_scenarios(
                detector,
                scenarios,
                protocols[name],
                options.frame_step,
                progress=partial(tqdm, desc=name, unit='scene', leave=False),
            )
        )
        for name, scenarios in sets.items()
    }
    together = EvaluationProtocol(f'{"+".join(sets)}/test', limits=CAMERA_RANGE)
    report = score_detections(
        [f for part in frames.values() for f in part], together, model, weights.name
    )
    gains = {}
    for name, part in frames.items():
        one = score_detections(part, protocols[name], model, weights.name)
        gains[name] = {kind: getattr(one, kind)[CHOSEN].ap50 for kind in ('single', 'fused')}
    first = next(iter(sets))
    return {
        **figures(report),
        'precision': options.precision,
        'per_set_ap50': gains,
        'fusion_gain_ap50': spread([g['fused'] - g['single'] for g in gains.values()]),
        'sanity_ap50': sanity_ladder(frames[first], sets[first], model, protocols[first]),
        'cuts_equal_unsplit': cuts_equal_unsplit(model, str(weights)),
        'split_equals_unsplit': (
            live_equals_unsplit(model, str(weights), options) if options.live_moments else None
        ),
        'report': report.as_dict(),
    }


def figures(report: DetectorReport) -> dict[str, Any]:
    """The headline figures, merged the chosen way, and AP50 of all ways."""
    result: dict[str, Any] = {'model': report.model, 'weights': report.weights, 'merging': CHOSEN}
    for kind in ('single', 'fused', 'single_own_labels'):
        ways = getattr(report, kind)
        for percent in THRESHOLDS:
            result[f'ap{percent}_{kind}'] = ways[CHOSEN].at(percent / 100)
        result[f'ap50_{kind}_by_merging'] = {name: way.ap50 for name, way in ways.items()}
    fused = report.fused[CHOSEN]
    return {**result, 'frames': fused.frames, 'boxes': fused.ground_truths}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and, over several sets, least and largest value."""
    return {'mean': statistics.mean(values), 'least': min(values), 'largest': max(values)}


def show(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of AP for people."""
    table = Table(title='AP, BEV IoU, ±51.2 m, ranked over all frames')
    for heading in ('detector', 'cameras of', 'labels', 'AP30', 'AP50', 'AP70'):
        table.add_column(heading)
    rows = (
        ('single', 'the ego', 'all agents'),
        ('fused', 'all agents', 'all agents'),
        ('single_own_labels', 'the ego', "in the ego's pictures"),
    )
    for name, result in results.items():
        for kind, cameras, labels in rows:
            values = (f'{result[f"ap{percent}_{kind}"]:.3f}' for percent in THRESHOLDS)
            table.add_row(name, cameras, labels, *values)
    Console().print(table)
    for name, result in results.items():
        for kind, _, _ in rows:
            print(name, kind, 'AP50 by merging:', result[f'ap50_{kind}_by_merging'])
        print(name, 'gain of fusion, AP50:', result['fusion_gain_ap50'])
        print(name, 'sanity, AP50:', result['sanity_ap50'])
        print(name, 'split equals unsplit, every cut offline:', result['cuts_equal_unsplit'])
        print(name, 'split equals unsplit, live:', result['split_equals_unsplit'])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        '--scenes', type=Path, help='folder of generated test sets, made if missing'
    )
    source.add_argument('--dataset', type=Path, help='OPV2V directory to test on instead')
    parser.add_argument('--weights', type=Path, nargs='+', help='default: all in weights/')
    parser.add_argument('--seeds', type=int, nargs='+', default=SEEDS)
    parser.add_argument('--scenes-per-set', type=int, default=36)
    parser.add_argument('--frame-step', type=int, default=1)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--live-moments', type=int, default=3, help='0 leaves the live check out')
    parser.add_argument(
        '--out', type=Path, default=Path('out/accuracy_live'), help='logs of the live check'
    )
    parser.add_argument('--precision', choices=PRECISIONS, default='float32')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shipped = (p for p in Path('weights').glob('*.safetensors') if '.calibration' not in p.name)
    weights = options.weights or sorted(shipped)
    sets = test_sets(options)
    results = {path.stem: evaluate(path, sets, options) for path in weights}
    show(results)
    summary = {
        'models': results,
        'best_ap50_single': max(r['ap50_single'] for r in results.values()),
        'best_ap50_fused': max(r['ap50_fused'] for r in results.values()),
        # None when no moment went live.
        'split_equals_unsplit': (
            all(r['split_equals_unsplit']['equal'] for r in results.values())
            if options.live_moments
            else None
        ),
        'live_moments': options.live_moments,
        'frames': next(iter(results.values()))['frames'],
        'boxes': next(iter(results.values()))['boxes'],
    }
    print(
        json.dumps(summary, default=lambda x: x.tolist() if isinstance(x, np.ndarray) else str(x))
    )


if __name__ == '__main__':
    main()

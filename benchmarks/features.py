"""What crosses a cut: bytes per frame against AP50 of a detector on scenes nobody trained on.

Every setting runs as it does on devices: packed by one stage, opened and finished by the next, in
one process without ROS. Only what lies behind the cut is computed again per setting. The JPEG of
the very same camera picture stands beside them, because that is what one would send otherwise.
Static means and adapters are fitted on other scenes than those of the test. Bytes and AP are
*measured*; times too, on this machine.

    python benchmarks/features.py --scenes out/features
    python benchmarks/features.py --dataset OPV2V/test --calibration-dataset OPV2V/validate
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lapdtr_ros.datasets.generator import generate_dataset
from lapdtr_ros.datasets.opv2v import AgentFrame, CameraModel, Scenario, open_dataset, prefetch
from lapdtr_ros.evaluation.average_precision import EvaluationProtocol
from lapdtr_ros.evaluation.detected import SCORE_THRESHOLD, DetectedFrame, detection_grid, score
from lapdtr_ros.execution.backends import TorchBackend
from lapdtr_ros.execution.frames import JPEG, RAW, Packet
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.features.calibration import (
    Calibration,
    RunningMean,
    mean_name,
    write_calibration,
)
from lapdtr_ros.features.packing import Packing
from lapdtr_ros.features.summarize import summarize
from lapdtr_ros.features.transfer import Adapter, TransferReport, fit_adapter, skip_name
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.layout import TOKENS, FeatureLayout
from lapdtr_ros.models.preprocess import encode_jpeg, picture_to_input, resize_picture
from lapdtr_ros.models.weights import load_units
from lapdtr_ros.perception.boxes import CAMERA_RANGE
from lapdtr_ros.perception.detection_targets import decode
from lapdtr_ros.perception.fusion import WBF, FusionSettings
from lapdtr_ros.planning.plan import CLUSTER, LITERAL_FORM, LOSSLESS, CutSetting

MODEL = 'vit_small_patch14_focus:blocks.8@308x420+detection'
WEIGHTS = 'weights/vit_small_focus_detection.safetensors'
TEST_SEED, CALIBRATION_SEED = 11, 21
MERGING = FusionSettings(method=WBF, iou_threshold=0.3, score_rule='noisy_or')
JPEG_QUALITIES = (95, 85, 70, 50, 25)
UNIT_DROPPED, UNIT_REPLACED = 'next unit left out', 'next unit replaced'
POINT = 0.01  # of AP
HELD_OUT = 8  # calibration pictures that adapters are not fitted on
ADAPTED = ('2 bit', '1/3 of tokens', '1/4 of tokens, 4 bit', '1/2 of tokens, 2 bit')

Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass
class View:
    """A camera picture of an agent, and what the sender has computed from it."""

    frame: int
    agent: int
    camera: CameraModel
    picture: np.ndarray
    features: dict[int, np.ndarray] = field(default_factory=dict)
    attention: dict[int, np.ndarray | None] = field(default_factory=dict)


@dataclass
class TestSet:
    """Pictures of all agents, frame by frame, and the ground truth that belongs to them."""

    frames: list[dict[int, AgentFrame]]
    views: list[View]
    protocol: EvaluationProtocol


@dataclass(frozen=True)
class Point:
    """One way to send a frame, as measured."""

    cut: int
    name: str
    keep: int
    form: str
    bits: int
    transfer: str
    bytes: float
    ap50_fused: float
    ap50_single: float


def read_views(scenarios: Sequence[Scenario], protocol: EvaluationProtocol, size: Any) -> TestSet:
    """Decode and resize all pictures of the first timestamp of every scenario."""
    frames: list[dict[int, AgentFrame]] = []
    views = []
    for scenario in scenarios:
        stamps = scenario.timestamps[:1]
        for snapshot in prefetch(scenario, protocol.cameras, workers=1, timestamps=stamps):
            agents = list(snapshot.agents.items())[: protocol.vehicles]
            for agent, decoded in agents:
                for number, image in decoded.images.items():
                    camera = decoded.frame.cameras[number]
                    picture = resize_picture(image, size)
                    views.append(View(len(frames), agent, camera, picture))
            frames.append({agent: decoded.frame for agent, decoded in agents})
    return TestSet(frames, views, protocol)


def compute_cuts(views: Sequence[View], model: str, weights: str, cuts: Sequence[int]) -> None:
    """Run the units before the last cut once, and keep what lies at every cut."""
    spec = model_spec(model)
    backend = TorchBackend(load_units(model, 0, max(cuts), weights), torch.get_num_threads())
    for view in tqdm(views, 'units before the cuts', leave=False):
        features = picture_to_input(view.picture, spec)
        start = 0
        for cut in sorted(cuts):
            features, view.attention[cut] = backend.run_probed(features, start, cut)
            view.features[cut] = features
            start = cut


def evaluate(test: TestSet, model: str, outputs: Iterable[np.ndarray]) -> tuple[float, float]:
    """AP50 of all agents together and of the ego alone, from raw outputs in order of the views."""
    grid = detection_grid(model)
    found: list[dict[int, list[Any]]] = [{a: [] for a in frame} for frame in test.frames]
    for view, values in zip(test.views, outputs, strict=True):
        camera = view.camera.resized(grid.width, grid.height)
        boxes = decode(values, camera, grid, score_threshold=SCORE_THRESHOLD)
        found[view.frame][view.agent].append(boxes)
    detected = [
        DetectedFrame(frame, {agent: tuple(boxes) for agent, boxes in per_agent.items()})
        for frame, per_agent in zip(test.frames, found, strict=True)
    ]
    fused, single = (
        score(detected, test.protocol, MERGING, alone=alone).ap50 for alone in (False, True)
    )
    return fused, single


def measure(
    test: TestSet, packing: Packing, receiver: StageRunner, setting: CutSetting, name: str
) -> Point:
    """Send every view over a cut with a setting."""
    cut = receiver.start
    sizes = []

    def outputs() -> Iterator[np.ndarray]:
        for view in tqdm(test.views, f'cut {cut}, {name}', leave=False):
            packet = packing.pack(view.features[cut], cut, setting, attention=view.attention[cut])
            sizes.append(packet.nbytes)
            result = receiver.run_packet(packet, cut, receiver.stop, LOSSLESS)
            yield result.to_array()[0]

    fused, single = evaluate(test, receiver.model, outputs())
    return _told(
        cut,
        name,
        setting.keep,
        setting.form,
        setting.bits,
        setting.transfer,
        statistics.mean(sizes),
        fused,
        single,
    )


def measure_jpeg(test: TestSet, whole: StageRunner, quality: int) -> Point:
    """Send the camera picture at the model's size instead, and run everything at the receiver."""
    sizes = []

    def outputs() -> Iterator[np.ndarray]:
        for view in tqdm(test.views, f'JPEG quality {quality}', leave=False):
            data = encode_jpeg(view.picture, quality)
            sizes.append(len(data))
            packet = Packet(JPEG, 'uint8', view.picture.shape, data)
            yield whole.run_packet(packet, 0, whole.stop, LOSSLESS).to_array()[0]

    fused, single = evaluate(test, whole.model, outputs())
    return _told(0, f'JPEG {quality}', 0, '', 0, '', statistics.mean(sizes), fused, single)


def _told(*values: Any) -> Point:
    """A point, printed as soon as it is known: a run takes a while."""
    point = Point(*values)
    tqdm.write(
        f'cut {point.cut}, {point.name}{", " if point.transfer else ""}{point.transfer}: '
        f'{point.bytes:.0f} bytes, AP50 {point.ap50_fused:.4f}, alone {point.ap50_single:.4f}'
    )
    return point


def settings_for(layout: FeatureLayout) -> dict[str, CutSetting]:
    """The settings to compare, by name."""
    positions = layout.grid[0] * layout.grid[1]
    shares = {'1/2': positions // 2, '1/3': positions // 3, '1/4': positions // 4}
    settings = {'fp32': LOSSLESS}
    settings |= {f'{bits} bit': CutSetting(bits=bits) for bits in (8, 4, 3, 2)}
    for share, keep in shares.items():
        settings[f'{share} of tokens'] = CutSetting(keep, CLUSTER)
        settings |= {
            f'{share} of tokens, {bits} bit': CutSetting(keep, CLUSTER, bits) for bits in (4, 3)
        }
    settings['1/2 of tokens, 2 bit'] = CutSetting(shares['1/2'], CLUSTER, 2)
    if layout.kind == TOKENS:
        for share in ('1/2', '1/3'):
            settings[f'literal {share}'] = CutSetting(shares[share], LITERAL_FORM)
        settings['literal 1/2, 4 bit'] = CutSetting(shares['1/2'], LITERAL_FORM, 4)
    return settings


def fit_transfers(
    views: Sequence[View], packing: Packing, model: str, weights: str, cut: int
) -> tuple[dict[str, torch.Tensor], dict[str, TransferReport]]:
    """Fit an adapter for each setting of `ADAPTED`, on calibration pictures.

    Returns:
        Tensors of the accepted ones and, by setting, how all did.
    """
    spec = model_spec(model)
    units = len(spec.unit_names)
    between = load_units(model, cut, units - 1, weights) if cut < units - 1 else None
    tensors: dict[str, torch.Tensor] = {}
    reports = {}
    settings = settings_for(spec.layout)
    for name in tqdm(ADAPTED, f'adapters, cut {cut}', leave=False):
        setting = settings[name]
        pairs = [_received(view, packing, cut, setting) for view in views]
        adapter, reports[name] = fit_adapter(
            pairs[:-HELD_OUT],
            pairs[-HELD_OUT:],
            between or torch.nn.Identity(),
            spec.layout.kind,
            cut,
            cut,
        )
        if adapter is not None:
            tensors |= adapter.tensors(transfer_name(cut, setting))
    return tensors, reports


def fit_skip(
    views: Sequence[View], model: str, weights: str, cut: int
) -> tuple[dict[str, torch.Tensor], TransferReport]:
    """Fit an adapter that stands in for the unit behind a cut; beside it one that does nothing."""
    spec = model_spec(model)
    last = len(spec.unit_names) - 1
    units = load_units(model, cut, last, weights)
    pairs = []
    with torch.inference_mode():
        for view in views:
            features = torch.from_numpy(view.features[cut])
            pairs.append((features, units(features, cut, cut + 1)))
    adapter, report = fit_adapter(
        pairs[:-HELD_OUT],
        pairs[-HELD_OUT:],
        lambda features: units(features, cut + 1, last),
        spec.layout.kind,
        cut,
        cut + 1,
    )
    width = spec.layout.channels
    nothing = Adapter(cut, cut + 1, np.ones(width, np.float32), np.zeros(width, np.float32))
    tensors = nothing.tensors(drop_name(cut))
    if adapter is not None:
        tensors |= adapter.tensors(skip_name(cut))
    return tensors, report


def drop_name(unit: int) -> str:
    """Name of the adapter that leaves a unit out and puts nothing in its place."""
    return f'drop.{unit}'


def transfer_name(cut: int, setting: CutSetting) -> str:
    """Name of the adapter for a setting."""
    return f'cut.{cut}.keep{setting.keep}.bits{setting.bits}'


def _received(
    view: View, packing: Packing, cut: int, setting: CutSetting
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the receiver gets, on the whole grid, and what the sender had."""
    packet = packing.pack(view.features[cut], cut, setting, attention=view.attention[cut])
    features, summary = packing.unpack(packet, cut)
    if summary is not None:
        prefix = features.shape[1] - summary.rows
        features = summary.restore(features, prefix)
    return torch.from_numpy(features.copy()), torch.from_numpy(view.features[cut])


def calibrate(
    views: Sequence[View], model: str, weights: str, cuts: Sequence[int], path: Path
) -> dict[str, dict[str, TransferReport]]:
    """Write a calibration file with means and adapters for the cuts."""
    tensors = {}
    for cut in cuts:
        mean = RunningMean()
        for view in views:
            mean.add(torch.from_numpy(view.features[cut]))
        tensors[mean_name(cut)] = mean.mean()
    about = {'command': 'benchmarks/features.py', 'data': f'{len(views)} calibration pictures'}
    write_calibration(path, model, weights, tensors, **about)
    packing = Packing(model_spec(model).layout, Calibration(path, model, weights))
    reports = {}
    for cut in cuts:
        adapters, reports[f'cut {cut}'] = fit_transfers(views, packing, model, weights, cut)
        tensors |= adapters
        # Only where all cuts are equally wide can a block be left out.
        if model_spec(model).layout.kind == TOKENS and cut < len(model_spec(model).unit_names) - 1:
            skip, reports[f'cut {cut}'][UNIT_REPLACED] = fit_skip(views, model, weights, cut)
            tensors |= skip
    write_calibration(path, model, weights, tensors, **about)
    return reports


def times(keep: int, bits: int, grid: tuple[int, int], width: int, folder: Path) -> dict[str, Any]:
    """Milliseconds on one core for a feature of a ViT with one class token, static mean included.

    The values are random, which no step of the packing notices.
    """
    rows, columns = grid
    model = f'vit_small_patch14_focus@{rows * 14}x{columns * 14}'
    random = np.random.default_rng(0)
    features = random.standard_normal((1, 1 + rows * columns, width), dtype=np.float32)
    attention = random.random(rows * columns, dtype=np.float32)
    path = folder / 'times.safetensors'
    mean = {mean_name(6): torch.from_numpy(features[0]).half() / 2}
    write_calibration(path, model, 'random:0', mean, command='times', data='random')
    packing = Packing(model_spec(model).layout, Calibration(path, model, 'random:0'))
    setting = CutSetting(keep, CLUSTER, bits)
    packet = packing.pack(features, 6, setting, attention=attention)
    backend = TorchBackend(load_units(model, 6, 7, 'random:0'))
    patches, positions = torch.from_numpy(features[0, 1:]), np.zeros_like(features[0, 1:])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = {
        'tokens': 1 + rows * columns,
        'keep': keep,
        'bits': bits,
        'pack_ms': median_ms(lambda: packing.pack(features, 6, setting, attention=attention)),
        'unpack_ms': median_ms(lambda: packing.unpack(packet, 6)),
        'of_which_summarize_ms': median_ms(
            lambda: summarize(patches, keep, CLUSTER, attention, None, positions)
        ),
        'block_ms': median_ms(lambda: backend.run(features, 6, 7)),
        'block_with_attention_ms': median_ms(lambda: backend.run_probed(features, 6, 7)),
    }
    torch.set_num_threads(threads)
    result['pack_unpack_ms'] = result['pack_ms'] + result['unpack_ms']
    return result


def median_ms(run: Callable[[], Any], repeats: int = 40) -> float:
    """Median duration after a warm-up."""
    run()
    durations = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        durations.append(time.perf_counter() - begin)
    return 1000 * statistics.median(durations)


def scenes(options: argparse.Namespace) -> tuple[list[Scenario], list[Scenario]]:
    """Scenes to test and to calibrate on; generated unless datasets were given."""
    if options.dataset:
        return (
            open_dataset(options.dataset)[: options.scenes_per_set],
            open_dataset(options.calibration_dataset),
        )
    sets = []
    for seed, split, count in (
        (TEST_SEED, 'test', options.scenes_per_set),
        (CALIBRATION_SEED, 'validate', options.calibration_scenes),
    ):
        root = options.scenes / f'seed{seed}'
        generate_dataset(root, {split: count}, 1, seed, width=800, height=600, workers=1)
        sets.append(open_dataset(root, split)[:count])
    return sets[0], sets[1]


def within_a_point(points: Sequence[Point], baseline: float) -> Point | None:
    """The point of fewest bytes that loses at most one point of AP50."""
    good = [p for p in points if p.ap50_fused >= baseline - POINT]
    return min(good, key=lambda p: p.bytes, default=None)


def literal_against_default(points: Sequence[Point]) -> list[dict[str, Any]]:
    """AP50 of both forms where their bytes are equal."""
    return [
        {
            'cut': a.cut,
            'keep': a.keep,
            'bits': a.bits,
            'bytes': a.bytes,
            'ap50_literal': a.ap50_fused,
            'ap50_default': b.ap50_fused,
            'points_lost_by_literal': 100 * (b.ap50_fused - a.ap50_fused),
        }
        for a in points
        for b in points
        if (a.form, b.form) == (LITERAL_FORM, CLUSTER)
        and (a.cut, a.keep, a.bits, '') == (b.cut, b.keep, b.bits, b.transfer)
    ]


def show(points: Sequence[Point], fp32: float) -> None:
    """Print the curve for people."""
    table = Table(title='bytes per camera frame against AP50, BEV IoU, ±51.2 m')
    for heading in ('cut', 'sent', 'transfer', 'bytes', 'fp32 / bytes', 'AP50 fused', 'AP50 alone'):
        table.add_column(heading)
    for p in sorted(points, key=lambda p: (p.cut, p.form, -p.bytes)):
        table.add_row(
            str(p.cut),
            p.name,
            'yes' if p.transfer else '',
            f'{p.bytes:.0f}',
            f'{fp32 / p.bytes:.1f}',
            f'{p.ap50_fused:.4f}',
            f'{p.ap50_single:.4f}',
        )
    Console(width=100).print(table)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All measurements."""
    model, weights = options.model, str(options.weights)
    spec = model_spec(model)
    units = len(spec.unit_names)
    size = spec.picture_shape[:2]
    protocol = EvaluationProtocol('test', limits=CAMERA_RANGE)
    test_scenes, calibration_scenes = scenes(options)
    views = read_views(calibration_scenes, protocol, size).views
    # Evenly over the scenes, whose order is kept: held-out pictures come from the last scenes.
    few = np.linspace(0, len(views) - 1, min(len(views), options.calibration_pictures))
    views = [views[int(i)] for i in few]
    compute_cuts(views, model, weights, options.cuts)
    path = folder / 'calibration.safetensors'
    reports = calibrate(views, model, weights, options.cuts, path)
    del views
    test = read_views(test_scenes, protocol, size)
    compute_cuts(test.views, model, weights, options.cuts)
    calibration = Calibration(path, model, weights)
    packing = Packing(spec.layout, calibration)
    points = []
    for cut in options.cuts:
        receiver = StageRunner(
            model,
            weights,
            cut,
            units,
            threads=options.threads,
            calibration=str(path),
        )
        for name, setting in settings_for(spec.layout).items():
            points.append(measure(test, packing, receiver, setting, name))
            report = reports[f'cut {cut}'].get(name)
            if report is not None and report.chosen:
                adapted = dataclasses.replace(setting, transfer=transfer_name(cut, setting))
                points.append(measure(test, packing, receiver, adapted, name))
        skipped = reports[f'cut {cut}'].get(UNIT_REPLACED)
        if skipped is not None:
            drop = CutSetting(transfer=drop_name(cut))
            points.append(measure(test, packing, receiver, drop, UNIT_DROPPED))
        if skipped is not None and skipped.chosen:
            skip = CutSetting(transfer=skip_name(cut))
            points.append(measure(test, packing, receiver, skip, UNIT_REPLACED))
    whole = StageRunner(model, weights, 0, units, threads=options.threads)
    pictures = [measure_jpeg(test, whole, quality) for quality in options.jpeg]
    raw = whole.run_packet(
        Packet.of_array(test.views[0].picture, RAW), 0, units, LOSSLESS
    ).to_array()
    fp32 = next(p for p in points if p.name == 'fp32')
    show([*points, *pictures], fp32.bytes)
    ours = within_a_point([p for p in points if p.form != LITERAL_FORM], fp32.ap50_fused)
    jpeg = within_a_point(pictures, fp32.ap50_fused)
    timing = times(128, 4, (16, 16), 384, folder)
    assert ours is not None, 'fp32 itself loses nothing'
    return {
        'model': model,
        'weights': Path(weights).name,
        'frames': len(test.frames),
        'pictures': len(test.views),
        'baseline_ap50_fused': fp32.ap50_fused,
        'baseline_ap50_single': fp32.ap50_single,
        'fp32_bytes': fp32.bytes,
        'bytes_ratio_at_1pt': fp32.bytes / ours.bytes,
        'feature_bytes_at_1pt': ours.bytes,
        'best_at_1pt': dataclasses.asdict(ours),
        'jpeg_bytes_at_1pt': None if jpeg is None else jpeg.bytes,
        'jpeg_at_1pt': None if jpeg is None else jpeg.name,
        'picture_is_cheaper': jpeg is not None and jpeg.bytes < ours.bytes,
        'raw_picture_bytes': test.views[0].picture.nbytes,
        'output_bytes': raw.nbytes,
        'literal_against_default': literal_against_default(points),
        'pack_unpack_ms': timing['pack_unpack_ms'],
        'timing': timing,
        'timing_of_the_detector': times(
            spec.layout.grid[0] * spec.layout.grid[1] // 3, 4, spec.layout.grid, 384, folder
        ),
        'transfer': {
            cut: {name: dataclasses.asdict(report) for name, report in by_name.items()}
            for cut, by_name in reports.items()
        },
        'points': [dataclasses.asdict(p) for p in (*points, *pictures)],
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--scenes', type=Path, help='folder of generated scenes, made if missing')
    source.add_argument('--dataset', type=Path, help='OPV2V directory to test on instead')
    parser.add_argument('--calibration-dataset', type=Path, help='with --dataset: other scenes')
    parser.add_argument('--model', default=MODEL)
    parser.add_argument('--weights', type=Path, default=Path(WEIGHTS))
    parser.add_argument('--cuts', type=int, nargs='+', default=(9,))
    parser.add_argument('--jpeg', type=int, nargs='*', default=JPEG_QUALITIES)
    parser.add_argument('--scenes-per-set', type=int, default=24)
    parser.add_argument('--calibration-scenes', type=int, default=8)
    parser.add_argument('--calibration-pictures', type=int, default=64)
    parser.add_argument('--threads', type=int, default=2)
    options = parser.parse_args()
    if options.dataset and not options.calibration_dataset:
        parser.error('--dataset needs --calibration-dataset with other scenes')
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        summary = run(options, Path(folder))
    if summary['picture_is_cheaper']:
        print(
            f'a JPEG of {summary["jpeg_bytes_at_1pt"]:.0f} bytes is as accurate as features of '
            f'{summary["feature_bytes_at_1pt"]:.0f}: by bytes alone, send the picture'
        )
    print(json.dumps(summary))


if __name__ == '__main__':
    main()

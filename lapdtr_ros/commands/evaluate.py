"""``lapdtr evaluate``: average precision of a detector, offline and through the live nodes."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lapdtr_ros.datasets.opv2v import Scenario as Scene
from lapdtr_ros.datasets.opv2v import open_dataset
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.evaluation.average_precision import ApResult, EvaluationProtocol
from lapdtr_ros.evaluation.detected import SCORE_THRESHOLD, DetectedFrame, score
from lapdtr_ros.evaluation.detection_pictures import detection_images
from lapdtr_ros.evaluation.detector import (
    Detector,
    DetectorReport,
    detect_scenarios,
    score_detections,
)
from lapdtr_ros.evaluation.live import (
    Agreement,
    accuracy_record,
    compare_detections,
    fused_offline,
    live_precision,
    read_detections,
    stamp_ns,
)
from lapdtr_ros.evaluation.report import write_report
from lapdtr_ros.evaluation.run_record import RunRecord, dump, encode, write_record
from lapdtr_ros.evaluation.summary import write_summary
from lapdtr_ros.evaluation.tables import print_summary
from lapdtr_ros.models.facts import DETECTION, model_spec
from lapdtr_ros.nodes.bags import is_bag
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes
from lapdtr_ros.perception.fusion import NMS, SCORE_RULES, WBF, FusionSettings
from lapdtr_ros.scenario import Scenario, load_scenario

from .run import run_scenario

# Long enough for any pile of frames: an evaluation loses none.
DEADLINE_S = 120.0

# Of a vehicle in a fleet that nobody described; what a board may take of a 12 V battery.
BATTERY_WH = 480.0


class EvaluateError(LapdtrError):
    """A model, dataset or fleet that cannot be evaluated together."""


@dataclass(frozen=True, eq=False)
class DetectedScene:
    """A scene with what the detector found in it offline."""

    scene: Scene
    frames: tuple[DetectedFrame, ...]


@dataclass(frozen=True, eq=False)
class LiveScene:
    """What the live nodes made of a scene."""

    record: RunRecord
    detections: Mapping[int, Boxes]
    agreement: Agreement


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        'evaluate',
        help='measure the average precision of a detector',
        description='Runs a detector over an OPV2V directory and reports AP at IoU 0.3, 0.5 and '
        '0.7 of one vehicle and of all together. With --plan or --live the same frames also run '
        'through real nodes over DDS: the report then has the metrics of the fleet, and says '
        'whether its detections equal those made offline.',
    )
    add = parser.add_argument
    add('dataset', type=Path, help='OPV2V directory (dataset, split or scene) or rosbag2 recording')
    add('--model', required=True, help='name of a model with the head detection')
    add('--weights', required=True, help='.safetensors file or another identifier of weights')
    add('--split', help='train, validate, test or test_culver_city; all that are there when left')
    add('--limit', type=int, default=0, help='evaluate only the first N moments')
    add('--method', choices=(NMS, WBF), default=WBF, help='how the live fleet merges boxes')
    add('--score-rule', choices=SCORE_RULES, default='noisy_or', help='score of boxes wbf merged')
    add('--device', default='cpu', help='torch device of the offline part')
    add('--out', type=Path, default=Path('out/evaluate'), help='where to write')
    live = parser.add_mutually_exclusive_group()
    live.add_argument(
        '--plan',
        type=Path,
        metavar='SCENARIO',
        help='run live on the devices, links and requirements of this scenario',
    )
    live.add_argument('--live', action='store_true', help='run live on one board per vehicle')
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb; 1 when live detections differ from those made offline or frames were lost."""
    console = Console()
    options.dataset = _scene_of(options.dataset, options.out, console)
    protocol = EvaluationProtocol(_split_name(options), limits=CAMERA_RANGE)
    scenes = detect_offline(options, protocol)
    frames = [frame for scene in scenes for frame in scene.frames]
    report = score_detections(frames, protocol, options.model, options.weights)
    options.out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {'offline': report.as_dict()}
    _print_offline(report, console)
    failed = False
    if options.plan is not None or options.live:
        template = load_scenario(options.plan) if options.plan is not None else None
        settings = FusionSettings(options.method, score_rule=options.score_rule)
        live = [
            run_live(
                scene,
                options.out / scene.scene.name,
                options.model,
                options.weights,
                protocol,
                settings=settings,
                template=template,
                command=_command(options),
            )
            for scene in scenes
        ]
        document['live'] = _live_document(scenes, live, protocol, settings)
        for one in live:
            print_summary(one.record, console)
        _print_live(document['live'], console)
        failed = not document['live']['equals_offline'] or document['live']['frames_lost'] > 0
    path = options.out / 'evaluation.json'
    path.write_text(dump(encode(document)), encoding='utf-8')
    console.print(f'figures: {path}')
    return 1 if failed else 0


def _scene_of(dataset: Path, out: Path, console: Console) -> Path:
    """The dataset itself, or the scene that a recording turns into."""
    if not is_bag(dataset):
        return dataset
    # Imported late: an evaluation of a directory works without ROS.
    from lapdtr_ros.nodes.bags.scenes import bag_to_scene

    imported = bag_to_scene(dataset, out / 'recording' / dataset.stem)
    left_out = f', {imported.incomplete} incomplete left out' if imported.incomplete else ''
    console.print(f'recording {dataset}: {imported.moments} moments{left_out}')
    return imported.path


def _split_name(options: argparse.Namespace) -> str:
    return f'{options.dataset.resolve().name}/{options.split or "all"}'


def detect_offline(
    options: argparse.Namespace, protocol: EvaluationProtocol
) -> list[DetectedScene]:
    """Run the detector in this process over the chosen moments.

    Raises:
        EvaluateError: the model has another head.
        DatasetError: no such directory or split, or a file that gives wrong numbers.
    """
    if model_spec(options.model).head != DETECTION:
        raise EvaluateError(
            f'model {options.model!r} does not detect; add +{DETECTION} to its name'
        )
    if options.limit < 0:
        raise EvaluateError(f'--limit is {options.limit}; give a number of moments, or 0 for all')
    scenes = open_dataset(options.dataset, options.split)
    detector = Detector.load(options.model, options.weights, options.device)
    left = options.limit or sum(len(scene.timestamps) for scene in scenes)
    total = min(left, sum(len(scene.timestamps) for scene in scenes))
    detected = []
    with tqdm(total=total, unit='moment', desc='offline', disable=None) as progress:
        for scene in scenes:
            found = []
            for frame in islice(detect_scenarios(detector, [scene], protocol), left):
                found.append(frame)
                progress.update()
            left -= len(found)
            detected.append(DetectedScene(scene, tuple(found)))
            if not left:
                break
    return detected


# --- Live -----------------------------------------------------------------------------------------


def run_live(
    detected: DetectedScene,
    out: Path,
    model: str,
    weights: str,
    protocol: EvaluationProtocol,
    *,
    settings: FusionSettings | None = None,
    template: Scenario | None = None,
    command: str = '',
) -> LiveScene:
    """Run the moments of a scene through real nodes over DDS, and compare with offline.

    Writes run.json, summary.json, detections.json, report.html and the logs.

    Args:
        detected: the scene with what the unsplit model found in it.
        out: directory to write to.
        model: name of the model.
        weights: identifier of its weights.
        protocol: how to measure.
        settings: how boxes are merged, by default as a scenario that does not say.
        template: see `live_scenario`.
        command: what to type to repeat it.

    Raises:
        ProcessFailedError: a process ended early.
        RunError: no frame came through for too long.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = settings or FusionSettings()
    content = live_scenario(detected, template, model, weights, settings, protocol)
    path = out / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding='utf-8')
    record = run_scenario(load_scenario(path), out)
    live = {frame.stamp_ns: frame.boxes for frame in read_detections(out / 'detections.json')}
    agreement = compare_detections(live, fused_offline(detected.frames, settings))
    record = dataclasses.replace(
        record,
        accuracy=accuracy_record(_live_ap([detected], [live], protocol)),
        accuracy_alone=accuracy_record(score(detected.frames, protocol, settings, alone=True)),
        equivalence=agreement.as_equivalence('fused detections of the unsplit model offline'),
        command=command,
    )
    write_record(record, out / 'run.json')
    write_summary(record, out / 'summary.json')
    found = [live.get(stamp_ns(frame), Boxes.empty()) for frame in detected.frames]
    images = detection_images(detected.frames, found, protocol.ground_truth_rule)
    write_report(record, out / 'report.html', images)
    return LiveScene(record, live, agreement)


def live_scenario(
    detected: DetectedScene,
    template: Scenario | None,
    model: str,
    weights: str,
    settings: FusionSettings,
    protocol: EvaluationProtocol,
) -> dict[str, Any]:
    """Content of a scenario that plays the evaluated moments of a scene on a fleet.

    Args:
        detected: the scene and its moments.
        template: devices, links, requirements, solver and execution come from it; its streams,
            model and fusion do not. None makes one board per vehicle and a roadside computer.
        model: name of the model.
        weights: identifier of its weights.
        settings: how boxes are merged.
        protocol: which cameras and vehicles take part.

    Raises:
        EvaluateError: the template has fewer devices than the scene has agents.
    """
    agents = list(detected.frames[0].frame)
    fleet = _generated_fleet(agents) if template is None else _fleet_of(template)
    device_of = _default_names(agents) if template is None else _assign(agents, template)
    frames = len(detected.frames)
    return {
        'name': f'evaluate {detected.scene.name}',
        **fleet,
        'model': {'name': model, 'weights': weights},
        'streams': {
            f'{device_of[agent]}/camera{camera}': {
                'source': device_of[agent],
                'sink': device_of[agents[0]],
                'dataset': str(detected.scene.path.resolve()),
                'agent': agent,
                'camera': camera,
                'frames': frames,
            }
            for agent in agents
            for camera in _cameras(detected, agent, protocol)
        },
        'fusion': {
            'ego': device_of[agents[0]],
            'deadline_s': DEADLINE_S,
            'method': settings.method,
            'score_rule': settings.score_rule,
            'iou_threshold': settings.overlap,
            'score_threshold': SCORE_THRESHOLD,
            'communication_range_m': protocol.communication_range_m,
            'capacity': frames + 1,
        },
    }


def _cameras(detected: DetectedScene, agent: int, protocol: EvaluationProtocol) -> Iterator[int]:
    """Cameras of an agent that have a picture at some evaluated moment."""
    seen = {number for frame in detected.frames for number in frame.frame[agent].cameras}
    return (number for number in protocol.cameras if number in seen)


def _default_names(agents: Sequence[int]) -> dict[int, str]:
    return {agent: f'cav_{agent}' if agent >= 0 else f'rsu_{-agent}' for agent in agents}


def _generated_fleet(agents: Sequence[int]) -> dict[str, Any]:
    names = _default_names(agents)
    vehicles = [names[agent] for agent in agents if agent >= 0]
    servers = [names[agent] for agent in agents if agent < 0] or ['edge']
    pairs = [(a, b) for i, a in enumerate(vehicles) for b in vehicles[i + 1 :]]
    return {
        'devices': {
            **{name: {'class': 'jetson_xavier_nx', 'battery_wh': BATTERY_WH} for name in vehicles},
            **{name: {'class': 'edge_server'} for name in servers},
        },
        'links': [
            *({'between': list(pair), 'class': 'wifi6'} for pair in pairs),
            *({'between': [v, s], 'class': '5g'} for v in vehicles for s in servers),
        ],
        'requirements': {'pictures_stay': True},
        'execution': {'max_in_flight': 2, 'frame_timeout_s': DEADLINE_S},
    }


def _fleet_of(template: Scenario) -> dict[str, Any]:
    kept = {'devices', 'links', 'requirements', 'solver', 'execution'}
    return template.file.model_dump(
        mode='json', by_alias=True, include=kept, exclude_defaults=True, exclude_none=True
    )


def _assign(agents: Sequence[int], template: Scenario) -> dict[int, str]:
    """A device for every agent: the one of its name, else the next one.

    Vehicles take devices with a battery first, roadside units those on mains.
    """
    devices = template.fleet.devices
    if len(agents) > len(devices):
        raise EvaluateError(
            f'{template.path}: has {len(devices)} devices for the {len(agents)} agents of the '
            f'scene; add devices, or leave --plan out and give --live'
        )
    named = {agent: name for agent, name in _default_names(agents).items() if name in devices}
    free = [name for name in devices if name not in named.values()]
    assigned = dict(named)
    for agent in agents:
        if agent not in named:
            free.sort(key=lambda name: math.isinf(devices[name].battery_j) != (agent < 0))
            assigned[agent] = free.pop(0)
    return assigned


def _live_ap(
    scenes: Sequence[DetectedScene],
    live: Sequence[Mapping[int, Boxes]],
    protocol: EvaluationProtocol,
) -> ApResult:
    pairs = zip(scenes, live, strict=True)
    moments = ((f, boxes.get(stamp_ns(f))) for scene, boxes in pairs for f in scene.frames)
    return live_precision(moments, protocol)


def _live_document(
    scenes: Sequence[DetectedScene],
    live: Sequence[LiveScene],
    protocol: EvaluationProtocol,
    settings: FusionSettings,
) -> dict[str, Any]:
    frames = [frame for one in live for frame in one.record.frames]
    return {
        'merging': settings.name,
        'fused': _live_ap(scenes, [one.detections for one in live], protocol).as_dict(),
        'equals_offline': all(one.agreement.holds for one in live),
        'agreement': {
            scene.scene.name: one.agreement for scene, one in zip(scenes, live, strict=True)
        },
        'frames_finished': sum(frame.outcome == 'finished' for frame in frames),
        'frames_lost': sum(frame.outcome == 'lost' for frame in frames),
        'pictures_refused': sum(frame.outcome == 'refused' for frame in frames),
    }


def _command(options: argparse.Namespace) -> str:
    words = ['lapdtr', 'evaluate', str(options.dataset), '--model', options.model]
    words += ['--weights', options.weights, '--method', options.method]
    words += ['--score-rule', options.score_rule]
    words += ['--plan', str(options.plan)] if options.plan else ['--live']
    words += ['--split', options.split] if options.split else []
    words += ['--limit', str(options.limit)] if options.limit else []
    return shlex.join(words)


# --- For people -----------------------------------------------------------------------------------


def _print_offline(report: DetectorReport, console: Console) -> None:
    protocol = next(iter(report.fused.values())).protocol
    table = Table(
        title=f'{report.model} ({report.weights}) on {protocol.split}, offline, AP by BEV IoU'
    )
    for heading in ('cameras of', 'labels', 'merging', 'sort', 'AP30', 'AP50', 'AP70'):
        table.add_column(heading)
    rows = (
        ('the ego', 'all', report.single),
        ('all vehicles', 'all', report.fused),
        ('the ego', 'seen by the ego', report.single_own_labels),
        ('the ego', 'all', report.single_local),
        ('all vehicles', 'all', report.fused_local),
    )
    for cameras, labels, results in rows:
        for method, result in results.items():
            figures = (f'{value:.3f}' for value in (result.ap30, result.ap50, result.ap70))
            table.add_row(cameras, labels, method, result.protocol.sort, *figures)
    console.print(table)
    result = next(iter(report.fused.values()))
    x, y = protocol.limits.x, protocol.limits.y
    console.print(
        f'{result.frames} moments, {result.ground_truths} vehicles to find within '
        f'x {x[0]:g} to {x[1]:g} m, y {y[0]:g} to {y[1]:g} m; labels by {protocol.label_rule}; '
        f'cameras {", ".join(map(str, protocol.cameras))}; at most {protocol.vehicles} vehicles '
        f'within {protocol.communication_range_m:g} m'
    )


def _print_live(live: Mapping[str, Any], console: Console) -> None:
    fused = live['fused']
    console.print(
        f'live, {live["merging"]}: AP30 {fused["ap30"]:.3f}, AP50 {fused["ap50"]:.3f}, '
        f'AP70 {fused["ap70"]:.3f} of {fused["frames"]} moments'
    )
    for name, agreement in live['agreement'].items():
        equal = 'equal' if agreement.holds else f'{agreement.differing} moments differ from'
        console.print(
            f'{name}: {agreement.live_boxes} live boxes, {agreement.offline_boxes} offline; '
            f'{equal} the offline ones (largest difference {agreement.max_abs_diff:.1e})'
        )

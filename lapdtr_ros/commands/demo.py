"""``lapdtr demo``: a small fleet in real processes, checked against the unsplit model."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from tqdm import tqdm

from lapdtr_ros.bringup import Intervention, Outage
from lapdtr_ros.datasets.generator import generate
from lapdtr_ros.datasets.opv2v import open_dataset
from lapdtr_ros.datasets.pictures import PictureSequence
from lapdtr_ros.datasets.scene import GeneratorError, SceneConfig
from lapdtr_ros.evaluation.average_precision import EvaluationProtocol
from lapdtr_ros.evaluation.detected import DetectedFrame, detection_grid, score
from lapdtr_ros.evaluation.detection_pictures import detection_images, heat_image
from lapdtr_ros.evaluation.live import (
    accuracy_record,
    compare_detections,
    decode_outputs,
    fused_offline,
    live_precision,
    read_detections,
    stamp_ns,
)
from lapdtr_ros.evaluation.report import write_report
from lapdtr_ros.evaluation.run_record import Equivalence, RunRecord, write_record
from lapdtr_ros.evaluation.summary import write_summary
from lapdtr_ros.evaluation.tables import print_summary
from lapdtr_ros.execution.frames import FINISHED
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes
from lapdtr_ros.perception.detection_targets import HEAT
from lapdtr_ros.perception.fusion import FusionSettings
from lapdtr_ros.planning.classes import config_directory
from lapdtr_ros.scenario import Scenario, load_scenario

from .run import expected_frames, run_scenario

SCENE = SceneConfig(seed=10, frames=6, vehicles=3, road='crossing', width=640, height=480)

# Devices of the scenario that something happens to.
TIRED, MORTAL = 'cav_409', 'cav_400'


@dataclass(frozen=True)
class Act:
    """Something that happens while frames flow.

    Attributes:
        told: what the terminal says about it.
        interventions: what the user does, and which processes die.
    """

    told: str
    interventions: tuple[Intervention | Outage, ...]


@dataclass(frozen=True, eq=False)
class Finding:
    """What the fleet found in the scene, moment by moment.

    Attributes:
        frames: what each camera found; the fleet's outputs, decoded here.
        together: what the fusion node made of it, None where it said nothing.
        agrees: whether merging ``frames`` here gives the same boxes.
    """

    frames: Sequence[DetectedFrame]
    together: Sequence[Boxes | None]
    agrees: bool


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        'demo',
        help='run a small fleet on this machine and check it against the unsplit model',
        description='Generates a scene with three connected vehicles and a roadside unit, splits '
        'a detector over them in real processes over DDS, changes the plan while frames flow, '
        'compares every output with the unsplit model, measures what one vehicle and what all '
        'of them together find, and writes a report.',
    )
    parser.add_argument('--out', type=Path, default=Path('out/demo'), help='where to write')
    parser.add_argument('--frames', type=int, default=0, help='per camera; 0: as the scenario says')
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb; 1 when a frame was lost, or an output or a detection differs."""
    console = Console()
    scenario = prepare(options.out)
    expected = expected_frames(scenario, options.frames)
    total = sum(expected.values())
    acts = (change_of_wishes(total), low_battery(total), loss(total))
    console.print(
        f'Running {total} pictures of {len(expected)} cameras through '
        f'{len(scenario.fleet.devices)} devices ...'
    )
    for act in acts:
        console.print(f'  {act.told}')
    record = run_scenario(
        scenario,
        options.out,
        frames=options.frames,
        interventions=[change for act in acts for change in act.interventions],
        save_outputs=True,
    )
    record = _compare(scenario, record, options.out)
    finding = _finding(scenario, options.out)
    record = dataclasses.replace(
        _with_accuracy(scenario, record, finding),
        command=f'lapdtr demo --out {options.out}',
    )
    _write(scenario, record, finding, options.out)
    print_summary(record, console)
    same = 'equal' if finding.agrees else 'DIFFER FROM'
    console.print(f'Boxes of the fusion node {same} those merged in one process.')
    console.print(f'report: {options.out / "report.html"}')
    whole = all(frame.outcome == FINISHED for frame in record.frames)
    unsplit = record.equivalence is not None and record.equivalence.holds
    # After a loss a result may come twice; the sink takes one.
    sent = {(frame.stream, frame.seq) for frame in record.frames}
    good = whole and unsplit and finding.agrees and len(sent) == total
    return 0 if good else 1


def change_of_wishes(total: int) -> Act:
    """The scenario asks for the least energy; half-way the user wants a high frame rate as well."""
    after = total // 2
    wishes = {'energy_weight': 1.0, 'period_weight': 1.0}
    return Act(
        f'after {after} of them the user asks for frame rate beside energy',
        (Intervention(after, 'planner', wishes),),
    )


def low_battery(total: int) -> Act:
    """A battery falls below its reserve: the planner moves what can be moved."""
    after = 2 * total // 3
    return Act(
        f'after {after} the battery of {TIRED} falls below its reserve',
        (Intervention(after, f'{TIRED}/device', {'emulated_soc': 0.12}),),
    )


def loss(total: int) -> Act:
    """The device that carries most is killed: its frames resume elsewhere until it is back."""
    after = 5 * total // 6
    return Act(
        f'after {after} the process of {MORTAL} is killed and starts again',
        (Outage(after, f'device_{MORTAL}', back_s=2.0),),
    )


def prepare(out: Path) -> Scenario:
    """Scene and scenario of the demo in the output directory; the scene is made once."""
    out.mkdir(parents=True, exist_ok=True)
    for stale in ('outputs', 'logs'):
        shutil.rmtree(out / stale, ignore_errors=True)
    shutil.copyfile(config_directory() / 'scenarios' / 'demo.yaml', out / 'scenario.yaml')
    scenario = load_scenario(out / 'scenario.yaml')
    _generate(_dataset(scenario))
    return scenario


def _generate(dataset: Path) -> None:
    """Make the scene, in place of one that an older version of the demo left."""
    try:
        generate(SCENE, dataset)
    except GeneratorError:
        shutil.rmtree(dataset)
        generate(SCENE, dataset)


def _dataset(scenario: Scenario) -> Path:
    """The scene that all cameras of the demo are in."""
    dataset = scenario.dataset(next(iter(scenario.file.streams)))
    assert dataset is not None
    return dataset


def _sequences(scenario: Scenario) -> dict[str, PictureSequence]:
    size = model_spec(scenario.file.model.name).picture_shape[:2]
    return {
        name: PictureSequence(_dataset(scenario), section.agent, section.camera, size)
        for name, section in scenario.file.streams.items()
    }


def _output(out: Path, stream: str, seq: int) -> np.ndarray | None:
    """What the fleet made of a frame, None when it was lost."""
    path = out / 'outputs' / stream / f'{seq:06d}.npy'
    return np.load(path) if path.is_file() else None


# --- Split equals unsplit -------------------------------------------------------------------------


def _compare(scenario: Scenario, record: RunRecord, out: Path) -> RunRecord:
    """Run the unsplit model on every picture and keep the largest difference."""
    # The scene repeats, and so do its outputs: each picture needs the unsplit model once.
    seqs: dict[tuple[str, int], list[int]] = {}
    sequences = _sequences(scenario)
    for frame in record.frames:
        if frame.outcome == FINISHED:
            position = frame.seq % len(sequences[frame.stream])
            seqs.setdefault((frame.stream, position), []).append(frame.seq)
    worst, count = 0.0, 0
    for stream, position, reference in _unsplit(scenario, sequences, list(seqs)):
        for seq in seqs[stream, position]:
            output = _output(out, stream, seq)
            difference = np.inf if output is None else np.abs(output - reference).max()
            worst, count = max(worst, float(difference)), count + 1
    told = f'{scenario.file.model.name} in one process on the same pictures'
    return dataclasses.replace(record, equivalence=Equivalence(count, worst, told))


def _unsplit(
    scenario: Scenario, sequences: dict[str, PictureSequence], pictures: list[tuple[str, int]]
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Outputs of the whole model, on all cores: one picture per core as on the devices."""
    model = scenario.file.model
    units = len(model_spec(model.name).unit_names)
    workers = os.cpu_count() or 1

    def run(share: list[tuple[str, int]]) -> list[tuple[str, int, np.ndarray]]:
        whole = StageRunner(model.name, model.weights, 0, units)
        results = []
        for stream, position in share:
            results.append((stream, position, whole.run(sequences[stream][position].pixels)))
            progress.update()
        return results

    title = 'comparing with the unsplit model'
    with (
        tqdm(total=len(pictures), unit='picture', desc=title, disable=None) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        for results in pool.map(run, [pictures[i::workers] for i in range(workers)]):
            yield from results


# --- Detections -----------------------------------------------------------------------------------


def _finding(scenario: Scenario, out: Path) -> Finding:
    """Detections of the first time that the scene was played."""
    file = scenario.file
    cameras = {
        name: (section.agent, section.camera)
        for name, section in file.streams.items()
        if section.agent is not None
    }
    frames = decode_outputs(
        open_dataset(_dataset(scenario))[0],
        cameras,
        lambda stream, position: _output(out, stream, position),
        detection_grid(file.model.name),
    )
    fused = {frame.stamp_ns: frame.boxes for frame in read_detections(out / 'detections.json')}
    agreement = compare_detections(fused, fused_offline(frames, _settings(scenario)))
    return Finding(frames, [fused.get(stamp_ns(frame)) for frame in frames], agreement.holds)


def _settings(scenario: Scenario) -> FusionSettings:
    section = scenario.file.fusion
    assert section is not None
    return FusionSettings(
        section.method,
        section.iou_threshold,
        score_rule=section.score_rule,
        communication_range_m=section.communication_range_m,
    )


def _protocol(scenario: Scenario) -> EvaluationProtocol:
    cameras = sorted({section.camera for section in scenario.file.streams.values()})
    return EvaluationProtocol('the demo scene', cameras=tuple(cameras), limits=CAMERA_RANGE)


def _with_accuracy(scenario: Scenario, record: RunRecord, finding: Finding) -> RunRecord:
    """What all vehicles found together, and beside it what the ego would know alone."""
    protocol = _protocol(scenario)
    together = live_precision(zip(finding.frames, finding.together, strict=True), protocol)
    alone = score(finding.frames, protocol, _settings(scenario), alone=True)
    return dataclasses.replace(
        record, accuracy=accuracy_record(together), accuracy_alone=accuracy_record(alone)
    )


def _write(scenario: Scenario, record: RunRecord, finding: Finding, out: Path) -> None:
    rule = EvaluationProtocol('', limits=CAMERA_RANGE).ground_truth_rule
    found = [Boxes.empty() if boxes is None else boxes for boxes in finding.together]
    write_record(record, out / 'run.json')
    write_summary(record, out / 'summary.json')
    images = detection_images(finding.frames, found, rule)
    images.append(heat_image(finding.frames[0], _heats(scenario, out)))
    write_report(record, out / 'report.html', images)


def _heats(scenario: Scenario, out: Path) -> dict[int, np.ndarray]:
    """Heat of the first picture of each front camera, by agent; of a lost one there is none."""
    heats = {}
    for name, section in scenario.file.streams.items():
        output = _output(out, name, 0)
        if section.agent is not None and section.camera == 0 and output is not None:
            heats[section.agent] = output[0, HEAT]
    return heats

"""``lapdtr demo``: a small fleet in real processes, checked against the unsplit model."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

import numpy as np
from rich.console import Console
from tqdm import tqdm

from lapdtr_ros.bringup import Intervention
from lapdtr_ros.datasets.generator import generate
from lapdtr_ros.datasets.pictures import PictureSequence
from lapdtr_ros.datasets.scene import SceneConfig
from lapdtr_ros.evaluation.pictures import overlay_heat, side_by_side
from lapdtr_ros.evaluation.report import ReportImage, write_report
from lapdtr_ros.evaluation.run_record import Equivalence, RunRecord
from lapdtr_ros.evaluation.summary import write_summary
from lapdtr_ros.evaluation.tables import print_summary
from lapdtr_ros.execution.frames import FINISHED
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.models.registry import model_spec
from lapdtr_ros.planning.classes import config_directory
from lapdtr_ros.scenario import Scenario, load_scenario

from .run import run_scenario

SCENE = SceneConfig(seed=7, frames=60, vehicles=3, road='crossing', width=400, height=300)
SHOWN_FRAMES = 3


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        'demo',
        help='run a small fleet on this machine and check it against the unsplit model',
        description='Generates a scene with three connected vehicles and a roadside unit, runs '
        'a ViT split over them in real processes over DDS, changes the plan while frames flow, '
        'compares every output with the unsplit model and writes a report.',
    )
    parser.add_argument('--out', type=Path, default=Path('out/demo'), help='where to write')
    parser.add_argument('--frames', type=int, default=0, help='frames; 0: as the scenario says')
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb; 1 when a frame was lost or an output differs."""
    console = Console()
    scenario = _prepare(options.out)
    frames = options.frames or next(iter(scenario.file.streams.values())).frames
    console.print(f'Running {frames} frames through {len(scenario.fleet.devices)} devices ...')
    # The scenario asks for the least energy; half-way the user wants the highest frame rate.
    change = Intervention(frames // 2, 'planner', {'energy_weight': 0.0, 'period_weight': 1.0})
    record = run_scenario(
        scenario, options.out, frames=frames, interventions=[change], save_outputs=True
    )
    record = _compare(scenario, record, options.out)
    record = dataclasses.replace(record, command=f'lapdtr demo --out {options.out}')
    write_summary(record, options.out / 'summary.json')
    write_report(record, options.out / 'report.html', _pictures(scenario, record, options.out))
    print_summary(record, console)
    console.print(f'report: {options.out / "report.html"}')
    whole = all(frame.outcome == FINISHED for frame in record.frames)
    equal = record.equivalence is not None and record.equivalence.holds
    return 0 if whole and equal and len(record.frames) == frames else 1


def _prepare(out: Path) -> Scenario:
    """Scene and scenario of the demo in the output directory; the scene is made once."""
    out.mkdir(parents=True, exist_ok=True)
    for stale in ('outputs', 'logs'):
        shutil.rmtree(out / stale, ignore_errors=True)
    generate(SCENE, out / 'scene')
    shutil.copyfile(config_directory() / 'scenarios' / 'demo.yaml', out / 'scenario.yaml')
    return load_scenario(out / 'scenario.yaml')


def _sequence(scenario: Scenario) -> PictureSequence:
    name, section = next(iter(scenario.file.streams.items()))
    dataset = scenario.dataset(name)
    assert dataset is not None
    size = model_spec(scenario.file.model.name).picture_shape[:2]
    return PictureSequence(dataset, section.agent, section.camera, size)


def _output(out: Path, stream: str, seq: int) -> np.ndarray:
    return np.load(out / 'outputs' / stream / f'{seq:06d}.npy')


def _compare(scenario: Scenario, record: RunRecord, out: Path) -> RunRecord:
    """Run the unsplit model on every picture and keep the largest difference."""
    model = scenario.file.model
    whole = StageRunner(model.name, model.weights, 0, len(model_spec(model.name).unit_names))
    pictures = _sequence(scenario)
    # The scene repeats, and so do its outputs: each picture needs the unsplit model once.
    references: dict[int, np.ndarray] = {}
    worst, count = 0.0, 0
    finished = [frame for frame in record.frames if frame.outcome == FINISHED]
    for frame in tqdm(
        finished, desc='comparing with the unsplit model', unit='frame', disable=None
    ):
        index = frame.seq % len(pictures)
        if index not in references:
            references[index] = whole.run(pictures[index].pixels)
        difference = np.abs(_output(out, frame.stream, frame.seq) - references[index])
        worst, count = max(worst, float(difference.max())), count + 1
    reference = f'{model.name} in one process on the same pictures'
    return dataclasses.replace(record, equivalence=Equivalence(count, worst, reference))


def _pictures(scenario: Scenario, record: RunRecord, out: Path) -> list[ReportImage]:
    """A few frames beside what the split model found salient."""
    finished = [frame for frame in record.frames if frame.outcome == FINISHED]
    pictures = _sequence(scenario)
    images = []
    for frame in finished[:: max(1, len(finished) // SHOWN_FRAMES)][:SHOWN_FRAMES]:
        pixels = pictures[frame.seq].pixels
        heat = _output(out, frame.stream, frame.seq)[0, 0]
        images.append(
            ReportImage(
                f'{frame.stream}, frame {frame.seq}',
                side_by_side([pixels, overlay_heat(pixels, heat)]),
                'Camera picture and saliency of the split model',
            )
        )
    return images

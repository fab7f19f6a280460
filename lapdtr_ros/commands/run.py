"""``lapdtr run``: a scenario in real processes on this machine, over DDS."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lapdtr_ros.bringup import (
    Intervention,
    Outage,
    ProcessGroup,
    ProcessSpec,
    VerbSpec,
    fleet_processes,
    recorder_process,
    view_process,
)
from lapdtr_ros.datasets.pictures import PictureSequence
from lapdtr_ros.evaluation.live_view import VIEW_PORT, page_address
from lapdtr_ros.evaluation.report import write_report
from lapdtr_ros.evaluation.run_record import RunRecord
from lapdtr_ros.evaluation.summary import write_summary
from lapdtr_ros.evaluation.tables import print_summary
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.scenario import Scenario, ScenarioError, load_scenario


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        'run',
        help='run a scenario in real processes and report',
        description='Starts one process per device, the planner and the sources of a scenario '
        'on this machine, runs its streams to their end, and writes run.json, summary.json and '
        'report.html.',
    )
    parser.add_argument('scenario', type=Path, help='scenario YAML')
    parser.add_argument('--out', type=Path, default=Path('out/run'), help='where to write')
    parser.add_argument('--frames', type=int, default=0, help='frames per stream; 0: as described')
    parser.add_argument(
        '--record',
        type=Path,
        metavar='BAG',
        help='also record all topics to this new rosbag2',
    )
    parser.add_argument(
        '--view', action='store_true', help='serve a live page with pictures (rerun)'
    )
    parser.add_argument('--view-port', type=int, default=VIEW_PORT, help='port of the page')
    parser.add_argument(
        '--save-view', type=Path, metavar='RRD', help='write the live view to a file instead'
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb."""
    scenario = load_scenario(options.scenario)
    view = _view(options)
    record = run_scenario(
        scenario, options.out, frames=options.frames, bag=options.record, view=view
    )
    write_summary(record, options.out / 'summary.json')
    write_report(record, options.out / 'report.html', [])
    print_summary(record, Console())
    print(f'report: {options.out / "report.html"}')
    return 0 if all(frame.outcome == 'finished' for frame in record.frames) else 1


def _view(options: argparse.Namespace) -> VerbSpec | None:
    if options.save_view:
        return view_process('', options.view_port, options.save_view.absolute())
    if options.view:
        print(f'view: {page_address(options.view_port, options.view_port + 1)}', flush=True)
        return view_process('', options.view_port, None)
    return None


def expected_frames(scenario: Scenario, frames: int = 0) -> dict[str, int]:
    """Frames that each stream will send.

    Raises:
        ScenarioError: a stream from a live topic without a number of frames.
    """
    size = model_spec(scenario.file.model.name).picture_shape[:2]
    expected = {}
    for name, section in scenario.file.streams.items():
        count = frames or section.frames
        dataset = scenario.dataset(name)
        if not count and dataset is None:
            raise ScenarioError(
                f'{scenario.path}: streams.{name}: a live stream has no end; give frames'
            )
        if not count and dataset is not None:
            count = len(PictureSequence(dataset, section.agent, section.camera, size))
        expected[name] = count
    return expected


def run_scenario(
    scenario: Scenario,
    out: Path,
    *,
    frames: int = 0,
    interventions: Sequence[Intervention | Outage] = (),
    save_outputs: bool = False,
    bag: Path | None = None,
    view: VerbSpec | None = None,
) -> RunRecord:
    """Run all streams of a scenario to their end.

    Args:
        scenario: what to run.
        out: directory for logs, the run record and outputs.
        frames: frames per stream; 0 as the scenario says.
        interventions: what a user does meanwhile, and which processes die.
        save_outputs: keep every output as ``.npy`` under ``out/outputs``.
        bag: directory for a recording of all topics; none when None.
        view: shows the run while it lasts; none when None.

    Raises:
        ProcessFailedError: a process ended early.
        RunError: no frame came through for too long.
    """
    expected = expected_frames(scenario, frames)
    environment = isolated_environment()
    specs: list[ProcessSpec | VerbSpec] = [*fleet_processes(scenario, frames=frames, sinks=1)]
    if view is not None:
        specs.insert(0, view)
    if bag is not None:
        specs.insert(0, recorder_process(bag.absolute(), ''))
    # Imported late: the other verbs work without ROS.
    from lapdtr_ros.nodes.session import observe

    with ProcessGroup(specs, out / 'logs', environment) as group:
        os.environ.update(environment)
        return observe(scenario, out, expected, group, interventions, save_outputs)


def isolated_environment() -> dict[str, str]:
    """Environment that keeps a run on this machine and apart from a fleet that is on the air.

    What the user has set wins.
    """
    defaults = {
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'ROS_DOMAIN_ID': str(1 + os.getpid() % 100),
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}

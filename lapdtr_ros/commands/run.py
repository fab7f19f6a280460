"""``lapdtr run``: a scenario in real processes on this machine, over DDS."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from tqdm import tqdm

from lapdtr_ros.bringup import ProcessGroup, fleet_processes
from lapdtr_ros.datasets.pictures import PictureSequence
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.evaluation.report import write_report
from lapdtr_ros.evaluation.run_record import RunRecord
from lapdtr_ros.evaluation.summary import write_summary
from lapdtr_ros.evaluation.tables import print_summary
from lapdtr_ros.execution.frames import FrameOutcome
from lapdtr_ros.models.registry import model_spec
from lapdtr_ros.scenario import Scenario, ScenarioError, load_scenario

if TYPE_CHECKING:
    from rclpy.executors import SingleThreadedExecutor

    from lapdtr_ros.nodes.sink import SinkNode

START_TIMEOUT_S = 60.0


class RunError(LapdtrError):
    """A run that did not come to its end."""


@dataclass(frozen=True)
class Intervention:
    """What a user does while frames flow.

    Attributes:
        after: number of frames after which it happens.
        node: node whose parameters are set, e.g. ``planner``.
        parameters: the parameters.
    """

    after: int
    node: str
    parameters: Mapping[str, Any]


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
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb."""
    scenario = load_scenario(options.scenario)
    record = run_scenario(scenario, options.out, frames=options.frames)
    write_summary(record, options.out / 'summary.json')
    write_report(record, options.out / 'report.html', [])
    print_summary(record, Console())
    print(f'report: {options.out / "report.html"}')
    return 0 if all(frame.outcome == 'finished' for frame in record.frames) else 1


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
    interventions: Sequence[Intervention] = (),
    save_outputs: bool = False,
) -> RunRecord:
    """Run all streams of a scenario to their end.

    Args:
        scenario: what to run.
        out: directory for logs, the run record and outputs.
        frames: frames per stream; 0 as the scenario says.
        interventions: what a user does meanwhile.
        save_outputs: keep every output as ``.npy`` under ``out/outputs``.

    Raises:
        ProcessFailedError: a process ended early.
        RunError: no frame came through for too long.
    """
    expected = expected_frames(scenario, frames)
    environment = isolated_environment()
    specs = fleet_processes(scenario, frames=frames, sinks=1)
    with ProcessGroup(specs, out / 'logs', environment) as group, _ros(environment):
        return _listen(scenario, out, expected, group, interventions, save_outputs)


def isolated_environment() -> dict[str, str]:
    """Environment that keeps a run on this machine and apart from a fleet that is on the air.

    What the user has set wins.
    """
    defaults = {
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'ROS_DOMAIN_ID': str(1 + os.getpid() % 100),
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


@contextmanager
def _ros(environment: Mapping[str, str]) -> Iterator[None]:
    import rclpy

    os.environ.update(environment)
    rclpy.init()
    try:
        yield
    finally:
        rclpy.try_shutdown()


def _listen(
    scenario: Scenario,
    out: Path,
    expected: Mapping[str, int],
    group: ProcessGroup,
    interventions: Sequence[Intervention],
    save_outputs: bool,
) -> RunRecord:
    from rclpy.executors import SingleThreadedExecutor

    from lapdtr_ros.nodes.operator import Operator
    from lapdtr_ros.nodes.sink import SinkNode

    total = sum(expected.values())
    seen: Counter[str] = Counter()
    waiting = sorted(interventions, key=lambda change: change.after)
    overrides = {'scenario': str(scenario.path), 'output': str(out), 'save_outputs': save_outputs}
    with tqdm(total=total, unit='frame', desc='frames', smoothing=0.1, disable=None) as progress:

        def on_outcome(outcome: FrameOutcome) -> None:
            seen[outcome.stream] += 1
            progress.update()
            while waiting and sum(seen.values()) >= waiting[0].after:
                change = waiting.pop(0)
                operator.set_parameters_of(change.node, change.parameters)

        sink = SinkNode(on_outcome, overrides)
        operator = Operator()
        for change in interventions:
            operator.connect(change.node)
        executor = SingleThreadedExecutor()
        executor.add_node(sink)
        executor.add_node(operator)
        if not sink.start():
            raise RunError('the sink could not start; see the messages above')
        _spin_to_the_end(executor, sink, seen, total, group, _patience(scenario))
    record = sink.record()
    sink.trigger_deactivate()
    return record


def _patience(scenario: Scenario) -> float:
    """Longest time without a frame before a run is given up."""
    return START_TIMEOUT_S + scenario.file.execution.frame_timeout_s


def _spin_to_the_end(
    executor: SingleThreadedExecutor,
    sink: SinkNode,
    seen: Counter[str],
    total: int,
    group: ProcessGroup,
    patience_s: float,
) -> None:
    last_count, last_change = 0, time.monotonic()
    while (count := sum(seen.values())) < total or not sink.settled:
        executor.spin_once(timeout_sec=0.1)
        now = time.monotonic()
        if count != last_count:
            last_count, last_change = count, now
        elif now - last_change > patience_s:
            raise RunError(
                f'no frame for {patience_s:.0f} s after {count} of {total}; the logs of the '
                f'processes and /diagnostics say why'
            )
        group.check()

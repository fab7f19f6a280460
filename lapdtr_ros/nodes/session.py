"""One run as its user sees it: a sink that records, and a hand on the parameters."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import rclpy
from rclpy.executors import SingleThreadedExecutor
from tqdm import tqdm

from lapdtr_ros.bringup import Intervention, Outage, ProcessGroup, RunError
from lapdtr_ros.evaluation.run_record import RunRecord
from lapdtr_ros.execution.frames import FrameOutcome
from lapdtr_ros.scenario import Scenario

from .operator import Operator
from .sink import SinkNode

_START_TIMEOUT_S = 60.0


def observe(
    scenario: Scenario,
    out: Path,
    expected: Mapping[str, int],
    group: ProcessGroup,
    interventions: Sequence[Intervention | Outage] = (),
    save_outputs: bool = False,
) -> RunRecord:
    """Record a run of a fleet that is starting, until every frame is accounted for.

    Args:
        scenario: what is being run.
        out: directory for the run record and outputs.
        expected: frames per stream.
        group: the processes of the fleet.
        interventions: what the user does meanwhile, and which processes die.
        save_outputs: keep every output as ``.npy`` under ``out/outputs``.

    Raises:
        ProcessFailedError: a process ended early.
        RunError: no frame came through for too long.
    """
    rclpy.init()
    try:
        return _record(scenario, out, sum(expected.values()), group, interventions, save_outputs)
    finally:
        rclpy.try_shutdown()


def _record(
    scenario: Scenario,
    out: Path,
    total: int,
    group: ProcessGroup,
    interventions: Sequence[Intervention | Outage],
    save_outputs: bool,
) -> RunRecord:
    seen: Counter[str] = Counter()
    waiting = sorted(interventions, key=lambda change: change.after)
    returns: list[tuple[float, str]] = []
    overrides = {'scenario': str(scenario.path), 'output': str(out), 'save_outputs': save_outputs}
    with tqdm(total=total, unit='frame', desc='frames', smoothing=0.1, disable=None) as progress:

        def on_outcome(outcome: FrameOutcome) -> None:
            seen[outcome.stream] += 1
            progress.update()

        def intervene() -> None:
            while waiting and sum(seen.values()) >= waiting[0].after:
                begin(waiting.pop(0))
            while returns and time.monotonic() >= returns[0][0]:
                group.restart(returns.pop(0)[1])

        def begin(change: Intervention | Outage) -> None:
            if isinstance(change, Intervention):
                operator.set_parameters_of(change.node, change.parameters)
            else:
                group.kill(change.process)
                returns.append((time.monotonic() + change.back_s, change.process))

        sink = SinkNode(on_outcome, overrides)
        operator = Operator()
        for change in interventions:
            if isinstance(change, Intervention):
                operator.connect(change.node)
        executor = SingleThreadedExecutor()
        executor.add_node(sink)
        executor.add_node(operator)
        if not sink.start():
            raise RunError('the sink could not start; see the messages above')
        patience_s = _START_TIMEOUT_S + scenario.file.execution.frame_timeout_s
        _spin_to_the_end(executor, sink, seen, total, group, patience_s, intervene)
    record = sink.record()
    sink.trigger_deactivate()
    return record


def _spin_to_the_end(
    executor: SingleThreadedExecutor,
    sink: SinkNode,
    seen: Counter[str],
    total: int,
    group: ProcessGroup,
    patience_s: float,
    intervene: Callable[[], None],
) -> None:
    last_count, last_change = 0, time.monotonic()
    while (count := sum(seen.values())) < total or not sink.settled:
        # Frames come in another thread, so this one sees the next of them a little late.
        executor.spin_once(timeout_sec=0.05)
        now = time.monotonic()
        if count != last_count:
            last_count, last_change = count, now
        elif now - last_change > patience_s:
            raise RunError(
                f'no frame for {patience_s:.0f} s after {count} of {total}; the logs of the '
                f'processes and /diagnostics say why'
            )
        group.check()
        intervene()

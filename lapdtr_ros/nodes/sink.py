"""The sink node: receives results and writes down the whole run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.parameter import Parameter

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.evaluation.live import write_detections
from lapdtr_ros.evaluation.run_builder import RunBuilder
from lapdtr_ros.evaluation.run_record import RunRecord, write_record
from lapdtr_ros.execution.frames import FINISHED, FrameOutcome
from lapdtr_ros.execution.source import check_result
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.msg import (
    Detections,
    DeviceTelemetry,
    FrameResult,
    FrameTrace,
    PartitionPlan,
)
from lapdtr_ros.perception.cooperation import FusedFrame
from lapdtr_ros.scenario import load_scenario

from .base import MOST_BYTES, OK, Diagnosis, ManagedNode, declare, parameter, run_node
from .inlet import Inlet, Input

# How long fused detections may take after their deadline, on a busy machine.
FUSION_PATIENCE_S = 5.0


@dataclass(frozen=True)
class SinkParameters:
    """Parameters of the sink node."""

    output: str = parameter('', 'Directory for the run record and outputs; empty: write nothing')
    save_outputs: bool = parameter(False, 'Also write every output as .npy')


class SinkNode(ManagedNode):
    """Collects results, traces, plans and telemetry of all streams into a run record.

    Of a scenario with fusion it also keeps the fused detections, in ``detections.json``.

    Args:
        on_outcome: called with every frame that is finished, lost or refused, in the thread that
            receives them.
        overrides: parameter values, for use inside another program.

    Parameters:
        See `SinkParameters` and `CommonParameters`.

    Subscriptions:
        <fleet>/<stream>/result (FrameResult): of every stream.
        <fleet>/frame_traces (FrameTrace), <fleet>/plan (PartitionPlan)
        <fleet>/<device>/telemetry (DeviceTelemetry): of every device.
        <fleet>/detections (Detections): when the scenario has a fusion.
    """

    def __init__(
        self,
        on_outcome: Callable[[FrameOutcome], None] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            'sink',
            parameter_overrides=[Parameter(k, value=v) for k, v in (overrides or {}).items()],
        )
        self.parameters = declare(self, SinkParameters)
        self._on_outcome = on_outcome
        self._received: set[tuple[str, int]] = set()
        self._finished: set[tuple[str, int]] = set()
        self._builder: RunBuilder | None = None
        # Frames come in a thread of their own; what both threads touch is used under this lock.
        self._lock = threading.Lock()
        self._inlet: Inlet | None = None
        # By the stamp of their pictures.
        self._fused: dict[int, FusedFrame] = {}
        self._moments: set[int] = set()
        self._last_outcome_s = 0.0

    def configure(self) -> None:
        """Read the scenario and make the output directory."""
        scenario = load_scenario(self.common.scenario)
        self._streams = tuple(scenario.file.streams)
        self._devices = tuple(scenario.fleet.devices)
        self._profile = profile_model(scenario.file.model.name)
        self._builder = RunBuilder(scenario, self._profile)
        self._fusion = scenario.file.fusion
        self._outputs: Path | None = None
        if self.parameters.output:
            self._outputs = Path(self.parameters.output) / 'outputs'
            self._outputs.parent.mkdir(parents=True, exist_ok=True)

    def activate(self) -> None:
        """Listen to everything."""
        fleet = self.common.fleet
        self.listen(PartitionPlan, topics.plan(fleet), self._on_plan, qos.plan(qos.PLANS_WAITING))
        traces = Input(
            FrameTrace, topics.frame_traces(fleet), self._on_trace, qos.traces(), MOST_BYTES
        )
        results = [
            Input(
                FrameResult,
                topics.result(fleet, stream),
                partial(self._on_result, stream),
                qos.frames(),
                MOST_BYTES,
            )
            for stream in self._streams
        ]
        self._inlet = Inlet(self.get_namespace(), 'frames', [traces, *results], self.refuse)
        for name in self._devices:
            topic = topics.telemetry(fleet, name)
            self.listen(DeviceTelemetry, topic, self._on_telemetry, qos.telemetry())
        if self._fusion is not None:
            topic = topics.detections(fleet)
            self.listen(Detections, topic, self._on_detections, qos.detections())

    def deactivate(self) -> None:
        """Stop listening to frames and write the run record."""
        if self._inlet is not None:
            self._inlet.close()
        self._inlet = None
        if not self.parameters.output:
            return
        output = Path(self.parameters.output)
        write_record(self.record(), output / 'run.json')
        if self._fusion is not None:
            write_detections(self._fused.values(), output / 'detections.json')

    @property
    def settled(self) -> bool:
        """Whether all has come in that belongs to the frames that are known to be finished."""
        with self._lock:
            return self._finished <= self._received and self._fusion_settled()

    def _fusion_settled(self) -> bool:
        """The fusion gives up on a moment at its deadline, and so does who waits for it."""
        if self._fusion is None or self._moments <= self._fused.keys():
            return True
        waited_s = time.monotonic() - self._last_outcome_s
        return waited_s > self._fusion.deadline_s + FUSION_PATIENCE_S

    def record(self) -> RunRecord:
        """What was heard so far."""
        assert self._builder is not None
        with self._lock:
            return self._builder.build()

    def diagnose(self) -> list[Diagnosis]:
        """How many results came in."""
        return [Diagnosis('results', OK, f'{len(self._received)} results')]

    def _on_plan(self, msg: PartitionPlan) -> None:
        assert self._builder is not None
        try:
            self._builder.add_plan(conversions.fleet_plan_from_msg(msg), time.monotonic())
        except LapdtrError as error:
            self.get_logger().warning(str(error))

    def _on_trace(self, msg: FrameTrace, _: dict[str, Any]) -> None:
        assert self._builder is not None
        outcome = conversions.outcome_from_msg(msg)
        with self._lock:
            self._builder.add_outcome(outcome, time.monotonic())
            if outcome.outcome == FINISHED:
                self._finished.add((outcome.stream, outcome.seq))
                self._moments.add(outcome.stamp_ns)
                self._last_outcome_s = time.monotonic()
        if self._on_outcome is not None:
            self._on_outcome(outcome)

    def _on_result(self, stream: str, msg: FrameResult, _: dict[str, Any]) -> None:
        assert self._builder is not None
        result = conversions.result_from_msg(msg)
        check_result(result, stream, self._profile)
        with self._lock:
            if (msg.stream, msg.seq) in self._received:
                self._builder.add_duplicate(result, time.monotonic())
                return
            self._received.add((msg.stream, msg.seq))
        if self._outputs is None or not self.parameters.save_outputs:
            return
        folder = self._outputs / result.stream
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f'{result.seq:06d}.npy', result.packet.to_array())

    def _on_detections(self, msg: Detections) -> None:
        try:
            frame = conversions.detections_from_msg(msg)
        except LapdtrError as error:
            self.get_logger().warning(str(error))
            return
        with self._lock:
            self._fused[frame.stamp_ns] = frame

    def _on_telemetry(self, msg: DeviceTelemetry) -> None:
        assert self._builder is not None
        self._builder.add_telemetry(
            time.monotonic(),
            msg.device,
            msg.soc,
            msg.energy_j,
            msg.load,
            msg.queue,
            msg.unit_time_ratio,
            msg.energy_source == DeviceTelemetry.MEASURED,
        )


def main(args: list[str] | None = None) -> int:
    """Entry point of ``ros2 run lapdtr_ros sink``."""
    return run_node(SinkNode, args)


if __name__ == '__main__':
    sys.exit(main())

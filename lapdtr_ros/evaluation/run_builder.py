"""Turns what a sink hears, message by message, into a `RunRecord`."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import time
from collections.abc import Iterator
from datetime import datetime, timezone

from lapdtr_ros.execution.frames import FINISHED, FrameOutcome, Result
from lapdtr_ros.planning.cost import InfeasiblePlanError, PlanCost, evaluate, violations
from lapdtr_ros.planning.fleet import Device
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision
from lapdtr_ros.planning.profile import ModelProfile
from lapdtr_ros.scenario import Scenario

from .run_record import (
    EMULATED,
    BaselineRecord,
    DeviceRecord,
    FrameRecord,
    HostRecord,
    PlanRecord,
    RunRecord,
    StageRecord,
    StageSpan,
    StreamPlanRecord,
    TelemetryRecord,
)


class RunBuilder:
    """Collects a run; times are taken on this host's steady clock.

    Args:
        scenario: what is being run.
        profile: profile of the scenario's model.
    """

    def __init__(self, scenario: Scenario, profile: ModelProfile) -> None:
        self._scenario = scenario
        self._profile = profile
        self._began_s = time.monotonic()
        self._began_ns = time.time_ns()
        self._plans: dict[int, PlanRecord] = {}
        self._frames: list[FrameRecord] = []
        self._telemetry: list[TelemetryRecord] = []

    def add_plan(self, plan: FleetPlan, now: float) -> None:
        """A fleet plan was heard."""
        self._plans[plan.epoch] = PlanRecord(
            epoch=plan.epoch,
            time_s=now - self._began_s,
            reason=plan.reason,
            solver=plan.solver,
            streams=tuple(_stream_record(decision) for decision in plan.streams.values()),
        )

    def add_outcome(self, outcome: FrameOutcome, now: float) -> None:
        """A frame was finished or lost."""
        self._frames.append(
            FrameRecord(
                stream=outcome.stream,
                seq=outcome.seq,
                epoch=outcome.epoch,
                sent_s=now - outcome.latency_s - self._began_s,
                latency_s=outcome.latency_s,
                outcome=outcome.outcome,
                picture_bytes=outcome.picture_bytes,
                stages=tuple(
                    StageRecord(
                        device=stage.device,
                        start=stage.start,
                        stop=stage.stop,
                        queue_s=stage.queue_s,
                        compute_s=stage.compute_s,
                        received_bytes=stage.received_bytes,
                        sent_bytes=stage.sent_bytes,
                        energy_j=stage.energy_j,
                        start_s=(stage.started_ns - self._began_ns) * 1e-9,
                    )
                    for stage in outcome.trace
                ),
            )
        )

    def add_duplicate(self, result: Result, now: float) -> None:
        """A result came a second time."""
        self._frames.append(
            FrameRecord(
                stream=result.stream,
                seq=result.seq,
                epoch=result.epoch,
                sent_s=now - self._began_s,
                latency_s=0.0,
                outcome=FINISHED,
                picture_bytes=0,
            )
        )

    def add_telemetry(
        self, now: float, device: str, soc: float, energy_j: float, load: float, queue: int
    ) -> None:
        """A device reported its state."""
        self._telemetry.append(
            TelemetryRecord(now - self._began_s, device, soc, energy_j, load, queue)
        )

    def build(self) -> RunRecord:
        """The record of what was heard so far, frames in the order they were sent."""
        file = self._scenario.file
        started = datetime.fromtimestamp(self._began_ns * 1e-9, tz=timezone.utc)
        return RunRecord(
            name=file.name,
            scenario=file.name,
            started_at=started.isoformat(timespec='seconds'),
            model=file.model.name,
            weights=file.model.weights,
            host=HostRecord(_processor(), os.cpu_count() or 1, file.execution.threads),
            devices=tuple(_device_record(d) for d in self._scenario.fleet.devices.values()),
            plans=tuple(self._plans[epoch] for epoch in sorted(self._plans)),
            frames=tuple(sorted(self._frames, key=lambda frame: frame.sent_s)),
            telemetry=tuple(self._telemetry),
            baselines=self._baselines(),
            unit_flops=tuple(unit.flops for unit in self._profile.units),
        )

    def _baselines(self) -> tuple[BaselineRecord, ...]:
        """The whole model on one device, for the first stream, without limits on time and energy.

        The best device of all is listed too when memory or the rule on pictures forbids it: that
        is what the constraint costs.
        """
        name, section = next(iter(self._scenario.file.streams.items()))
        requirements = dataclasses.replace(
            self._scenario.requirements,
            max_latency_s=math.inf,
            max_period_s=math.inf,
            max_energy_j=math.inf,
        )
        fleet = self._scenario.fleet
        costs: dict[str, PlanCost] = {}
        allowed: dict[str, PlanCost] = {}
        for device in fleet.devices:
            stage = Stage(device, 0, len(self._profile))
            sink = self._scenario.sink(name)
            plan = Plan(name, self._profile.model, section.source, sink, (stage,))
            try:
                costs[device] = evaluate(plan, self._profile, fleet, requirements)
            except InfeasiblePlanError:
                continue
            if not violations(plan, costs[device], fleet, requirements):
                allowed[device] = costs[device]
        return tuple(_baseline_records(section.source, costs, allowed))


def _baseline_records(
    source: str, costs: dict[str, PlanCost], allowed: dict[str, PlanCost]
) -> Iterator[BaselineRecord]:
    best = min(allowed, key=lambda device: allowed[device].energy_j, default=None)
    if source in costs:
        note = 'source, best allowed' if best == source else 'source'
        yield _baseline(f'{source} alone ({note})', costs[source])
    if best is not None and best != source:
        yield _baseline(f'{best} alone (best allowed)', allowed[best])
    cheapest = min(costs, key=lambda device: costs[device].energy_j, default=None)
    if cheapest is not None and cheapest not in allowed:
        yield _baseline(f'{cheapest} alone (not allowed here)', costs[cheapest])


def _baseline(name: str, cost: PlanCost) -> BaselineRecord:
    return BaselineRecord(name, cost.energy_j, cost.latency_s, EMULATED)


def _stream_record(decision: StreamDecision) -> StreamPlanRecord:
    plan = decision.plan
    return StreamPlanRecord(
        stream=plan.stream,
        source=plan.source,
        sink=plan.sink,
        stages=tuple(StageSpan(s.device, s.start, s.stop) for s in plan.stages),
        energy_j=decision.energy_j,
        latency_s=decision.latency_s,
        period_s=decision.period_s,
        picture=plan.picture,
    )


def _device_record(device: Device) -> DeviceRecord:
    mains = math.isinf(device.battery_j)
    return DeviceRecord(
        name=device.name,
        device_class=device.device_class,
        kind='roadside' if mains else 'vehicle',
        battery_j=None if mains else device.battery_j,
        memory_bytes=device.memory_bytes,
    )


def _processor() -> str:
    """Model name of the processor where the kernel tells it, else its architecture."""
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as lines:
            for line in lines:
                if line.startswith('model name'):
                    return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.machine()

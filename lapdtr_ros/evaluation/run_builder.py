"""Turns what a sink hears, message by message, into a `RunRecord`."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from lapdtr_ros.energy.ends import Journey, ends_energy
from lapdtr_ros.execution.frames import FINISHED, FrameOutcome, Result
from lapdtr_ros.planning.cost import InfeasiblePlanError, evaluate, violations
from lapdtr_ros.planning.fleet import Device
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision
from lapdtr_ros.planning.profile import ModelProfile
from lapdtr_ros.scenario import Scenario

from .run_record import (
    EMULATED,
    MEASURED,
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
        self._metered: dict[str, bool] = {}
        self._scale = scenario.file.execution.device_seconds
        self._telemetry: list[TelemetryRecord] = []

    def add_plan(self, plan: FleetPlan, now: float) -> None:
        """A fleet plan was heard."""
        self._plans[plan.epoch] = PlanRecord(
            epoch=plan.epoch,
            time_s=self._since_start(now),
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
                sent_s=self._since_start(now - outcome.latency_s),
                latency_s=outcome.latency_s * self._scale,
                outcome=outcome.outcome,
                picture_bytes=outcome.picture_bytes,
                stages=tuple(
                    StageRecord(
                        device=stage.device,
                        start=stage.start,
                        stop=stage.stop,
                        queue_s=stage.queue_s * self._scale,
                        compute_s=stage.compute_s * self._scale,
                        received_bytes=stage.received_bytes,
                        sent_bytes=stage.sent_bytes,
                        energy_j=stage.energy_j,
                        start_s=(stage.started_ns - self._began_ns) * 1e-9 * self._scale,
                    )
                    for stage in outcome.trace
                ),
                ends_j=self._ends_j(outcome),
            )
        )

    def add_duplicate(self, result: Result, now: float) -> None:
        """A result came a second time."""
        self._frames.append(
            FrameRecord(
                stream=result.stream,
                seq=result.seq,
                epoch=result.epoch,
                sent_s=self._since_start(now),
                latency_s=0.0,
                outcome=FINISHED,
                picture_bytes=0,
            )
        )

    def add_telemetry(
        self,
        now: float,
        device: str,
        soc: float,
        energy_j: float,
        load: float,
        queue: int,
        time_ratio: float = math.nan,
        measured: bool = False,
    ) -> None:
        """A device reported its state; ``measured`` says that its energy came from a meter."""
        self._metered[device] = measured
        time_s = self._since_start(now)
        self._telemetry.append(
            TelemetryRecord(time_s, device, soc, energy_j, load, queue, time_ratio)
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
            time_level=EMULATED if file.execution.emulate else MEASURED,
            energy_level=self._energy_level(),
            time_scale=self._scale,
        )

    def _energy_level(self) -> str:
        """Measured only if every device has a meter; a sum is as good as its worst part."""
        metered = self._metered.values()
        return MEASURED if metered and all(metered) else EMULATED

    def _since_start(self, now: float) -> float:
        """Seconds of the fleet since the start of the run."""
        return (now - self._began_s) * self._scale

    def _ends_j(self, outcome: FrameOutcome) -> float:
        """Modelled energy of source and sink beside the stages."""
        if not outcome.trace:
            return 0.0
        journey = Journey(
            source=self._scenario.stream(outcome.stream).source,
            sink=self._scenario.sink(outcome.stream),
            devices=tuple(stage.device for stage in outcome.trace),
            picture_bytes=outcome.picture_bytes,
            result_bytes=outcome.trace[-1].sent_bytes,
        )
        spent = ends_energy(journey, self._scenario.fleet, self._profile)
        return sum(part.total_j for part in spent.values())

    def _baselines(self) -> tuple[BaselineRecord, ...]:
        """The whole model without partitioning, mean per frame over all streams.

        Every stream on its own source, and all streams on one device: the best one that may, and
        the best one of all when memory or the rule on pictures forbids it: that is what the
        constraint costs. Limits on time and energy do not count here.
        """
        streams = self._scenario.file.streams
        sources = {name: section.source for name, section in streams.items()}
        own = self._unsplit(sources)
        single = {
            device: cost
            for device in self._scenario.fleet.devices
            if (cost := self._unsplit(dict.fromkeys(streams, device))) is not None
        }
        return tuple(_baseline_records(tuple(dict.fromkeys(sources.values())), own, single))

    def _unsplit(self, device_of: Mapping[str, str]) -> _Unsplit | None:
        """The whole model of every stream on a device; None where no link leads there."""
        requirements = dataclasses.replace(
            self._scenario.requirements,
            max_latency_s=math.inf,
            max_period_s=math.inf,
            max_energy_j=math.inf,
        )
        fleet = self._scenario.fleet
        costs, allowed = [], True
        for name, device in device_of.items():
            source, sink = self._scenario.stream(name).source, self._scenario.sink(name)
            stage = Stage(device, 0, len(self._profile))
            plan = Plan(name, self._profile.model, source, sink, (stage,))
            try:
                cost = evaluate(plan, self._profile, fleet, requirements)
            except InfeasiblePlanError:
                return None
            costs.append(cost)
            allowed &= not violations(plan, cost, fleet, requirements)
        energy_j = sum(cost.energy_j for cost in costs) / len(costs)
        latency_s = sum(cost.latency_s for cost in costs) / len(costs)
        return _Unsplit(energy_j, latency_s, allowed)


@dataclass(frozen=True)
class _Unsplit:
    """Cost per frame of the whole model on one device, and whether that is allowed."""

    energy_j: float
    latency_s: float
    allowed: bool

    def record(self, name: str) -> BaselineRecord:
        return BaselineRecord(name, self.energy_j, self.latency_s, EMULATED)


def _baseline_records(
    sources: Sequence[str], own: _Unsplit | None, single: Mapping[str, _Unsplit]
) -> Iterator[BaselineRecord]:
    allowed = {device: cost for device, cost in single.items() if cost.allowed}
    best = min(allowed, key=lambda device: allowed[device].energy_j, default=None)
    if len(sources) > 1 and own is not None:
        yield own.record('each source alone')
    elif own is not None:
        note = 'source, best allowed' if best == sources[0] else 'source'
        yield own.record(f'{sources[0]} alone ({note})')
    if best is not None and (best,) != tuple(sources):
        yield allowed[best].record(f'{best} alone (best allowed)')
    cheapest = min(single, key=lambda device: single[device].energy_j, default=None)
    if cheapest is not None and cheapest not in allowed:
        yield single[cheapest].record(f'{cheapest} alone (not allowed here)')


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

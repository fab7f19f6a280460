"""How long a fleet lives on its batteries: a simulation around the planner's own decisions.

Devices are batteries here: they lose idle power, and per frame what the cost model says. What they
report goes through the same `FleetMonitor` and `Redistributor` that the planner node runs, so plans
change when and as they would on the road. Everything this module gives is *simulated*.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from lapdtr_ros.energy.battery import Battery
from lapdtr_ros.planning.fleet import Fleet
from lapdtr_ros.planning.monitor import FIRST, Cause, FleetMonitor, Reading, Triggers
from lapdtr_ros.planning.plan import Plan
from lapdtr_ros.planning.redistribution import Redistributor, Task
from lapdtr_ros.planning.streams import StreamCost, evaluate_streams


@dataclass(frozen=True)
class Command:
    """What the fleet is to do until the next report.

    Attributes:
        plans: plan per stream that runs.
        rate: share of the wanted frame rate, 0 to 1.
        moving_j: joules of a change that was just made, of all devices together.
    """

    plans: Mapping[str, Plan]
    rate: float = 1.0
    moving_j: float = 0.0


class Strategy(Protocol):
    """Decides what runs, from what the devices report."""

    def command(self, soc: Mapping[str, float], now: float) -> Command:
        """What to do from ``now`` (seconds) on, with the state of charge of every device."""


class Fixed:
    """The same plans for ever.

    Args:
        plans: plan per stream.
    """

    def __init__(self, plans: Mapping[str, Plan]) -> None:
        self._plans = plans

    def command(self, soc: Mapping[str, float], now: float) -> Command:
        """See `Strategy.command`."""
        return Command(self._plans)


class Replanned:
    """The planner's own rules.

    Args:
        fleet: the fleet as described.
        task: what is planned for, with its objective.
        step_s: time between reports; triggers that wait for silence wait for longer.
    """

    def __init__(self, fleet: Fleet, task: Task, step_s: float) -> None:
        self._monitor = FleetMonitor(fleet, Triggers(silence_s=4.0 * step_s))
        self._redistributor = Redistributor(self._monitor, task)
        self._started = False

    def command(self, soc: Mapping[str, float], now: float) -> Command:
        """See `Strategy.command`."""
        for name, share in soc.items():
            self._monitor.hear(Reading(name, soc=share), now)
        self._monitor.tick(now)
        if not self._started:
            self._monitor.tell(Cause(FIRST, '', 'first plan', urgent=True))
            self._started = True
        decision = self._redistributor.decide(now)
        moving_j = decision.moving.joules if decision is not None and decision.changed else 0.0
        running = self._redistributor.running
        plans = {name: stream.plan for name, stream in running.items()}
        return Command(plans, self._redistributor.service.rate, moving_j)


@dataclass(frozen=True)
class Endurance:
    """How a fleet lived.

    Attributes:
        alive_s: time until the first battery was empty; the horizon if none was.
        first_empty: that device; empty if none.
        frames: frames delivered.
        missed: frames that were wanted and not delivered.
        violations: frames delivered although their plan breaks a limit.
        frame_j: joules per frame above idle, of all devices.
        total_j: joules per frame with the idle power of the devices on batteries.
        plans: different plans in a row.
        soc: state of charge at the end.
    """

    alive_s: float
    first_empty: str
    frames: float
    missed: float
    violations: float
    frame_j: float
    total_j: float
    plans: int
    soc: Mapping[str, float]


class _Books:
    """Sums of a run."""

    def __init__(self) -> None:
        self.frames = self.missed = self.violations = self.frame_j = self.battery_j = 0.0
        self.plans = 0


def simulate(
    fleet: Fleet, task: Task, strategy: Strategy, *, step_s: float = 5.0, horizon_s: float = 1e6
) -> Endurance:
    """Run a fleet until its first battery is empty.

    Args:
        fleet: devices with their batteries, links.
        task: model, streams and limits.
        strategy: who decides.
        step_s: time between reports, simulated seconds.
        horizon_s: longest run.

    Raises:
        ValueError: a stream without a frame rate; energy over time needs one.
    """
    for name, request in task.requests.items():
        if request.rate_hz <= 0.0:
            raise ValueError(f'stream {name}: rate_hz = {request.rate_hz}; give a frame rate')
    batteries = {n: Battery(d.battery_j, d.soc) for n, d in fleet.devices.items()}
    books = _Books()
    now, last_plans = 0.0, None
    running: Mapping[str, StreamCost] = {}
    while now < horizon_s:
        command = strategy.command({n: b.soc for n, b in batteries.items()}, now)
        if command.plans != last_plans:
            running = _run(fleet, task, command.plans)
            books.plans += 1
            last_plans = command.plans
            _charge_move(command, batteries)
        watts = _watts(fleet, task, running, command.rate)
        lasting = {n: _seconds_left(b, watts[n]) for n, b in batteries.items()}
        first = min(lasting, key=lambda n: lasting[n])
        span = min(step_s, lasting[first], horizon_s - now)
        _book(books, task, running, command.rate, span)
        for name, battery in batteries.items():
            battery.drain(watts[name] * span)
            if math.isfinite(battery.capacity_j):
                books.battery_j += fleet.devices[name].idle_w * span
        now += span
        if lasting[first] <= span:
            return _result(now, first, books, batteries)
    return _result(now, '', books, batteries)


def _run(fleet: Fleet, task: Task, plans: Mapping[str, Plan]) -> Mapping[str, StreamCost]:
    requests = {name: task.requests[name] for name in plans}
    return evaluate_streams(task.profile, fleet, task.requirements, requests, plans)


def _charge_move(command: Command, batteries: Mapping[str, Battery]) -> None:
    """Take the price of a change from every device of the new plans: never too little."""
    devices = {stage.device for plan in command.plans.values() for stage in plan.stages}
    for name in devices:
        batteries[name].drain(command.moving_j)


def _served_hz(task: Task, stream: str, running: StreamCost, rate: float) -> float:
    """Frames per second that come out: as many as wanted, or as the busiest part lets through."""
    return min(rate * task.requests[stream].rate_hz, 1.0 / running.cost.period_s)


def _watts(
    fleet: Fleet, task: Task, streams: Mapping[str, StreamCost], rate: float
) -> dict[str, float]:
    watts = {name: device.idle_w for name, device in fleet.devices.items()}
    for stream, running in streams.items():
        served = _served_hz(task, stream, running, rate)
        for name, share in running.cost.devices.items():
            watts[name] += served * share.energy_j
    return watts


def _seconds_left(battery: Battery, watts: float) -> float:
    return battery.remaining_j / watts if watts > 0.0 else math.inf


def _book(
    books: _Books, task: Task, streams: Mapping[str, StreamCost], rate: float, span: float
) -> None:
    for stream, request in task.requests.items():
        running = streams.get(stream)
        served = _served_hz(task, stream, running, rate) * span if running is not None else 0.0
        books.frames += served
        books.missed += request.rate_hz * span - served
        if running is not None:
            books.frame_j += served * running.cost.energy_j
            books.violations += served if running.broken else 0.0


def _result(
    now: float, first_empty: str, books: _Books, batteries: Mapping[str, Battery]
) -> Endurance:
    frames = max(books.frames, 1.0)
    return Endurance(
        alive_s=now,
        first_empty=first_empty,
        frames=books.frames,
        missed=books.missed,
        violations=books.violations,
        frame_j=books.frame_j / frames,
        total_j=(books.frame_j + books.battery_j) / frames,
        plans=books.plans,
        soc={name: battery.soc for name, battery in batteries.items()},
    )


def as_task(task: Task, objective: str) -> Task:
    """The same task with another objective."""
    return dataclasses.replace(task, objective=objective)

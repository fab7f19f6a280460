"""Plans that keep the first battery from running empty for as long as possible.

A fleet lives until ``min_i R_i / P_i``, with the joules R_i that battery i still has and the power
P_i = idle + frame rate * joules per frame that a plan draws from it. To maximise it, batteries get
weights w_i that sum to 1, and the solver minimises ``sum_i w_i P_i / R_i``: a joule of device i
costs w_i / R_i. The weights then move towards the batteries that ran down fastest (multiplicative
weights; with plans that may be mixed this reaches the optimum). Single plans between the mixed ones
are found by changing the best plan in one place at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lapdtr_ros.errors import LapdtrError

from .cost import PlanCost
from .fleet import Device, Fleet, Requirements, Weights
from .plan import LOSSLESS, Plan, Stage
from .profile import ModelProfile
from .streams import StreamCost, StreamRequest, evaluate_streams, plan_streams

# Mains joules cost next to nothing, but of two plans the one with less of them is better.
_MAINS_WEIGHT = 1e-4
_SAME = 1e-9

# Times the solver is called.
_ROUNDS, _ROUNDS_IN_A_HURRY = 12, 2

_Stages = tuple[Stage, ...]


@dataclass(frozen=True)
class LifetimePlan:
    """The plan under which the first battery lasts longest.

    Attributes:
        plans: plan per stream.
        lifetime_s: time until the first battery is empty, seconds; infinite on mains.
        weights: weight of every battery, a good start for the next call.
    """

    plans: Mapping[str, Plan]
    lifetime_s: float
    weights: Mapping[str, float]


def device_lifetimes(
    fleet: Fleet, requests: Mapping[str, StreamRequest], costs: Mapping[str, PlanCost]
) -> dict[str, float]:
    """Seconds until each device's battery is empty; infinite on mains.

    Streams without a fixed rate run as fast as their plan allows.
    """
    power = {name: device.idle_w for name, device in fleet.devices.items()}
    for stream, cost in costs.items():
        rate_hz = requests[stream].rate_hz or 1.0 / cost.period_s
        for name, share in cost.devices.items():
            power[name] += rate_hz * share.energy_j
    return {
        name: _remaining_j(device) / power[name] if power[name] > 0.0 else math.inf
        for name, device in fleet.devices.items()
    }


def fleet_lifetime(
    fleet: Fleet, requests: Mapping[str, StreamRequest], costs: Mapping[str, PlanCost]
) -> float:
    """Seconds until the first battery is empty; see `device_lifetimes`."""
    return min(device_lifetimes(fleet, requests, costs).values(), default=math.inf)


def plan_for_lifetime(
    profile: ModelProfile,
    fleet: Fleet,
    requirements: Requirements,
    requests: Mapping[str, StreamRequest],
    *,
    model_weights: str,
    solver: str = 'exact',
    start: Mapping[str, float] | None = None,
    hurry: bool = False,
) -> LifetimePlan:
    """Plans for all streams that let the first battery last as long as possible.

    The limits of ``requirements`` hold, its weights and battery price do not matter.

    Args:
        profile: the model.
        fleet: devices and links.
        requirements: limits.
        requests: what each stream needs.
        model_weights: weights identifier of the model.
        solver: solver for given prices, see `solvers.solve`.
        start: battery weights to start from, e.g. `LifetimePlan.weights` of the last call.
        hurry: take a good plan at once instead of the best one found.

    Raises:
        InfeasiblePlanError: a stream has no plan.
    """
    thrifty = dataclasses.replace(requirements, weights=Weights(energy=1.0), battery_weight=0.0)
    judge = _Judge(profile, fleet, thrifty, requests)
    batteries = [name for name, d in fleet.devices.items() if math.isfinite(d.battery_j)]
    weights = {name: (start or {}).get(name, 1.0) for name in batteries}
    rounds = _ROUNDS_IN_A_HURRY if hurry else _ROUNDS
    for number in range(rounds if batteries else 1):
        total = sum(weights.values())
        weights = {name: weight / total for name, weight in weights.items()}
        priced = _priced(fleet, weights)
        decisions = plan_streams(
            profile, priced, thrifty, requests, weights=model_weights, solver=solver
        )
        lives = judge.see({name: decision.plan for name, decision in decisions.items()})
        shortest = min(lives.values(), default=math.inf)
        for name in batteries:
            weights[name] *= math.exp(shortest / lives[name] * 2.0 / math.sqrt(number + 1.0))
    if not hurry:
        judge.polish()
    return LifetimePlan(judge.plans, judge.lifetime_s, weights)


class _Judge:
    """Remembers the best plans seen: the longest life, then the least energy."""

    def __init__(
        self,
        profile: ModelProfile,
        fleet: Fleet,
        requirements: Requirements,
        requests: Mapping[str, StreamRequest],
    ) -> None:
        self._inputs = (profile, fleet, requirements, requests)
        self.plans: Mapping[str, Plan] = {}
        self.lifetime_s = -math.inf
        self._energy_j = math.inf

    def see(self, plans: Mapping[str, Plan]) -> dict[str, float]:
        """Evaluate plans that meet the limits; seconds until each battery is empty."""
        costs = evaluate_streams(*self._inputs, plans)
        return self._compare(plans, costs)

    def polish(self) -> None:
        """Change plans in one place at a time for as long as that helps."""
        best = -math.inf
        while self.lifetime_s > best * (1.0 + _SAME) and math.isfinite(self.lifetime_s):
            best = self.lifetime_s
            for stream, plan in dict(self.plans).items():
                for neighbour in _neighbours(plan, self._inputs[1].devices):
                    plans = {**self.plans, stream: neighbour}
                    try:
                        costs = evaluate_streams(*self._inputs, plans)
                    except LapdtrError:
                        continue  # a link is missing, or this cut has no such packing
                    if not any(cost.broken for cost in costs.values()):
                        self._compare(plans, costs)

    def _compare(
        self, plans: Mapping[str, Plan], costs: Mapping[str, StreamCost]
    ) -> dict[str, float]:
        _, fleet, _, requests = self._inputs
        plain = {name: cost.cost for name, cost in costs.items()}
        lives = device_lifetimes(fleet, requests, plain)
        life = min(lives.values(), default=math.inf)
        energy_j = sum(cost.energy_j for cost in plain.values())
        longer = life > self.lifetime_s * (1.0 + _SAME)
        as_long = life >= self.lifetime_s * (1.0 - _SAME)
        if longer or (as_long and energy_j < self._energy_j):
            self.plans, self.lifetime_s, self._energy_j = dict(plans), life, energy_j
        return lives


def _neighbours(plan: Plan, devices: Iterable[str]) -> Iterator[Plan]:
    """Plans that differ in one place: a cut, a device, one stage more or one stage less."""
    for stages in _moved_cuts(plan.stages):
        yield dataclasses.replace(plan, stages=stages)
    used = {stage.device for stage in plan.stages}
    for name in devices:
        if name not in used:
            for stages in _with_device(plan.stages, name):
                yield dataclasses.replace(plan, stages=stages)


def _moved_cuts(stages: _Stages) -> Iterator[_Stages]:
    """One cut elsewhere between its neighbours; at their ends a stage disappears."""
    for place in range(len(stages) - 1):
        before, after = stages[place], stages[place + 1]
        for cut in range(before.start, after.stop + 1):
            if cut != before.stop:
                sent = after.cut if cut == after.stop else before.cut
                pair = (
                    dataclasses.replace(before, stop=cut, cut=sent),
                    dataclasses.replace(after, start=cut),
                )
                kept = tuple(stage for stage in pair if len(stage))
                yield *stages[:place], *kept, *stages[place + 2 :]


def _with_device(stages: _Stages, name: str) -> Iterator[_Stages]:
    """A device instead of another, or with a part of another's units."""
    for place, stage in enumerate(stages):
        yield *stages[:place], dataclasses.replace(stage, device=name), *stages[place + 1 :]
        for cut in range(stage.start + 1, stage.stop):
            first = dataclasses.replace(stage, stop=cut, cut=LOSSLESS)
            second = dataclasses.replace(stage, start=cut)
            for pair in (
                (first, dataclasses.replace(second, device=name)),
                (dataclasses.replace(first, device=name), second),
            ):
                yield *stages[:place], *pair, *stages[place + 1 :]


def _priced(fleet: Fleet, weights: Mapping[str, float]) -> Fleet:
    """The fleet with w_i / R_i as price of a joule, scaled so that the dearest costs 1."""
    prices = {
        name: weight / max(_remaining_j(fleet.devices[name]), 1.0)
        for name, weight in weights.items()
    }
    dearest = max(prices.values(), default=1.0)
    devices = {
        name: dataclasses.replace(
            device, joule_price=max(prices.get(name, 0.0) / dearest, _MAINS_WEIGHT)
        )
        for name, device in fleet.devices.items()
    }
    return Fleet(devices, fleet.links)


def _remaining_j(device: Device) -> float:
    return device.battery_j * device.soc

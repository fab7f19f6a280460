"""Plans for several streams that share devices and links.

Streams are planned one after another, the one with the highest frame rate first; each takes its
share of the devices' time and memory and of the links' rate from what the next ones see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from lapdtr_ros.errors import LapdtrError

from .cost import InfeasiblePlanError, PlanCost, evaluate, reference, score, violations
from .fleet import Device, Fleet, Link, Requirements
from .plan import LOSSLESS, Plan, StreamDecision
from .profile import ModelProfile
from .solvers import solve

_MOST_LOAD = 0.99


@dataclass(frozen=True)
class StreamRequest:
    """What a stream needs a plan for.

    Attributes:
        source: device whose camera takes the pictures.
        sink: device that needs the results.
        rate_hz: frames per second; 0 when frames come as fast as they are taken, which reserves
            nothing.
    """

    source: str
    sink: str
    rate_hz: float = 0.0


def plan_streams(
    profile: ModelProfile,
    fleet: Fleet,
    requirements: Requirements,
    requests: Mapping[str, StreamRequest],
    *,
    weights: str,
    solver: str = 'exact',
) -> dict[str, StreamDecision]:
    """A decision per stream, in the order of ``requests``.

    Raises:
        InfeasiblePlanError: a stream has no plan on what the others left.
        UnknownNameError: an unknown solver or device.
    """
    decisions: dict[str, StreamDecision] = {}
    left = fleet
    for name in _order(requests):
        request = requests[name]
        try:
            solution = solve(
                profile,
                left,
                requirements,
                stream=name,
                source=request.source,
                sink=request.sink,
                solver=solver,
            )
        except InfeasiblePlanError as error:
            raise InfeasiblePlanError(_with_context(name, decisions, error)) from None
        cost = solution.cost
        decisions[name] = StreamDecision(
            solution.plan,
            weights,
            cost.energy_j,
            cost.latency_s,
            cost.period_s,
            calibration=calibration_of(profile, solution.plan),
            accuracy=cost.accuracy,
        )
        left = _residual(left, solution.cost, request.rate_hz)
    return {name: decisions[name] for name in requests}


def calibration_of(profile: ModelProfile, plan: Plan) -> str:
    """The calibration file that ``plan`` needs; empty for a plan without loss."""
    table = profile.accuracy
    plain = all(stage.level == 0 and stage.cut == LOSSLESS for stage in plan.stages)
    return '' if plain or table is None else table.calibration


@dataclass(frozen=True)
class StreamCost:
    """What a given plan costs a stream beside the others.

    Attributes:
        cost: cost on what the others left.
        score: `cost.score` of that.
        broken: constraints that the plan breaks; empty when it may run.
    """

    cost: PlanCost
    score: float
    broken: tuple[str, ...]


def evaluate_streams(
    profile: ModelProfile,
    fleet: Fleet,
    requirements: Requirements,
    requests: Mapping[str, StreamRequest],
    plans: Mapping[str, Plan],
) -> dict[str, StreamCost]:
    """Cost of given plans, with the same sharing of devices as in `plan_streams`.

    Raises:
        InfeasiblePlanError: a plan needs a link that the fleet lacks.
        UnknownNameError: a plan names a device that the fleet lacks.
    """
    costs: dict[str, StreamCost] = {}
    left = fleet
    for name in _order(requests):
        cost = evaluate(plans[name], profile, left, requirements)
        yardstick = reference(profile, left, requirements, requests[name].source)
        costs[name] = StreamCost(
            cost,
            score(cost, requirements, yardstick),
            violations(plans[name], cost, left, requirements),
        )
        left = _residual(left, cost, requests[name].rate_hz)
    return costs


def _order(requests: Mapping[str, StreamRequest]) -> list[str]:
    """Streams in the order in which they take their share."""
    return sorted(requests, key=lambda name: (-requests[name].rate_hz, name))


def _with_context(name: str, planned: Mapping[str, StreamDecision], error: LapdtrError) -> str:
    after = f' after {", ".join(planned)}' if planned else ''
    return f'stream {name}{after}: {error}'


def _residual(fleet: Fleet, cost: PlanCost, rate_hz: float) -> Fleet:
    """The fleet without what a stream takes from it."""
    devices = dict(fleet.devices)
    for name, share in cost.devices.items():
        devices[name] = _less_device(devices[name], share.busy_s * rate_hz, share.memory_bytes)
    links = dict(fleet.links)
    for hop in cost.hops:
        ends = (hop.source, hop.target)
        links[ends] = _less_link(links[ends], hop.bytes * rate_hz)
    return Fleet(devices, links)


def _less_device(device: Device, busy_share: float, memory_bytes: float) -> Device:
    # `busy_share` was counted on what others had left, so it is a share of the rest.
    load = device.load + busy_share * (1.0 - device.load)
    return dataclasses.replace(
        device,
        load=min(load, _MOST_LOAD),
        memory_bytes=max(0.0, device.memory_bytes - memory_bytes),
    )


def _less_link(link: Link, bytes_per_s: float) -> Link:
    least = link.bytes_per_s * (1.0 - _MOST_LOAD)
    return dataclasses.replace(link, bytes_per_s=max(link.bytes_per_s - bytes_per_s, least))

"""Plans for several streams that share devices and links.

Streams are planned one after another, the one with the highest frame rate first; each takes its
share of the devices' time and memory and of the links' rate from what the next ones see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from lapdtr_ros.errors import LapdtrError

from .cost import InfeasiblePlanError
from .fleet import Device, Fleet, Link, Requirements
from .plan import StreamDecision
from .profile import ModelProfile
from .solvers import Solution, solve

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
    for name in sorted(requests, key=lambda n: (-requests[n].rate_hz, n)):
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
            solution.plan, weights, cost.energy_j, cost.latency_s, cost.period_s
        )
        left = _residual(left, solution, request.rate_hz)
    return {name: decisions[name] for name in requests}


def _with_context(name: str, planned: Mapping[str, StreamDecision], error: LapdtrError) -> str:
    after = f' after {", ".join(planned)}' if planned else ''
    return f'stream {name}{after}: {error}'


def _residual(fleet: Fleet, solution: Solution, rate_hz: float) -> Fleet:
    """The fleet without what a stream takes from it."""
    cost = solution.cost
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

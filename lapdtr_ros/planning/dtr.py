"""The paper's rule for redistribution (§4.1 DTR), as printed and as it can be meant.

* `LITERAL`: min sum_i (C_i / L_i + lambda / E_i) over the devices that get work. C_i / L_i falls
  as a device is loaded more, so this piles everything on one slow device.
* `CORRECTED`: min sum_i (L_i / C_i) (1 + lambda / soc_i): relative load, dearer on an empty
  battery.

C_i is the effective rate of a device, L_i the FLOPs it gets, E_i the energy left in its battery.
The literal form is made dimensionless: C_i by the fastest device, L_i by the whole model, E_i by
the fullest battery (mains count as that). Neither form looks at the cost of links or at limits;
plans only keep to links that exist and to weights that fit. These are baselines to measure against,
see `redistribution.OBJECTIVES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

from .cost import MIN_PRICED_SOC, InfeasiblePlanError
from .fleet import Device, Fleet, Requirements
from .plan import Plan, Stage
from .profile import ModelProfile
from .streams import StreamRequest

CORRECTED, LITERAL = 'corrected', 'literal'

_Chain = tuple[float, tuple[Stage, ...]]
_NO_CHAIN: _Chain = (math.inf, ())


def dtr_plans(
    profile: ModelProfile,
    fleet: Fleet,
    requirements: Requirements,
    requests: Mapping[str, StreamRequest],
    *,
    rule: str,
    weight: float,
) -> dict[str, Plan]:
    """The plan of every stream by the paper's rule, each as if it were alone.

    Args:
        profile: the model.
        fleet: devices and links.
        requirements: only ``pictures_stay`` is looked at.
        requests: what each stream needs.
        rule: `CORRECTED` or `LITERAL`.
        weight: lambda.

    Raises:
        InfeasiblePlanError: no chain of linked devices has room for the model.
    """
    return {
        name: _plan(profile, fleet, requirements, name, request, rule, weight)
        for name, request in requests.items()
    }


def _plan(
    profile: ModelProfile,
    fleet: Fleet,
    requirements: Requirements,
    stream: str,
    request: StreamRequest,
    rule: str,
    weight: float,
) -> Plan:
    """Exact by dynamic programming: both rules are sums over stages."""
    units = len(profile)
    weight_bytes = profile.prefix_parameter_bytes()
    price = _literal_price if rule == LITERAL else _corrected_price
    prices = {name: price(profile, fleet, device, weight) for name, device in fleet.devices.items()}

    def linked(source: str, target: str) -> bool:
        return source == target or (source, target) in fleet.links

    @cache
    def rest(start: int, last: str, used: frozenset[str]) -> _Chain:
        if start == units:
            return (0.0, ()) if linked(last, request.sink) else _NO_CHAIN
        best = _NO_CHAIN
        for name, device in fleet.devices.items():
            elsewhere = start == 0 and requirements.pictures_stay and name != request.source
            if name in used or elsewhere or not linked(last, name):
                continue
            for stop in range(start + 1, units + 1):
                if weight_bytes[stop] - weight_bytes[start] > device.memory_bytes:
                    break
                cost, stages = rest(stop, name, used | {name})
                cost += prices[name][start][stop]
                if cost < best[0]:
                    best = cost, (Stage(name, start, stop), *stages)
        return best

    cost, stages = rest(0, request.source, frozenset())
    if math.isinf(cost):
        raise InfeasiblePlanError(
            f'stream {stream}: no chain of linked devices from {request.source} to {request.sink} '
            f'has room for {profile.model}: add memory or links'
        )
    return Plan(stream, profile.model, request.source, request.sink, stages)


_Prices = list[list[float]]


def _corrected_price(profile: ModelProfile, fleet: Fleet, device: Device, weight: float) -> _Prices:
    """(L / C) (1 + lambda / soc) of units ``start`` to ``stop - 1``, by start and stop."""
    mains = math.isinf(device.battery_j)
    factor = 1.0 + (0.0 if mains else weight / max(device.soc, MIN_PRICED_SOC))
    times = device.unit_times(profile)
    return [
        [factor * sum(times[start:stop]) for stop in range(len(profile) + 1)]
        for start in range(len(profile))
    ]


def _literal_price(profile: ModelProfile, fleet: Fleet, device: Device, weight: float) -> _Prices:
    """C / L + lambda / E of units ``start`` to ``stop - 1``, by start and stop."""
    fastest = max(other.flops_per_s for other in fleet.devices.values())
    energies = [d.battery_j * d.soc for d in fleet.devices.values() if math.isfinite(d.battery_j)]
    fullest = max(energies, default=1.0)
    own = device.battery_j * device.soc
    left = 1.0 if math.isinf(own) or fullest == 0.0 else max(own / fullest, MIN_PRICED_SOC)
    flops = [unit.flops for unit in profile.units]

    def price(start: int, stop: int) -> float:
        share = sum(flops[start:stop]) / profile.flops
        return math.inf if share == 0.0 else device.flops_per_s / fastest / share + weight / left

    return [
        [price(start, stop) for stop in range(len(profile) + 1)] for start in range(len(profile))
    ]

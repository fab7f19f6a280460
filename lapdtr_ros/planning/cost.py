"""What a plan costs: the one cost model that every solver, node and report shares (paper §4.1).

The model looks at one frame (energy, latency) and at the steady state (period). Two places hold
everything that depends on *how* units run and *what* crosses a cut: `stage_seconds` and
`hop_bytes`. A stage that runs narrower or a cut that is compressed changes only those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lapdtr_ros.errors import LapdtrError, UnknownNameError

from .fleet import Device, Fleet, Link, Requirements
from .plan import JPEG, Plan
from .profile import ModelProfile

# Relative slack when a cost is compared with a limit: sums of floats differ in the last digits.
LIMIT_TOLERANCE = 1e-9

# Below this state of charge the battery price rises no further, so that it stays finite.
MIN_PRICED_SOC = 0.01


class InfeasiblePlanError(LapdtrError):
    """No plan (or not this plan) satisfies the constraints; the text says which one binds."""


@dataclass(frozen=True)
class DeviceCost:
    """What one device spends on a frame.

    Attributes:
        busy_s: seconds of computing and picture coding per frame.
        energy_j: joules of computing, sending and receiving per frame.
        memory_bytes: bytes of the weights that the device holds.
        utilisation: `busy_s` / period of the plan, 0 to 1.
    """

    busy_s: float
    energy_j: float
    memory_bytes: int
    utilisation: float


@dataclass(frozen=True)
class HopCost:
    """One transfer between two devices.

    Attributes:
        source: sending device.
        target: receiving device.
        cut: cut whose data travels; 0 is the picture, the number of units the result.
        bytes: bytes on the link.
        seconds: transfer time including the link's delay.
        tx_j: joules of the sender's radio.
        rx_j: joules of the receiver's radio.
    """

    source: str
    target: str
    cut: int
    bytes: int
    seconds: float
    tx_j: float
    rx_j: float


@dataclass(frozen=True)
class PlanCost:
    """Cost of a plan for one frame.

    Attributes:
        energy_j: joules per frame of all devices, `compute_j` + `radio_j`.
        compute_j: joules of computing and picture coding above idle.
        radio_j: joules of sending and receiving.
        latency_s: seconds from the picture to the result at the sink.
        period_s: seconds that the busiest device or link needs per frame.
        priced_energy: `energy_j` with every device's share times its battery price; joules
            when all prices are 1.
        devices: share of each device that takes part.
        hops: transfers in the order a frame travels.
    """

    energy_j: float
    compute_j: float
    radio_j: float
    latency_s: float
    period_s: float
    priced_energy: float
    devices: Mapping[str, DeviceCost]
    hops: tuple[HopCost, ...]


@dataclass(frozen=True)
class Reference:
    """What one unit of energy (J), latency (s) and period (s) means in the score."""

    energy_j: float
    latency_s: float
    period_s: float


def battery_price(device: Device, battery_weight: float) -> float:
    """Price of a joule, 1 + lambda * (1 / soc - 1); 1 on mains.

    The corrected form of the paper's E_i in §4.1: an empty battery is dear, a full one costs
    what it gives. States of charge under `MIN_PRICED_SOC` count as that value.
    """
    if math.isinf(device.battery_j):
        return 1.0
    return 1.0 + battery_weight * (1.0 / max(device.soc, MIN_PRICED_SOC) - 1.0)


def marginal_watts(device: Device) -> float:
    """Power that computing adds. Devices of a vehicle stay on, so idle power is not the plan's."""
    return device.active_w - device.idle_w


def stage_seconds(device: Device, profile: ModelProfile, start: int, stop: int) -> float:
    """Seconds of units ``start`` to ``stop - 1`` on ``device``, with its overhead per stage."""
    return device.overhead_s + sum(device.unit_times(profile)[start:stop])


def codec_seconds(device: Device, profile: ModelProfile) -> float:
    """Seconds to code or decode one picture as JPEG."""
    return profile.picture_bytes / device.codec_bytes_per_s


def hop_bytes(plan: Plan, profile: ModelProfile, cut: int, requirements: Requirements) -> int:
    """Bytes that cross ``cut`` under ``plan``.

    Raises:
        InfeasiblePlanError: the plan sends a JPEG picture, which `requirements` do not allow.
    """
    if cut == 0 and plan.picture == JPEG:
        if requirements.jpeg_bytes is None:
            raise InfeasiblePlanError(
                f'plan of {plan.stream} sends the picture as JPEG, but jpeg_bytes is not set: '
                f'set it or send the picture raw'
            )
        return requirements.jpeg_bytes
    return profile.cut_bytes(cut)


def evaluate(
    plan: Plan, profile: ModelProfile, fleet: Fleet, requirements: Requirements
) -> PlanCost:
    """Cost of ``plan``, whether or not it meets limits and memory (see `violations`).

    * A stage takes its device's overhead plus the times of its units; picture coding adds to the
      source and to the first stage's device.
    * Energy of computing is (active - idle power) * busy seconds: the *marginal* energy, because
      a vehicle's devices stay on. Radios cost joules per byte at both ends.
    * A hop takes the link's delay + bytes / rate. A link that carries two hops of a frame (picture
      and result) is busy for both.
    * The period is the largest busy time of any device or link.

    Raises:
        InfeasiblePlanError: a link that the plan needs is missing, the plan covers another
            number of units than the model, or JPEG is not allowed.
        UnknownNameError: the plan names a device that the fleet lacks.
    """
    _check_names(plan, profile, fleet)
    busy: dict[str, float] = {}
    memory: dict[str, int] = {}
    for stage in plan.stages:
        device = fleet.devices[stage.device]
        busy[stage.device] = stage_seconds(device, profile, stage.start, stage.stop)
        memory[stage.device] = sum(
            unit.parameter_bytes for unit in profile.units[stage.start : stage.stop]
        )
    first = plan.stages[0].device
    if first != plan.source and plan.picture == JPEG:
        for name in (plan.source, first):
            busy[name] = busy.get(name, 0.0) + codec_seconds(fleet.devices[name], profile)

    hops = tuple(
        _hop(fleet, source, target, cut, hop_bytes(plan, profile, cut, requirements))
        for source, target, cut in _hop_ends(plan)
    )
    energy = {name: marginal_watts(fleet.devices[name]) * s for name, s in busy.items()}
    compute_j = sum(energy.values())
    link_busy: dict[tuple[str, str], float] = {}
    for hop in hops:
        energy[hop.source] = energy.get(hop.source, 0.0) + hop.tx_j
        energy[hop.target] = energy.get(hop.target, 0.0) + hop.rx_j
        ends = hop.source, hop.target
        link_busy[ends] = link_busy.get(ends, 0.0) + hop.bytes / fleet.links[ends].bytes_per_s

    period_s = max(*busy.values(), *link_busy.values(), 0.0)
    radio_j = sum(hop.tx_j + hop.rx_j for hop in hops)
    return PlanCost(
        energy_j=compute_j + radio_j,
        compute_j=compute_j,
        radio_j=radio_j,
        latency_s=sum(busy.values()) + sum(hop.seconds for hop in hops),
        period_s=period_s,
        priced_energy=sum(
            joules * battery_price(fleet.devices[name], requirements.battery_weight)
            for name, joules in energy.items()
        ),
        devices={
            name: DeviceCost(
                busy_s=busy.get(name, 0.0),
                energy_j=energy[name],
                memory_bytes=memory.get(name, 0),
                utilisation=busy.get(name, 0.0) / period_s if period_s > 0.0 else 0.0,
            )
            for name in energy
        },
        hops=hops,
    )


def reference(
    profile: ModelProfile, fleet: Fleet, requirements: Requirements, source: str
) -> Reference:
    """The yardstick of `score`, the same for every solver.

    A limit that is set is the yardstick of its quantity. Otherwise it is the cost of the whole
    model on the source device, computed without limits, memory or the way to the sink; where
    that is 0, it is 1.
    """
    device = fleet.devices[source]
    seconds = stage_seconds(device, profile, 0, len(profile))
    priced = seconds * marginal_watts(device) * battery_price(device, requirements.battery_weight)

    def pick(limit: float, local: float) -> float:
        if math.isfinite(limit):
            return limit
        return local if local > 0.0 else 1.0

    return Reference(
        energy_j=pick(requirements.max_energy_j, priced),
        latency_s=pick(requirements.max_latency_s, seconds),
        period_s=pick(requirements.max_period_s, seconds),
    )


def score(cost: PlanCost, requirements: Requirements, reference: Reference) -> float:
    """Weighted, normalised objective; less is better.

    w_E * priced energy / E_ref + w_L * latency / L_ref + w_P * period / P_ref (Algorithm 1's
    weights, corrected form). One weight alone minimises exactly its quantity.
    """
    weights = requirements.weights
    return (
        weights.energy * cost.priced_energy / reference.energy_j
        + weights.latency * cost.latency_s / reference.latency_s
        + weights.period * cost.period_s / reference.period_s
    )


def within(value: float, limit: float) -> bool:
    """Whether ``value`` meets ``limit`` up to rounding."""
    return value <= limit * (1.0 + LIMIT_TOLERANCE)


def violations(
    plan: Plan, cost: PlanCost, fleet: Fleet, requirements: Requirements
) -> tuple[str, ...]:
    """Every constraint that ``plan`` breaks, as text; empty for a plan that may run."""
    broken = [
        f'{name} = {limit:.4g} {unit}, the plan needs {value:.4g} {unit}'
        for name, value, limit, unit in (
            ('max_latency_s', cost.latency_s, requirements.max_latency_s, 's'),
            ('max_period_s', cost.period_s, requirements.max_period_s, 's'),
            ('max_energy_j', cost.energy_j, requirements.max_energy_j, 'J'),
        )
        if not within(value, limit)
    ]
    for stage in plan.stages:
        needed = cost.devices[stage.device].memory_bytes
        offered = fleet.devices[stage.device].memory_bytes
        if needed > offered:
            broken.append(
                f'memory_bytes of {stage.device} = {offered / 1e6:.1f} MB, '
                f'the plan needs {needed / 1e6:.1f} MB'
            )
    if requirements.pictures_stay and plan.stages[0].device != plan.source:
        broken.append(
            f'pictures_stay, the plan sends the picture from {plan.source} '
            f'to {plan.stages[0].device}'
        )
    return tuple(broken)


def _check_names(plan: Plan, profile: ModelProfile, fleet: Fleet) -> None:
    for name in (plan.source, plan.sink, *(stage.device for stage in plan.stages)):
        if name not in fleet.devices:
            raise UnknownNameError('device', name, fleet.devices)
    if plan.units != len(profile):
        raise InfeasiblePlanError(
            f'plan of {plan.stream} covers {plan.units} units, {profile.model} has {len(profile)}'
        )


def _hop_ends(plan: Plan) -> list[tuple[str, str, int]]:
    """(sender, receiver, cut) of each transfer of a frame, in order."""
    ends = []
    last = plan.source
    for stage in plan.stages:
        if stage.device != last:
            ends.append((last, stage.device, stage.start))
        last = stage.device
    if last != plan.sink:
        ends.append((last, plan.sink, plan.units))
    return ends


def _hop(fleet: Fleet, source: str, target: str, cut: int, size: int) -> HopCost:
    link = _link(fleet, source, target)
    return HopCost(
        source=source,
        target=target,
        cut=cut,
        bytes=size,
        seconds=link.latency_s + size / link.bytes_per_s,
        tx_j=size * link.tx_j_per_byte,
        rx_j=size * link.rx_j_per_byte,
    )


def _link(fleet: Fleet, source: str, target: str) -> Link:
    try:
        return fleet.links[source, target]
    except KeyError:
        raise InfeasiblePlanError(
            f'no link from {source} to {target}: add one to the fleet'
        ) from None

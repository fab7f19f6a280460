"""What a plan costs: the one cost model that every solver, node and report shares (paper §4.1).

The model looks at one frame (energy, latency) and at the steady state (period). What a level or a
packed cut changes comes from `effects`; `stage_seconds`, `stage_memory`, `packing_seconds` and
`hop_bytes` turn it into seconds and bytes on a device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from lapdtr_ros.errors import LapdtrError, UnknownNameError

from .effects import (
    GRID,
    Held,
    predict,
    require_table,
    sends_jpeg,
    stage_effects,
    time_factors,
    total_error,
)
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
        busy_s: seconds of computing, picture coding and packing per frame.
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
        compute_j: joules of computing, picture coding and packing above idle.
        radio_j: joules of sending and receiving.
        latency_s: seconds from the picture to the result at the sink.
        period_s: seconds that the busiest device or link needs per frame.
        priced_energy: `energy_j` with every device's share times its battery price; joules
            when all prices are 1.
        error: sum of the single errors of picture, levels and cuts; 0 when nothing is lost.
        accuracy: predicted accuracy, 0 to 1; NaN for a model without an accuracy table.
        accuracy_margin: 90 % error of that; 0 when nothing is lost.
        accuracy_lost: accuracy of the undisturbed model less `accuracy`; 0 without a table.
        devices: share of each device that takes part.
        hops: transfers in the order a frame travels.
    """

    energy_j: float
    compute_j: float
    radio_j: float
    latency_s: float
    period_s: float
    priced_energy: float
    error: float
    accuracy: float
    accuracy_margin: float
    accuracy_lost: float
    devices: Mapping[str, DeviceCost]
    hops: tuple[HopCost, ...]


@dataclass(frozen=True)
class Reference:
    """What one unit of energy (J), latency (s) and period (s) means in the score."""

    energy_j: float
    latency_s: float
    period_s: float


def battery_price(device: Device, battery_weight: float) -> float:
    """Price of a joule: 1 + lambda * (1 / soc - 1), or 1 on mains, times `Device.joule_price`.

    The corrected form of the paper's E_i in §4.1: an empty battery is dear, a full one costs
    what it gives. States of charge under `MIN_PRICED_SOC` count as that value.
    """
    if math.isinf(device.battery_j):
        return device.joule_price
    return device.joule_price * (
        1.0 + battery_weight * (1.0 / max(device.soc, MIN_PRICED_SOC) - 1.0)
    )


def marginal_watts(device: Device) -> float:
    """Power that computing adds while the plan has its turn.

    Devices of a vehicle stay on, so idle power is not the plan's. Nor is the share of the device
    that other work takes: it makes seconds longer, see `Device.unit_times`, but those joules are
    spent on the other work.
    """
    return (device.active_w - device.idle_w) * (1.0 - device.load)


def stage_seconds(
    device: Device,
    profile: ModelProfile,
    start: int,
    stop: int,
    level: int = 0,
    received: Held = GRID,
) -> float:
    """Seconds of units ``start`` to ``stop - 1`` on ``device``, with its overhead per stage.

    Args:
        device: who runs them.
        profile: the model.
        start: first unit.
        stop: one past the last unit.
        level: elastic level of the units.
        received: tokens that unit ``start`` gets.
    """
    times = device.unit_times(profile)[start:stop]
    if level or received != GRID:
        factors = time_factors(profile, level, received, start)
        times = tuple(t * factor for t, factor in zip(times, factors, strict=False))
    return device.overhead_s + sum(times)


def stage_memory(profile: ModelProfile, start: int, stop: int, level: int = 0) -> int:
    """Bytes of weights that units ``start`` to ``stop - 1`` need at an elastic level."""
    sizes = [unit.parameter_bytes for unit in profile.units[start:stop]]
    if not level:
        return sum(sizes)
    shares = require_table(profile).level(level).parameter_bytes[start:stop]
    return round(sum(size * share for size, share in zip(sizes, shares, strict=True)))


def packing_seconds(device: Device, profile: ModelProfile, seconds: float) -> float:
    """Time on ``device`` of packing that takes ``seconds`` on the accuracy table's machine."""
    if seconds == 0.0:
        return 0.0
    rate = device.flops_per_s * (1.0 - device.load) / device.time_factor
    return seconds * require_table(profile).flops_per_s / rate


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
    for stage, effect in zip(plan.stages, stage_effects(plan, profile), strict=True):
        if stage.stop == cut:
            return effect.sent.bytes
    return profile.cut_bytes(cut)


def evaluate(
    plan: Plan, profile: ModelProfile, fleet: Fleet, requirements: Requirements
) -> PlanCost:
    """Cost of ``plan``, whether or not it meets limits and memory (see `violations`).

    * A stage takes its device's overhead plus the times of its units at its level and on the
      tokens it got; picture coding adds to the source and to the first stage's device, packing to
      both ends of a cut.
    * Energy of computing is (active - idle power) * busy seconds: the *marginal* energy, because
      a vehicle's devices stay on. Radios cost joules per byte at both ends.
    * A hop takes the link's delay + bytes / rate. A link that carries two hops of a frame (picture
      and result) is busy for both.
    * The period is the largest busy time of any device or link.

    Raises:
        InfeasiblePlanError: a link that the plan needs is missing, the plan covers another
            number of units than the model, or JPEG is not allowed.
        UnknownNameError: the plan names a device that the fleet lacks.
        AccuracyTableError: the plan uses a level or cut setting that was not calibrated.
    """
    _check_names(plan, profile, fleet)
    busy = _busy_seconds(plan, profile, fleet)
    memory = {
        stage.device: stage_memory(profile, stage.start, stage.stop, stage.level)
        for stage in plan.stages
    }

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
    prediction = predict(plan, profile, requirements)
    table = profile.accuracy
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
        error=total_error(plan, profile, requirements),
        accuracy=prediction.accuracy,
        accuracy_margin=prediction.margin,
        accuracy_lost=0.0 if table is None else table.accuracy - prediction.accuracy,
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


def _busy_seconds(plan: Plan, profile: ModelProfile, fleet: Fleet) -> dict[str, float]:
    """Seconds that a frame keeps each device busy."""
    busy: dict[str, float] = {}
    unpack_s = 0.0
    for stage, effect in zip(plan.stages, stage_effects(plan, profile), strict=True):
        device = fleet.devices[stage.device]
        busy[stage.device] = stage_seconds(
            device, profile, stage.start, stage.stop, stage.level, effect.received
        ) + packing_seconds(device, profile, unpack_s + effect.sent.pack_s)
        unpack_s = effect.sent.unpack_s
    if sends_jpeg(plan):
        for name in (plan.source, plan.stages[0].device):
            busy[name] = busy.get(name, 0.0) + codec_seconds(fleet.devices[name], profile)
    return busy


def reference(
    profile: ModelProfile, fleet: Fleet, requirements: Requirements, source: str
) -> Reference:
    """The yardstick of `score`, the same for every solver.

    A limit that is set is the yardstick of its quantity. Otherwise it is the cost of the whole
    model on the source device, computed without limits, memory or the way to the sink; where
    that is 0, it is 1. A `Device.joule_price` does not change it: a dear source must count as
    dear, not as what all others are measured by.
    """
    device = dataclasses.replace(fleet.devices[source], joule_price=1.0)
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

    w_E * priced energy / E_ref + w_L * latency / L_ref + w_P * period / P_ref + w_A * accuracy
    lost (Algorithm 1's weights, corrected form). One weight alone minimises exactly its quantity.
    """
    weights = requirements.weights
    return (
        weights.energy * cost.priced_energy / reference.energy_j
        + weights.latency * cost.latency_s / reference.latency_s
        + weights.period * cost.period_s / reference.period_s
        + weights.accuracy * cost.accuracy_lost
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
    broken += _accuracy_violations(cost, requirements)
    if requirements.pictures_stay and plan.stages[0].device != plan.source:
        broken.append(
            f'pictures_stay, the plan sends the picture from {plan.source} '
            f'to {plan.stages[0].device}'
        )
    return tuple(broken)


def _accuracy_violations(cost: PlanCost, requirements: Requirements) -> list[str]:
    """Loss of accuracy that the requirements do not allow."""
    wanted = requirements.min_accuracy
    if not requirements.lossy and cost.error > 0.0:
        return [
            f'nothing may be lost, the plan loses {cost.accuracy_lost:.4g} of accuracy: set '
            f'min_accuracy or an accuracy weight'
        ]
    if wanted is None:
        return []
    left = cost.accuracy - cost.accuracy_margin
    # `not` also catches the NaN of a model without a table.
    if not within(wanted, left):
        return [f'min_accuracy = {wanted:.4g}, the plan is predicted to keep {left:.4g}']
    return []


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

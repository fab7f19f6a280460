"""The fleet that a plan is made for: devices, links and what is asked of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .profile import MATMUL, ModelProfile


@dataclass(frozen=True)
class Device:
    """One computing device of a vehicle or a roadside unit.

    Attributes:
        name: unique in the fleet; a valid ROS name.
        device_class: name of the hardware class, key of `ModelProfile.measured_s`.
        flops_per_s: effective rate for matrix products, FLOP/s.
        conv_factor: share of that rate reached by `CONV` units.
        overhead_s: fixed time per stage and frame (launch, runtime), seconds.
        codec_bytes_per_s: raw picture bytes coded to or from JPEG per second.
        memory_bytes: memory that weights may use.
        idle_w: power when idle, watts.
        active_w: power while computing, watts.
        battery_j: energy of the full battery in joules; infinite on mains.
        soc: state of charge, remaining / full, 0 to 1.
        reserve_soc: E_min of the paper: below it the device wants to give work away.
        load: share of the device already taken by other work, 0 to < 1.
        time_factor: measured / expected compute time; 1 when the device runs as its class says.
        joule_price: what a joule of this device counts beside those of other devices, before the
            battery price; dearer where the planner wants to spare a battery.
    """

    name: str
    device_class: str
    flops_per_s: float
    memory_bytes: float
    idle_w: float
    active_w: float
    conv_factor: float = 0.25
    overhead_s: float = 0.0
    codec_bytes_per_s: float = 1e8
    battery_j: float = math.inf
    soc: float = 1.0
    reserve_soc: float = 0.0
    load: float = 0.0
    time_factor: float = 1.0
    joule_price: float = 1.0

    def unit_times(self, profile: ModelProfile) -> tuple[float, ...]:
        """Seconds per unit on this device, measured where known, without `overhead_s`.

        Time grows as 1 / (1 - load) because other work takes its share of the device.
        """
        free = (1.0 - self.load) / self.time_factor
        measured = profile.measured_s.get(self.device_class)
        if measured is not None:
            return tuple(t / free for t in measured)
        return tuple(
            unit.flops
            / (self.flops_per_s * (1.0 if unit.kind == MATMUL else self.conv_factor) * free)
            for unit in profile.units
        )


@dataclass(frozen=True)
class Link:
    """A directed radio or cable from one device to another.

    Attributes:
        bytes_per_s: application goodput.
        latency_s: one-way delay of a small packet.
        tx_j_per_byte: energy of the sender's radio per byte.
        rx_j_per_byte: energy of the receiver's radio per byte.
    """

    source: str
    target: str
    bytes_per_s: float
    latency_s: float
    tx_j_per_byte: float = 0.0
    rx_j_per_byte: float = 0.0
    link_class: str = ''


@dataclass(frozen=True)
class Fleet:
    """Devices by name and the directed links between them. No link means no way to send."""

    devices: Mapping[str, Device]
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """How much each objective counts; Algorithm 1's w_E, w_L and w_A, plus the frame period."""

    energy: float = 1.0
    latency: float = 0.0
    period: float = 0.0
    accuracy: float = 0.0


@dataclass(frozen=True)
class Requirements:
    """What a stream asks of its plan.

    Attributes:
        weights: weights of energy, latency, period and accuracy.
        max_latency_s: limit on one frame's way through all stages.
        max_period_s: limit on the busiest stage or link, 1 / frame rate.
        max_energy_j: limit on energy per frame.
        pictures_stay: camera pictures never leave the capturing vehicle, so unit 0 runs there.
        battery_weight: lambda of the battery price 1 + lambda * (1 / soc - 1).
        jpeg_bytes: size of the JPEG picture; None when JPEG may not be sent.
        jpeg_error: error of the JPEG picture (see `accuracy`), 0 when it counts as lossless.
        min_accuracy: least predicted accuracy, less the margin, of a plan with loss. With None
            and without an accuracy weight, nothing may be lost.
    """

    weights: Weights = field(default_factory=Weights)
    max_latency_s: float = math.inf
    max_period_s: float = math.inf
    max_energy_j: float = math.inf
    pictures_stay: bool = False
    battery_weight: float = 0.0
    jpeg_bytes: int | None = None
    jpeg_error: float = 0.0
    min_accuracy: float | None = None

    @property
    def lossy(self) -> bool:
        """Whether accuracy may be traded at all."""
        return self.min_accuracy is not None or self.weights.accuracy > 0.0

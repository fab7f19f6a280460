"""A modelled battery and the modelled meter that drains it (paper §4.1, E_i)."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from lapdtr_ros.errors import LapdtrError

from .meter import Meter, Reading
from .rails import MODELLED, OTHER, RADIO, Rail

IDLE_RAIL = 'idle'
COMPUTE_RAIL = 'compute'
RADIO_RAIL = 'radio'


class BatteryError(LapdtrError):
    """A value that no battery can have."""


class Battery:
    """Energy left in a battery; infinite on mains. Safe for any number of threads.

    Args:
        capacity_j: energy when full, may be infinite.
        soc: share that is left, 0 to 1.

    Raises:
        BatteryError: a capacity that is not positive or a share outside 0 to 1.
    """

    def __init__(self, capacity_j: float, soc: float = 1.0) -> None:
        if not capacity_j > 0.0:
            raise BatteryError(f'capacity_j = {capacity_j}: give joules above 0')
        self.capacity_j = capacity_j
        self._lock = threading.Lock()
        self.soc = soc

    @property
    def soc(self) -> float:
        """Remaining / full; setting it charges or discharges the battery at once."""
        with self._lock:
            return self._soc

    @soc.setter
    def soc(self, share: float) -> None:
        if not 0.0 <= share <= 1.0:
            raise BatteryError(f'soc = {share}: give a share of 0 to 1')
        with self._lock:
            self._soc = share

    @property
    def remaining_j(self) -> float:
        """Joules left."""
        with self._lock:
            return self._soc * self.capacity_j if math.isfinite(self.capacity_j) else math.inf

    @property
    def empty(self) -> bool:
        """Whether nothing is left."""
        return self.soc <= 0.0

    def drain(self, joules: float) -> None:
        """Take energy out; an empty battery stays at 0.

        Raises:
            BatteryError: negative or unknown energy.
        """
        if not joules >= 0.0:
            raise BatteryError(f'drain of {joules} J: give joules of 0 or more')
        with self._lock:
            self._soc = max(0.0, self._soc - joules / self.capacity_j)


class ModelledMeter(Meter):
    """Counts idle power over time and what computing and sending add, and drains a battery.

    All times and energies are of the modelled device: with a time scale a second of this machine
    stands for more or less than a second of the device.

    Args:
        battery: what is drained.
        idle_w: power of the idle device.
        clock: steady clock, seconds.
    """

    name = MODELLED
    rails = (
        Rail(IDLE_RAIL, (OTHER,), True, MODELLED),
        Rail(COMPUTE_RAIL, (OTHER,), True, MODELLED),
        Rail(RADIO_RAIL, (RADIO,), True, MODELLED),
    )

    def __init__(
        self, battery: Battery, idle_w: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.battery = battery
        self._idle_w = idle_w
        self._clock = clock
        self._lock = threading.Lock()
        self._joules = {IDLE_RAIL: 0.0, COMPUTE_RAIL: 0.0, RADIO_RAIL: 0.0}
        self._time_scale = 1.0
        self._device_s = 0.0
        self._settled_s = clock()

    @property
    def time_scale(self) -> float:
        """Device seconds per second of the clock; a change counts from now on."""
        return self._time_scale

    @time_scale.setter
    def time_scale(self, scale: float) -> None:
        self.read()
        self._time_scale = scale

    def spend(self, compute_j: float = 0.0, radio_j: float = 0.0) -> None:
        """Computing or sending took this much above idle."""
        self.battery.drain(compute_j + radio_j)
        with self._lock:
            self._joules[COMPUTE_RAIL] += compute_j
            self._joules[RADIO_RAIL] += radio_j

    def read(self) -> Reading:
        """See `Meter.read`; drains the battery by the idle power since the last call."""
        with self._lock:
            now = self._clock()
            span = (now - self._settled_s) * self._time_scale
            self._settled_s = now
            self._device_s += span
            idle_j = self._idle_w * span
            self._joules[IDLE_RAIL] += idle_j
            reading = Reading(self._device_s, dict(self._joules))
        self.battery.drain(idle_j)
        return reading

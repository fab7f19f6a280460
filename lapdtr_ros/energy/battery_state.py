"""Rules of ``sensor_msgs/BatteryState``, free of ROS.

Its conventions: current is negative when discharging, charges are in Ah, ``percentage`` is a share
of 0 to 1, what was not measured is NaN. There is no field for energy or power, and publishers
often leave fields at 0 that they do not know, so a 0 is only believed where 0 is possible.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .errors import MeterError
from .integrator import PowerIntegrator
from .meter import Meter, Reading
from .rails import INPUT, Rail

NAME = 'battery_state'

_RAIL = 'battery'
_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class BatteryReading:
    """Fields of the message that say something about energy; NaN where unmeasured.

    Attributes:
        voltage: volts.
        current: amperes, negative when discharging.
        charge: Ah left.
        capacity: Ah when full, last known.
        design_capacity: Ah when full and new.
        percentage: 0 to 1.
        present: whether there is a battery.
    """

    voltage: float = math.nan
    current: float = math.nan
    charge: float = math.nan
    capacity: float = math.nan
    design_capacity: float = math.nan
    percentage: float = math.nan
    present: bool = True


def state_of_charge(reading: BatteryReading) -> float:
    """Share of energy left, 0 to 1; NaN when the message does not tell.

    ``percentage`` when it is a share; otherwise charge / capacity. Publishers that count to 100
    against the convention are told apart by values above 1 and are not guessed at.
    """
    if not reading.present:
        return math.nan
    if 0.0 <= reading.percentage <= 1.0:
        return reading.percentage
    capacity = _first_positive(reading.capacity, reading.design_capacity)
    share = reading.charge / capacity
    return share if 0.0 <= share <= 1.0 else math.nan


def full_j(reading: BatteryReading, configured_j: float = math.nan) -> float:
    """Energy of the full battery in joules; NaN when nothing tells.

    Capacity times voltage, else ``configured_j``.
    """
    joules = (
        _first_positive(reading.capacity, reading.design_capacity)
        * _first_positive(reading.voltage)
        * _SECONDS_PER_HOUR
    )
    return joules if math.isfinite(joules) else configured_j


def remaining_j(reading: BatteryReading, configured_j: float = math.nan) -> float:
    """Energy left in joules; NaN when nothing tells, never a 0 that only means "unknown".

    Charge times voltage, else state of charge times `full_j`.
    """
    if not reading.present:
        return math.nan
    joules = _first_positive(reading.charge) * _first_positive(reading.voltage) * _SECONDS_PER_HOUR
    if math.isfinite(joules):
        return joules
    return state_of_charge(reading) * full_j(reading, configured_j)


def power_w(reading: BatteryReading) -> float:
    """Power drawn from the battery in watts, negative while charging; NaN when unmeasured."""
    if not reading.present:
        return math.nan
    return -reading.current * _first_positive(reading.voltage)


def _first_positive(*values: float) -> float:
    return next((value for value in values if value > 0.0 and math.isfinite(value)), math.nan)


class BatteryStateMeter(Meter):
    """Integrates what a battery's own electronics report; `update` is called per message.

    Energy that flows back while charging is not subtracted: the meter counts what was drawn.

    Args:
        clock: steady clock, seconds.
    """

    name = NAME
    rails = (Rail(_RAIL, (INPUT,), True),)

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._integrator = PowerIntegrator((_RAIL,), clock)
        self._lock = threading.Lock()
        self._latest: BatteryReading | None = None

    def update(self, reading: BatteryReading) -> None:
        """A message arrived."""
        with self._lock:
            self._latest = reading
        self._integrator.add({_RAIL: power_w(reading)})

    @property
    def latest(self) -> BatteryReading:
        """The newest message.

        Raises:
            MeterError: none has arrived.
        """
        with self._lock:
            if self._latest is None:
                raise MeterError('no BatteryState yet: check the topic and its QoS')
            return self._latest

    def read(self) -> Reading:
        """See `Meter.read`."""
        return self._integrator.read()

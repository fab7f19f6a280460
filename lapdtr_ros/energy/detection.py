"""Which meters this machine has, and why it lacks the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lapdtr_ros.errors import UnknownNameError

from . import ina3221, jtop, nvml, rapl
from .errors import MeterUnavailableError
from .ina3221 import SYSFS
from .meter import Meter, Reading

AUTO = 'auto'
MODELLED_METER = 'modelled'

_OPENERS: Mapping[str, Callable[[Path], Meter]] = {
    ina3221.NAME: ina3221.open_ina3221,
    jtop.NAME: lambda _: jtop.JtopMeter(),
    nvml.NAME: lambda _: nvml.NvmlMeter(),
    rapl.NAME: rapl.RaplMeter,
}
# Whole boards first; of a PC only the parts can be measured, and they are added up.
_BOARD_METERS = (ina3221.NAME, jtop.NAME)
_PART_METERS = (nvml.NAME, rapl.NAME)

METERS = tuple(_OPENERS)


@dataclass(frozen=True)
class Found:
    """Outcome of looking for one meter.

    Attributes:
        name: kind of the meter.
        meter: the open meter; None when there is none.
        reason: why there is none; empty otherwise.
    """

    name: str
    meter: Meter | None
    reason: str = ''


class CombinedMeter(Meter):
    """Meters of different parts of one machine read as one; their rails are all apart.

    Args:
        meters: at least one; they are closed with this one.
    """

    def __init__(self, *meters: Meter) -> None:
        self.name = '+'.join(meter.name for meter in meters)
        self.rails = tuple(rail for meter in meters for rail in meter.rails)
        self._meters = meters

    def read(self) -> Reading:
        """See `Meter.read`."""
        joules: dict[str, float] = {}
        for meter in self._meters:
            joules.update(meter.read().joules)
        return Reading(time.monotonic(), joules)

    def close(self) -> None:
        """See `Meter.close`."""
        for meter in self._meters:
            meter.close()


def find_meters(sysfs: Path = SYSFS) -> tuple[Found, ...]:
    """Look for every kind, in the order of preference; the caller closes what was found."""
    return tuple(_look_for(name, sysfs) for name in METERS)


def open_meter(name: str = AUTO, sysfs: Path = SYSFS) -> Meter:
    """Open one meter.

    Args:
        name: one of `METERS`, or `AUTO`: a board's meter, else those of the graphics card and
            the processor together.
        sysfs: root of sysfs.

    Raises:
        MeterUnavailableError: it, or with `AUTO` every one, is missing; says why.
        UnknownNameError: there is no such kind.
    """
    if name != AUTO:
        if name not in _OPENERS:
            raise UnknownNameError('meter', name, (*METERS, AUTO))
        return _OPENERS[name](sysfs)
    missing = []
    for kind in _BOARD_METERS:
        found = _look_for(kind, sysfs)
        if found.meter is not None:
            return found.meter
        missing.append(found)
    parts = [_look_for(kind, sysfs) for kind in _PART_METERS]
    meters = [part.meter for part in parts if part.meter is not None]
    if meters:
        return meters[0] if len(meters) == 1 else CombinedMeter(*meters)
    reasons = '; '.join(f'{found.name}: {found.reason}' for found in (*missing, *parts))
    raise MeterUnavailableError(f'no meter on this machine: {reasons}')


def _look_for(name: str, sysfs: Path) -> Found:
    try:
        return Found(name, _OPENERS[name](sysfs))
    except MeterUnavailableError as error:
        return Found(name, None, str(error))

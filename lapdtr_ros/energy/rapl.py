"""RAPL energy counters of x86 processors (powercap in sysfs)."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from .errors import MeterError, MeterUnavailableError
from .ina3221 import SYSFS
from .meter import Meter, Reading
from .rails import CPU, GPU, INPUT, MEMORY, OTHER, Rail

NAME = 'rapl'

_POWERCAP = Path('class/powercap')
_ROLES = {'package': CPU, 'core': CPU, 'uncore': GPU, 'dram': MEMORY, 'psys': INPUT}
# Packages and memory are apart; core and uncore are inside a package, psys is measured beside it
# and is wrong on many machines.
_COUNTED = ('package', 'dram')


@dataclass
class _Zone:
    """A counter that wraps at ``range_uj``."""

    rail: Rail
    path: Path
    range_uj: int
    last_uj: int
    joules: float = 0.0

    def advance(self) -> float:
        now_uj = _counter(self.path / 'energy_uj')
        step = now_uj - self.last_uj
        self.joules += (step if step >= 0 else step + self.range_uj) * 1e-6
        self.last_uj = now_uj
        return self.joules


class RaplMeter(Meter):
    """Energy of processor packages, their parts, and memory.

    The counters wrap after minutes on a busy server, so the meter must be read more often than
    that; telemetry does.

    Args:
        sysfs: root of sysfs.

    Raises:
        MeterUnavailableError: there are no counters, or they may not be read.
    """

    name = NAME

    def __init__(self, sysfs: Path = SYSFS) -> None:
        root = sysfs / _POWERCAP
        paths = sorted(root.glob('intel-rapl:*'))
        if not paths:
            raise MeterUnavailableError(
                f'no RAPL counters under {root}: not an x86 processor with RAPL, or a virtual '
                f'machine or container that hides them'
            )
        try:
            self._zones = [_zone(path) for path in paths]
        except MeterError as error:
            raise MeterUnavailableError(f'RAPL found, but {error}') from None
        self.rails = tuple(zone.rail for zone in self._zones)
        self._lock = threading.Lock()

    def read(self) -> Reading:
        """See `Meter.read`."""
        with self._lock:
            joules = {zone.rail.name: zone.advance() for zone in self._zones}
        return Reading(time.monotonic(), joules)


def _zone(path: Path) -> _Zone:
    kind = _content(path / 'name')
    # intel-rapl:0:2 is the third part of package 0.
    package = path.name.split(':')[1]
    stem = re.sub(r'-\d+$', '', kind)
    name = kind if stem != kind else f'{kind}-{package}'
    rail = Rail(name, (_ROLES.get(stem, OTHER),), stem in _COUNTED)
    return _Zone(rail, path, _counter(path / 'max_energy_range_uj'), _counter(path / 'energy_uj'))


def _counter(path: Path) -> int:
    text = _content(path)
    try:
        return int(text)
    except ValueError:
        raise MeterError(f'{path} holds {text!r} instead of a counter') from None


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding='ascii').strip()
    except PermissionError:
        raise MeterError(f'{path} may not be read: run as root, or chmod a+r it as root') from None
    except OSError as error:
        raise MeterError(f'{path}: {error.strerror}') from None

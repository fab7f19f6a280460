"""Temperature and memory of this machine, from the kernel."""

from __future__ import annotations

import math
from pathlib import Path

from .ina3221 import SYSFS

_PROC = Path('/proc')


def temperature_c(sysfs: Path = SYSFS) -> float:
    """Hottest thermal zone in degrees Celsius; NaN where the kernel shows none.

    Args:
        sysfs: root of sysfs.
    """
    readings = []
    for path in sysfs.glob('class/thermal/thermal_zone*/temp'):
        try:
            readings.append(int(path.read_text(encoding='ascii')) * 1e-3)
        except (OSError, ValueError):
            # Zones of parts that are switched off cannot be read.
            continue
    return max(readings, default=math.nan)


def memory_share(proc: Path = _PROC) -> float:
    """Memory in use / memory of the machine, 0 to 1; NaN where the kernel does not tell.

    Args:
        proc: root of procfs.
    """
    try:
        lines = (proc / 'meminfo').read_text(encoding='ascii').splitlines()
        sizes = {name: float(rest.split()[0]) for name, rest in (ln.split(':') for ln in lines)}
        return 1.0 - sizes['MemAvailable'] / sizes['MemTotal']
    except (OSError, KeyError, ValueError, IndexError):
        return math.nan

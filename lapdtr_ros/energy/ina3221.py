"""Jetson's INA3221 power monitors, read from sysfs.

Two drivers exist. NVIDIA's own (JetPack 4: Nano, TX2, Xavier NX) is an IIO device with power files
and channels from 0. The mainline one (JetPack 5 and 6: Xavier NX, Orin) is a hwmon device with
voltage and current files and channels from 1. Numbers of devices change between boots, so
directories are searched for, never assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import MeterError, MeterUnavailableError
from .integrator import SampledMeter
from .rails import board_rails

NAME = 'ina3221'
SYSFS = Path('/sys')

_DRIVERS = Path('bus/i2c/drivers')
_NOT_CONNECTED = {'', 'NC'}


@dataclass(frozen=True)
class Channel:
    """One channel of a monitor.

    Attributes:
        rail: name of the rail.
        address: I2C bus and address, e.g. ``1-0040``.
        files: one file in mW, or two in mV and mA.
    """

    rail: str
    address: str
    files: tuple[Path, ...]

    def watts(self) -> float:
        """Power now.

        Raises:
            MeterError: a file cannot be read or holds no number.
        """
        values = [_number(path) for path in self.files]
        if len(values) == 1:
            return values[0] * 1e-3
        millivolts, milliamperes = values
        return millivolts * milliamperes * 1e-6


def find_channels(sysfs: Path = SYSFS) -> tuple[Channel, ...]:
    """All connected channels of this board.

    Rails of the same name on two monitors get their address appended.

    Args:
        sysfs: root of sysfs.
    """
    drivers = sysfs / _DRIVERS
    legacy = [
        channel
        for device in sorted(drivers.glob('ina3221x/*-00*/iio:device*'))
        for channel in _legacy_channels(device)
    ]
    mainline = [
        channel
        for device in sorted(drivers.glob('ina3221/*-00*/hwmon/hwmon*'))
        for channel in _hwmon_channels(device)
    ]
    channels = legacy + mainline
    names = [channel.rail for channel in channels]
    return tuple(
        replace(channel, rail=f'{channel.rail}@{channel.address}')
        if names.count(channel.rail) > 1
        else channel
        for channel in channels
    )


def open_ina3221(sysfs: Path = SYSFS, period_s: float = 0.1) -> SampledMeter:
    """The meter of a Jetson, integrating at 10 Hz.

    Args:
        sysfs: root of sysfs.
        period_s: time between samples.

    Raises:
        MeterUnavailableError: there is no monitor, or its files cannot be read.
    """
    channels = find_channels(sysfs)
    if not channels:
        raise MeterUnavailableError(
            f'no INA3221 under {sysfs / _DRIVERS}: not a Jetson with a power monitor (the Nano '
            f'2GB has none), or sysfs is not mounted into this container'
        )

    def sample() -> Mapping[str, float]:
        return {channel.rail: channel.watts() for channel in channels}

    try:
        sample()
    except MeterError as error:
        raise MeterUnavailableError(f'INA3221 found, but {error}') from None
    return SampledMeter(NAME, board_rails(c.rail for c in channels), sample, period_s)


def _legacy_channels(device: Path) -> list[Channel]:
    return [
        Channel(name, device.parent.name, (device / f'in_power{number}_input',))
        for number in (0, 1, 2)
        if (name := _text(device / f'rail_name_{number}')) not in _NOT_CONNECTED
    ]


def _hwmon_channels(device: Path) -> list[Channel]:
    # in4 to in7 are shunt voltages, in7 with a label of its own.
    return [
        Channel(
            name,
            device.parents[1].name,
            (device / f'in{number}_input', device / f'curr{number}_input'),
        )
        for number in (1, 2, 3)
        if (name := _text(device / f'in{number}_label')) not in _NOT_CONNECTED
    ]


def _text(path: Path) -> str:
    """Content of a label file; empty when the channel has none or may not be read."""
    try:
        return path.read_text(encoding='ascii', errors='replace').strip()
    except OSError:
        return ''


def _number(path: Path) -> float:
    try:
        return float(path.read_text(encoding='ascii').split()[0])
    except PermissionError:
        raise MeterError(f'{path} may not be read: run chmod a+r on it as root') from None
    except OSError as error:
        raise MeterError(f'{path}: {error.strerror}') from None
    except (ValueError, IndexError):
        raise MeterError(f'{path} holds no number') from None

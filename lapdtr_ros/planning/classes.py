"""Device and link classes: YAML files of figures, each with its source.

Every figure is a mapping of ``value``, ``mark`` and ``source``; the marks are in
``config/README.md``. A class turns into a `Device` or `Link` of a fleet by name.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from lapdtr_ros.errors import LapdtrError, UnknownNameError

from .fleet import Device, Link

# From a data sheet, from a data sheet seen second-hand, measured, derived, guessed.
MARKS = ('DS', 'DS*', 'M', 'D', 'G')

_BITS_PER_BYTE = 8


class ClassFileError(LapdtrError):
    """A class file has a missing, unknown or bad entry; the text names file and key."""


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from.

    Attributes:
        value: in the unit that the key names.
        mark: one of `MARKS`.
        source: the public source.
    """

    value: float
    mark: str
    source: str


@dataclass(frozen=True)
class Rate:
    """One way to run models on a device.

    Attributes:
        gflop_per_s: effective rate of transformer blocks at batch 1.
        overhead_ms: fixed time per forward pass.
        active_w: power while computing.
    """

    gflop_per_s: Figure
    overhead_ms: Figure
    active_w: Figure


@dataclass(frozen=True)
class DeviceClass:
    """A kind of hardware.

    Attributes:
        name: name of the file, `Device.device_class`.
        description: board and power mode.
        boundary: where the powers were measured: wall, kit or module.
        default_rate: key of `rates` that a device uses unless told otherwise.
        rates: by precision and runtime, e.g. ``fp32``, ``fp16_compiled``.
        conv_factor: share of the rate that depthwise and small convolutions reach.
        memory_mb: megabytes (1e6 bytes) that weights may use.
        idle_w: power when idle.
        codec_mb_per_s: megabytes of raw picture per second to and from JPEG.
    """

    name: str
    description: str
    boundary: str
    default_rate: str
    rates: Mapping[str, Rate]
    conv_factor: Figure
    memory_mb: Figure
    idle_w: Figure
    codec_mb_per_s: Figure


@dataclass(frozen=True)
class LinkClass:
    """A kind of radio or cable, one direction.

    Attributes:
        name: name of the file, `Link.link_class`.
        description: technology and conditions.
        goodput_mbit_per_s: application data rate.
        latency_ms: one-way delay of a small packet, unloaded.
        jitter_ms: spread of the delay, for emulation.
        loss: share of lost packets, for emulation.
        tx_nj_per_bit: energy of the sender's radio.
        rx_nj_per_bit: energy of the receiver's radio.
    """

    name: str
    description: str
    goodput_mbit_per_s: Figure
    latency_ms: Figure
    jitter_ms: Figure
    loss: Figure
    tx_nj_per_bit: Figure
    rx_nj_per_bit: Figure


def config_directory() -> Path:
    """Directory of the package's configuration, holding ``devices`` and ``links``.

    Looked for in this order: the environment variable ``LAPDTR_CONFIG``, ``config`` beside the
    package (a source checkout), ``share/lapdtr_ros/config`` of the prefixes in
    ``AMENT_PREFIX_PATH`` and of the Python environment.

    Raises:
        ClassFileError: there is none.
    """
    chosen = os.environ.get('LAPDTR_CONFIG')
    if chosen is not None:
        candidates = [Path(chosen)]
    else:
        ament = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
        prefixes = [*(Path(prefix) for prefix in ament if prefix), Path(sys.prefix)]
        candidates = [
            Path(__file__).parents[2] / 'config',
            *(prefix / 'share' / 'lapdtr_ros' / 'config' for prefix in prefixes),
        ]
    for candidate in candidates:
        if (candidate / 'devices').is_dir():
            return candidate
    raise ClassFileError(
        f'no configuration directory with device classes: looked in '
        f'{", ".join(map(str, candidates))}; set LAPDTR_CONFIG'
    )


def load_device_class(name: str, directory: Path | None = None) -> DeviceClass:
    """Read ``devices/<name>.yaml``.

    Args:
        name: name of the class.
        directory: configuration directory; `config_directory` if None.

    Raises:
        UnknownNameError: there is no such file.
        ClassFileError: the file has a bad entry.
    """
    reader = _Reader(_find('device class', 'devices', name, directory))
    default_rate = reader.text('default_rate')
    rates = {
        key: Rate(**{f.name: reader.figure(f.name, 'rates', key) for f in fields(Rate)})
        for key in reader.keys('rates')
    }
    reader.only(fields(DeviceClass))
    reader.only(fields(Rate), *(('rates', key) for key in rates))
    if default_rate not in rates:
        raise reader.error('default_rate', f'{default_rate!r} is not one of {", ".join(rates)}')
    return DeviceClass(
        name=name,
        description=reader.text('description'),
        boundary=reader.text('boundary'),
        default_rate=default_rate,
        rates=rates,
        conv_factor=reader.figure('conv_factor'),
        memory_mb=reader.figure('memory_mb'),
        idle_w=reader.figure('idle_w'),
        codec_mb_per_s=reader.figure('codec_mb_per_s'),
    )


def load_link_class(name: str, directory: Path | None = None) -> LinkClass:
    """Read ``links/<name>.yaml``; arguments and errors as `load_device_class`."""
    reader = _Reader(_find('link class', 'links', name, directory))
    reader.only(fields(LinkClass))
    figures = [f.name for f in fields(LinkClass) if f.name not in ('name', 'description')]
    return LinkClass(
        name=name,
        description=reader.text('description'),
        **{key: reader.figure(key) for key in figures},
    )


def of_other_class(device: Device, class_name: str) -> Device:
    """The device with the figures of another class; battery, charge and load stay.

    Raises:
        UnknownNameError: nobody defined that class.
    """
    kept = ('battery_j', 'soc', 'reserve_soc', 'load')
    return device_from_class(
        load_device_class(class_name), device.name, **{key: getattr(device, key) for key in kept}
    )


def device_from_class(
    device_class: DeviceClass, name: str, *, rate: str | None = None, **overrides: Any
) -> Device:
    """A device of the fleet.

    Args:
        device_class: its class.
        name: its name.
        rate: key of `DeviceClass.rates`; the class's default if None.
        **overrides: fields of `Device` that differ from the class, e.g. ``battery_j``.

    Raises:
        UnknownNameError: the class has no such rate, or `Device` no such field.
    """
    key = device_class.default_rate if rate is None else rate
    if key not in device_class.rates:
        raise UnknownNameError(f'rate of {device_class.name}', key, device_class.rates)
    chosen = device_class.rates[key]
    values: dict[str, Any] = {
        'flops_per_s': chosen.gflop_per_s.value * 1e9,
        'overhead_s': chosen.overhead_ms.value * 1e-3,
        'active_w': chosen.active_w.value,
        'idle_w': device_class.idle_w.value,
        'conv_factor': device_class.conv_factor.value,
        'memory_bytes': device_class.memory_mb.value * 1e6,
        'codec_bytes_per_s': device_class.codec_mb_per_s.value * 1e6,
    }
    known = {f.name for f in fields(Device)} - {'name', 'device_class'}
    for field in overrides:
        if field not in known:
            raise UnknownNameError('device field', field, known)
    return Device(name=name, device_class=device_class.name, **{**values, **overrides})


def link_from_class(link_class: LinkClass, source: str, target: str) -> Link:
    """A directed link of the fleet from ``source`` to ``target``."""
    return Link(
        source=source,
        target=target,
        bytes_per_s=link_class.goodput_mbit_per_s.value * 1e6 / _BITS_PER_BYTE,
        latency_s=link_class.latency_ms.value * 1e-3,
        tx_j_per_byte=link_class.tx_nj_per_bit.value * 1e-9 * _BITS_PER_BYTE,
        rx_j_per_byte=link_class.rx_nj_per_bit.value * 1e-9 * _BITS_PER_BYTE,
        link_class=link_class.name,
    )


def _find(kind: str, folder: str, name: str, directory: Path | None) -> Path:
    root = (config_directory() if directory is None else directory) / folder
    known = {path.stem: path for path in root.glob('*.yaml')}
    if name not in known:
        raise UnknownNameError(kind, name, known)
    return known[name]


class _Reader:
    """A class file whose errors name the file and the key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            content = yaml.safe_load(path.read_text(encoding='utf-8'))
        except yaml.YAMLError as error:
            raise ClassFileError(f'{path}: not valid YAML: {error}') from error
        if not isinstance(content, dict):
            raise ClassFileError(f'{path}: expected a mapping of keys at the top')
        self._content: dict[str, Any] = content

    def error(self, key: str, text: str) -> ClassFileError:
        return ClassFileError(f'{self._path}: {key}: {text}')

    def keys(self, key: str) -> list[str]:
        """Keys of the mapping under ``key``."""
        return list(self._mapping(key))

    def text(self, key: str) -> str:
        value = self._content.get(key)
        if not isinstance(value, str):
            raise self.error(key, f'expected a text, found {value!r}')
        return value

    def only(self, allowed: tuple[Any, ...], *sections: tuple[str, ...]) -> None:
        """Reject keys that are not fields, at the top or in the named sections."""
        names = {f.name for f in allowed} - {'name'}
        for section in sections or ((),):
            extra = set(self._mapping(*section)) - names
            if extra:
                wrong = min(map(str, extra))
                raise self.error('.'.join((*section, wrong)), f'unknown; known: {sorted(names)}')

    def figure(self, key: str, *section: str) -> Figure:
        """The figure under ``key`` of a section."""
        full = '.'.join((*section, key))
        entry = self._mapping(*section).get(key)
        if not isinstance(entry, dict) or set(entry) != {'value', 'mark', 'source'}:
            raise self.error(full, f'expected value, mark and source, found {entry!r}')
        value, mark, source = entry['value'], entry['mark'], entry['source']
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise self.error(full, f'value {value!r} must be a finite number, 0 or more')
        if mark not in MARKS:
            raise self.error(full, f'mark {mark!r} must be one of {", ".join(MARKS)}')
        if not isinstance(source, str) or not source.strip():
            raise self.error(full, f'source {source!r} must name the public source')
        return Figure(float(value), mark, source)

    def _mapping(self, *section: str) -> dict[str, Any]:
        entry: Any = self._content
        for i, key in enumerate(section, start=1):
            entry = entry.get(key)
            if not isinstance(entry, dict):
                raise self.error('.'.join(section[:i]), f'expected a mapping, found {entry!r}')
        return entry

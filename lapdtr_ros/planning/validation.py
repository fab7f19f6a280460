"""Check what users write before a solver computes with it."""

from __future__ import annotations

import math

from lapdtr_ros.errors import LapdtrError, UnknownNameError

from .cost import InfeasiblePlanError
from .fleet import Device, Fleet, Link, Requirements
from .profile import ModelProfile


class PlanningInputError(LapdtrError):
    """A device, link, requirement or profile holds a value that makes no sense."""


def validate(
    profile: ModelProfile, fleet: Fleet, requirements: Requirements, source: str, sink: str
) -> None:
    """Check all inputs of a solver.

    Raises:
        PlanningInputError: a value is out of range or not a number; the text names it.
        InfeasiblePlanError: more accuracy is asked for than the model has.
        UnknownNameError: a link, the source or the sink names a device that the fleet lacks.
    """
    validate_profile(profile)
    validate_fleet(fleet)
    validate_requirements(requirements)
    _check_accuracy(profile, requirements)
    for name in (source, sink):
        if name not in fleet.devices:
            raise UnknownNameError('device', name, fleet.devices)


def validate_fleet(fleet: Fleet) -> None:
    """Check devices and links and that they fit together; errors as `validate`."""
    for name, device in fleet.devices.items():
        if name != device.name:
            raise PlanningInputError(
                f'device {device.name!r} is listed under the name {name!r}: use one name'
            )
        _check_device(device)
    for ends, link in fleet.links.items():
        if ends != (link.source, link.target):
            raise PlanningInputError(
                f'link {link.source} -> {link.target} is listed under {ends!r}: '
                f'use its source and target'
            )
        for name in ends:
            if name not in fleet.devices:
                raise UnknownNameError('device of a link', name, fleet.devices)
        if link.source == link.target:
            raise PlanningInputError(
                f'link {link.source} -> {link.target} leads from a device to itself: remove it'
            )
        _check_link(link)


def validate_requirements(requirements: Requirements) -> None:
    """Check weights and limits; errors as `validate`."""
    weights = requirements.weights
    parts = {
        'weights.energy': weights.energy,
        'weights.latency': weights.latency,
        'weights.period': weights.period,
    }
    for key, value in {**parts, 'weights.accuracy': weights.accuracy}.items():
        _at_least_zero('requirements', key, value)
    if not any(parts.values()):
        raise PlanningInputError(
            'requirements: all weights are 0, so every plan is as good as any other: '
            'give energy, latency or period a weight'
        )
    for key in ('max_latency_s', 'max_period_s', 'max_energy_j'):
        _positive('requirements', key, getattr(requirements, key), finite=False)
    _at_least_zero('requirements', 'battery_weight', requirements.battery_weight)
    if requirements.jpeg_bytes is not None:
        _positive('requirements', 'jpeg_bytes', requirements.jpeg_bytes)
    _at_least_zero('requirements', 'jpeg_error', requirements.jpeg_error)
    if requirements.min_accuracy is not None:
        _share('requirements', 'min_accuracy', requirements.min_accuracy, one_allowed=True)


def validate_profile(profile: ModelProfile) -> None:
    """Check units and measured times; errors as `validate`."""
    if not profile.units:
        raise PlanningInputError(f'profile of {profile.model}: no units, nothing to place')
    for unit in profile.units:
        where = f'profile of {profile.model}, unit {unit.name}'
        for key in ('flops', 'parameter_bytes', 'output_bytes'):
            _at_least_zero(where, key, getattr(unit, key))
    for device_class, times in profile.measured_s.items():
        for unit, seconds in zip(profile.units, times, strict=True):
            _at_least_zero(
                f'profile of {profile.model}, unit {unit.name}',
                f'measured_s[{device_class!r}]',
                seconds,
            )


def _check_accuracy(profile: ModelProfile, requirements: Requirements) -> None:
    """What is asked of the accuracy must be known and within reach."""
    table, wanted = profile.accuracy, requirements.min_accuracy
    if not requirements.lossy:
        return
    if table is None:
        raise PlanningInputError(
            f'requirements: min_accuracy or weights.accuracy is set, but {profile.model} has no '
            f"accuracy table: name one in model.profile (made by 'lapdtr calibrate'), or unset them"
        )
    if wanted is not None and wanted > table.accuracy:
        raise InfeasiblePlanError(
            f'min_accuracy = {wanted:.4g}: {profile.model} reaches {table.accuracy:.4g} '
            f'({table.metric}) without any loss; relax the limit or take another model'
        )


def _check_device(device: Device) -> None:
    where = f'device {device.name}'
    for key in ('flops_per_s', 'conv_factor', 'codec_bytes_per_s', 'time_factor'):
        _positive(where, key, getattr(device, key))
    for key in ('memory_bytes', 'battery_j'):
        _positive(where, key, getattr(device, key), finite=False)
    for key in ('idle_w', 'active_w', 'overhead_s', 'joule_price'):
        _at_least_zero(where, key, getattr(device, key))
    if device.active_w < device.idle_w:
        raise PlanningInputError(
            f'{where}: active_w = {device.active_w} is below idle_w = {device.idle_w}: '
            f'active_w is the whole power while computing'
        )
    for key in ('soc', 'reserve_soc'):
        _share(where, key, getattr(device, key), one_allowed=True)
    _share(where, 'load', device.load, one_allowed=False)


def _check_link(link: Link) -> None:
    where = f'link {link.source} -> {link.target}'
    _positive(where, 'bytes_per_s', link.bytes_per_s, finite=False)
    for key in ('latency_s', 'tx_j_per_byte', 'rx_j_per_byte'):
        _at_least_zero(where, key, getattr(link, key))


def _positive(where: str, key: str, value: float, *, finite: bool = True) -> None:
    # `not >` also catches NaN.
    if not value > 0 or (finite and math.isinf(value)):
        kind = 'a finite number' if finite else 'a number'
        raise PlanningInputError(f'{where}: {key} = {value} must be {kind} above 0')


def _at_least_zero(where: str, key: str, value: float) -> None:
    if not value >= 0 or math.isinf(value):
        raise PlanningInputError(f'{where}: {key} = {value} must be a finite number, 0 or more')


def _share(where: str, key: str, value: float, *, one_allowed: bool) -> None:
    if not 0 <= value <= 1 or (value == 1 and not one_allowed):
        upper = 'to 1' if one_allowed else 'to below 1'
        raise PlanningInputError(f'{where}: {key} = {value} must be a share from 0 {upper}')

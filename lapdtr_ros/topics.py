"""Names of topics; all nodes of a fleet share one namespace and meet here."""

from __future__ import annotations

DIAGNOSTICS = '/diagnostics'


def _join(fleet: str, *parts: str) -> str:
    return '/' + '/'.join(part for part in (fleet.strip('/'), *parts) if part)


def plan(fleet: str) -> str:
    """Fleet plans, from the planner to everybody."""
    return _join(fleet, 'plan')


def frame_traces(fleet: str) -> str:
    """Finished and lost frames, from every source to everybody."""
    return _join(fleet, 'frame_traces')


def features(fleet: str, device: str) -> str:
    """Inputs of a device's stages, from sources and other devices."""
    return _join(fleet, device, 'features')


def telemetry(fleet: str, device: str) -> str:
    """State of a device."""
    return _join(fleet, device, 'telemetry')


def result(fleet: str, stream: str) -> str:
    """Outputs of a stream's last unit, to its source and its sink."""
    return _join(fleet, stream, 'result')


def namespace(fleet: str, owner: str = '') -> str:
    """Namespace of a node that belongs to a device or stream."""
    return _join(fleet, owner)

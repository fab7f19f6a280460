"""Errors of meters."""

from __future__ import annotations

from lapdtr_ros.errors import LapdtrError


class MeterUnavailableError(LapdtrError):
    """A meter that this machine does not have or does not let us read; the text says why."""


class MeterError(LapdtrError):
    """A meter that was found stopped giving readings."""

"""Errors of the features room; every message names the value and the remedy."""

from __future__ import annotations

from lapdtr_ros.errors import LapdtrError


class CalibrationError(LapdtrError):
    """A calibration file that cannot be read, or that belongs to another model or weights."""


class SummaryError(LapdtrError):
    """Tokens that cannot be summarised as asked."""

"""Errors of calibration runs."""

from __future__ import annotations

from lapdtr_ros.errors import LapdtrError


class CalibrateError(LapdtrError):
    """Data or options that no calibration can be made of."""

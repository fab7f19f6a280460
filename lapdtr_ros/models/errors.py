"""Errors of the models room; every message names the value and the remedy."""

from __future__ import annotations

from lapdtr_ros.errors import LapdtrError


class ModelNameError(LapdtrError):
    """A model name that does not follow the grammar of `registry`."""


class PictureSizeError(LapdtrError):
    """A picture size that the model cannot take."""


class PictureError(LapdtrError):
    """A picture of the wrong shape or type, or bytes that are no picture."""


class UnitRangeError(LapdtrError):
    """A range of units that the model, or the stage, does not have."""


class WeightsError(LapdtrError):
    """Weights that cannot be had, or that do not fit the model."""

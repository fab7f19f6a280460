"""Errors of the training room."""

from __future__ import annotations

from lapdtr_ros.errors import LapdtrError


class TrainingError(LapdtrError):
    """Settings, data or a checkpoint that a training cannot go on with."""

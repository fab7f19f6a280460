"""Errors of elasticity."""

from __future__ import annotations

from lapdtr_ros.errors import LapdtrError


class ElasticError(LapdtrError):
    """A level, a width or stored matrices that do not fit the model."""

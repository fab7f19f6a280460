"""ROS settings of every test process, whether pytest, make or colcon starts it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os

import pytest

_resources = contextlib.ExitStack()


def pytest_configure() -> None:
    """Keep the tests' ROS graph to this machine and process, and check what messages are given."""
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    # Read when a message class is imported. Without it wrong types become 0 or abort the process.
    os.environ['ROS_PYTHON_CHECK_FIELDS'] = '1'
    if importlib.util.find_spec('domain_coordinator'):
        from domain_coordinator import domain_id

        os.environ['ROS_DOMAIN_ID'] = str(_resources.enter_context(domain_id()))
    if os.environ.get('LAPDTR_REQUIRE_ROS') == '1':
        _require_ros()


def pytest_unconfigure() -> None:
    """Free the ROS domain."""
    _resources.close()


def _require_ros() -> None:
    """Stop where the ROS tests would only be skipped."""
    for name in ('rclpy', 'lapdtr_ros.msg'):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise pytest.UsageError(f'LAPDTR_REQUIRE_ROS=1, but {error}: run make setup') from error

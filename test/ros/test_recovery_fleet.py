"""A whole fleet with its own planner, and what befalls it; the tools are those of benchmarks/."""

import signal
import sys
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip('lapdtr_ros.msg')

import rclpy
from rclpy.executors import SingleThreadedExecutor

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))

from fleet_under_test import DEVICES, STREAM, FleetUnderTest
from fuzz import Fuzzer, flood

from lapdtr_ros.nodes.operator import Operator


@pytest.fixture
def fleet(tmp_path):
    with FleetUnderTest(tmp_path, rate_hz=10.0) as fleet:
        fleet.wait_until_running()
        yield fleet


def assert_all_is_well(fleet):
    report = fleet.finish()
    assert report['lost'] == report['duplicated'] == report['wrong'] == 0
    assert report['finished'] == report['frames_in']


def test_a_fleet_goes_on_without_its_planner_and_is_not_disturbed_when_it_is_back(fleet):
    epoch = fleet.plan.epoch
    fleet.signal('planner', signal.SIGKILL)
    count = len(fleet.traces)
    fleet.wait(lambda: len(fleet.traces) > count + 20)
    fleet.start('planner')
    fleet.wait(lambda: 'found in force' in fleet.log('planner'))
    count = len(fleet.traces)
    fleet.wait(lambda: len(fleet.traces) > count + 20)
    assert {trace.epoch for trace in fleet.traces.values()} == {epoch}
    victim = fleet.plan.devices(STREAM)[-1]
    fleet.signal(f'device_{victim}', signal.SIGKILL)
    fleet.wait(lambda: any(trace.epoch > epoch for trace in fleet.traces.values()))
    assert_all_is_well(fleet)


def test_a_link_that_swallows_everything_is_gone_around(fleet):
    operator = Operator()
    fleet.add_node(operator)
    plan = fleet.plan
    sender, receiver = plan.devices(STREAM)[:2]
    dead = {'link_target': receiver, 'link_bytes_per_s': 1e-3}
    operator.set_parameters_of(f'{sender}/device', dead)
    count = len(fleet.traces)
    fleet.wait(lambda: any(t.epoch > plan.epoch for t in fleet.traces.values()), 30.0)
    fleet.wait(lambda: len(fleet.traces) > count + 20)
    ways = list(pairwise(fleet.plan.devices(STREAM)))
    assert (sender, receiver) not in ways
    assert f'link {sender} -> {receiver} carries' in fleet.log('planner')
    operator.destroy_node()
    assert_all_is_well(fleet)


def test_malformed_messages_of_every_type_change_nothing(fleet):
    node = rclpy.create_node('fuzzer')
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    fuzzer = Fuzzer(node, '', [STREAM], list(DEVICES), seed=3)
    flood(fuzzer, executor, fleet, 1600)
    count = len(fleet.traces)
    fleet.wait(lambda: len(fleet.traces) > count + 10)
    fleet.check_alive()
    node.destroy_node()
    assert len(fuzzer.sent) >= 7
    assert all(telemetry.rejected for telemetry in fleet.telemetry.values())
    assert_all_is_well(fleet)

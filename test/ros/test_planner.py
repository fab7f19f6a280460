"""The planner node in a process of its own, with devices that the test plays."""

import signal
import time

import pytest
import yaml

pytest.importorskip('lapdtr_ros.msg')

from diagnostic_msgs.msg import DiagnosticArray

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.bringup import ProcessGroup, ProcessSpec
from lapdtr_ros.msg import DeviceTelemetry, PartitionPlan
from lapdtr_ros.nodes.operator import Operator
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision

MODEL = 'test_vit'
WEIGHTS = 'random:3'
STREAM = 'near/camera0'
DEVICES = ('near', 'far')
PERIOD_S = 0.2


class PlayedFleet:
    """Devices that only report; everything they say can be changed between two reports."""

    def __init__(self, peer, folder):
        self.peer = peer
        self.path = write_scenario(folder)
        self.plans = peer.collect(PartitionPlan, topics.plan(''), qos.plan())
        self.diagnostics = peer.collect(DiagnosticArray, topics.DIAGNOSTICS, qos.diagnostics())
        self.says = {name: {'soc': 0.8, 'session': 'a', 'unit_time_ratio': 1.0} for name in DEVICES}
        self.silent = set()
        self._publishers = {
            name: peer.node.create_publisher(
                DeviceTelemetry, topics.telemetry('', name), qos.telemetry()
            )
            for name in DEVICES
        }
        self._timer = peer.node.create_timer(PERIOD_S, self.report)

    def report(self):
        for name in set(DEVICES) - self.silent:
            self._publishers[name].publish(DeviceTelemetry(device=name, **self.says[name]))

    def planner(self, name='planner', **parameters):
        values = {'scenario': str(self.path), 'return_s': 0.5, **parameters}
        return ProcessSpec(name, 'planner', '/', values)

    def wait_for_plan(self, count, timeout_s=40.0):
        self.peer.wait(lambda: len(self.plans) >= count, timeout_s)
        return self.plans[count - 1]

    def said(self, task):
        """Newest line of a diagnostic task."""
        lines = [s for m in self.diagnostics for s in m.status if s.name.endswith(f': {task}')]
        return lines[-1].message if lines else ''


def write_scenario(folder):
    content = {
        'name': 'test',
        'model': {'name': MODEL, 'weights': WEIGHTS},
        'devices': {
            name: {'class': 'raspberry_pi_4', 'battery_wh': 50, 'reserve_soc': 0.2}
            for name in DEVICES
        },
        'links': [{'between': list(DEVICES), 'class': 'ethernet'}],
        'streams': {STREAM: {'source': 'near', 'dataset': 'scene', 'rate_hz': 5.0}},
        'requirements': {'weights': {'energy': 1}},
    }
    path = folder / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


def places(plan):
    return [stage.device for stage in plan.streams[0].stages]


@pytest.fixture
def fleet(peer, tmp_path):
    return PlayedFleet(peer, tmp_path)


def test_batteries_losses_and_returns_lead_to_plans_with_reasons(fleet, tmp_path):
    with ProcessGroup([fleet.planner()], tmp_path / 'logs'):
        first = fleet.wait_for_plan(1)
        assert (first.epoch, first.cause, places(first)) == (1, 'first', ['near'])

        fleet.says['near']['soc'] = 0.1
        began = time.monotonic()
        low = fleet.wait_for_plan(2)
        assert time.monotonic() - began < 1.0
        assert (low.epoch, low.cause, places(low)) == (2, 'battery', ['far'])
        assert 'battery of near at 10.0%' in low.reason
        assert low.alternatives[0].name == 'keep the running plan'
        assert low.moving_j > 0.0

        fleet.silent.add('far')
        began = time.monotonic()
        lost = fleet.wait_for_plan(3)
        assert time.monotonic() - began < 1.25 + 1.0
        assert (lost.cause, places(lost)) == ('lost', ['near'])
        fleet.peer.wait(lambda: 'not there: far' in fleet.said('devices'))

        fleet.silent.clear()
        back = fleet.wait_for_plan(4)
        assert (back.cause, places(back)) == ('returned', ['far'])


def test_impossible_telemetry_is_refused_counted_and_named(fleet, tmp_path):
    with ProcessGroup([fleet.planner()], tmp_path / 'logs') as group:
        fleet.wait_for_plan(1)
        for wrong in ({'soc': float('nan')}, {'soc': 7.0}, {'session': 'b', 'soc': 0.0}):
            fleet.says['near'].update(wrong)
            fleet.report()
        fleet.says['near'].update(session='a', soc=0.8)
        fleet.peer.wait(lambda: 'two devices call themselves' in fleet.said('devices'))
        group.check()
    assert len(fleet.plans) == 1


def test_a_planner_that_comes_back_adopts_the_running_plan(fleet, tmp_path):
    units = 8
    running = Plan(STREAM, MODEL, 'near', 'near', (Stage('near', 0, units),))
    decision = StreamDecision(running, WEIGHTS, 0.1, 0.1, 0.1)
    plan = FleetPlan(7, '/planner@before', 'exact', 'before', {STREAM: decision})
    active = fleet.peer.node.create_publisher(
        PartitionPlan, topics.active_plan(''), qos.active_plan()
    )
    for name in DEVICES:
        fleet.says[name]['epoch'] = 7
    with ProcessGroup([fleet.planner()], tmp_path / 'logs'):
        fleet.peer.wait(lambda: fleet.peer.node.count_subscribers(topics.active_plan('')) > 0)
        active.publish(conversions.fleet_plan_to_msg(plan, conversions.time_to_msg(1)))
        adopted = fleet.wait_for_plan(1)
        assert (adopted.epoch, places(adopted)) == (7, ['near'])
        fleet.says['near']['soc'] = 0.1
        following = fleet.wait_for_plan(2)
        assert (following.epoch, places(following)) == (8, ['far'])


def test_a_second_planner_listens_and_takes_over_when_the_first_is_killed(fleet, tmp_path):
    with ProcessGroup([fleet.planner('first')], tmp_path / 'logs') as group:
        fleet.wait_for_plan(1)
        for name in DEVICES:
            fleet.says[name]['epoch'] = 1
        group.start(fleet.planner('second'))
        fleet.peer.wait(lambda: 'leads this fleet' in fleet.said('planners'))
        group.process('first').send_signal(signal.SIGKILL)
        fleet.says['near']['soc'] = 0.1
        # It may first say again that plan 1 is in force.
        fleet.peer.wait(lambda: fleet.plans[-1].epoch == 2)
        newest = fleet.plans[-1]
        assert places(newest) == ['far']
        assert newest.planner != fleet.plans[0].planner


def test_thresholds_and_objective_change_while_it_runs(fleet, tmp_path):
    operator = Operator()
    fleet.peer.executor.add_node(operator)
    operator.connect('planner')
    with ProcessGroup([fleet.planner()], tmp_path / 'logs'):
        fleet.wait_for_plan(1)
        done = operator.set_parameters_of('planner', {'objective': 'lifetme'})
        fleet.peer.wait(done.done)
        assert "did you mean 'lifetime'" in done.result().result.reason
        done = operator.set_parameters_of('planner', {'silence_s': 0.5, 'latency_weight': 2.0})
        fleet.peer.wait(done.done)
        assert done.result().result.successful
        fleet.silent.add('far')
        fleet.peer.wait(lambda: 'not there: far' in fleet.said('devices'), timeout_s=5.0)
    operator.destroy_node()

"""Devices and planners that die, freeze and come back, while real frames flow over DDS."""

import dataclasses
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import yaml

pytest.importorskip('lapdtr_ros.msg')

from diagnostic_msgs.msg import DiagnosticArray

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.bringup import ProcessGroup, ProcessSpec, device_process, source_process
from lapdtr_ros.datasets.noise import write_noise_scene
from lapdtr_ros.datasets.pictures import PictureSequence
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.msg import DeviceTelemetry, FeatureMap, FrameResult, FrameTrace, PartitionPlan
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision

MODEL = 'test_vit'
WEIGHTS = 'random:3'
STREAM = 'near/camera0'
SPEC = model_spec(MODEL)
UNITS = len(SPEC.unit_names)
DEVICES = ('near', 'mid', 'far')
PICTURES = 5
NAMESPACE, NEAR_CARD, FAR_CARD = 'lapdtr_test', 'lapdtr_near', 'lapdtr_far'


def write_scenario(folder, **execution):
    pairs = [['near', 'mid'], ['mid', 'far'], ['near', 'far']]
    content = {
        'name': 'recovery',
        'model': {'name': MODEL, 'weights': WEIGHTS},
        'devices': {name: {'class': 'raspberry_pi_4'} for name in DEVICES},
        'links': [{'between': pair, 'class': 'ethernet'} for pair in pairs],
        'streams': {STREAM: {'source': 'near', 'dataset': 'scene', 'rate_hz': 20.0}},
        'execution': {'max_in_flight': 4, 'frame_timeout_s': 100.0, **execution},
    }
    path = folder / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


class InNamespace(ProcessSpec):
    """A process on the far side of a pair of virtual network cards."""

    def command(self):
        return ['ip', 'netns', 'exec', NAMESPACE, *super().command()]


class Fleet:
    """Device and source processes, with this test as their planner."""

    def __init__(self, folder, peer, elsewhere=()):
        write_noise_scene(folder / 'scene', frames=PICTURES)
        self.folder, self.peer = folder, peer
        self.scenario = write_scenario(folder)
        specs = [device_process(self.scenario, '', name) for name in DEVICES]
        specs = [
            InNamespace(**vars(s)) if s.parameters['device'] in elsewhere else s for s in specs
        ]
        specs.append(source_process(self.scenario, '', STREAM, frames=100_000, sinks=1))
        self.group = ProcessGroup(specs, folder / 'logs')
        self.plans = peer.node.create_publisher(PartitionPlan, topics.plan(''), qos.plan())
        self.traces = peer.collect(FrameTrace, topics.frame_traces(''), qos.traces())
        self.results = peer.collect(FrameResult, topics.result('', STREAM), qos.frames())
        self.telemetry = {
            name: peer.collect(DeviceTelemetry, topics.telemetry('', name), qos.telemetry())
            for name in DEVICES
        }

    def __enter__(self):
        self.group.__enter__()
        return self

    def __exit__(self, *_):
        for name in DEVICES:
            self.send(name, signal.SIGCONT)
        self.group.stop()

    def plan(self, epoch, *stages, planner='test'):
        plan = Plan(STREAM, MODEL, 'near', 'near', tuple(Stage(*stage) for stage in stages))
        decision = StreamDecision(plan, WEIGHTS, 0.0, 0.0, 0.0)
        fleet_plan = FleetPlan(epoch, planner, 'exact', 'test', {STREAM: decision})
        stamp = self.peer.node.get_clock().now().to_msg()
        self.plans.publish(conversions.fleet_plan_to_msg(fleet_plan, stamp))

    def log(self, name):
        path = self.folder / 'logs' / f'{name}.log'
        return path.read_text() if path.exists() else ''

    def wait_for_loss(self, device, times=1):
        said = f'{device} is lost'
        self.peer.wait(lambda: self.log('source_near_camera0').count(said) >= times)

    def send(self, device, number):
        process = self.group.process(f'device_{device}')
        if process.poll() is None:
            os.kill(process.pid, number)

    def last(self, device):
        return self.telemetry[device][-1]

    def wait_for_frames(self, epoch, count=10):
        """Until some frames have ended under a plan; how long the first one took."""
        began = time.monotonic()
        first_s = []

        def enough():
            ended = sum(trace.epoch == epoch for trace in self.traces)
            if ended and not first_s:
                first_s.append(time.monotonic() - began)
            return ended >= count

        self.peer.wait(enough)
        return first_s[0]

    def check(self):
        """Every frame is finished, once, and as the unsplit model would have it."""
        sent = set(range(max(trace.seq for trace in self.traces)))
        self.peer.wait(lambda: sent <= {trace.seq for trace in self.traces})
        self.peer.wait(lambda: sent <= {result.seq for result in self.results})
        assert len({trace.seq for trace in self.traces}) == len(self.traces)
        assert {trace.outcome for trace in self.traces} == {FrameTrace.FINISHED}
        for trace in self.traces:
            bounds = [(stage.start_unit, stage.stop_unit) for stage in trace.stages]
            assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
            assert bounds[-1][1] == UNITS
        whole = StageRunner(MODEL, WEIGHTS, 0, UNITS)
        pictures = PictureSequence(self.folder / 'scene', None, 0, SPEC.picture_shape[:2])
        references = [whole.run(pictures[i].pixels) for i in range(PICTURES)]
        for result in self.results:
            output = conversions.result_from_msg(result).packet.to_array()
            np.testing.assert_allclose(output, references[result.seq % PICTURES], atol=1e-5)


THREE = (('near', 0, 2), ('mid', 2, 4), ('far', 4, UNITS))
WITHOUT_MID = (('near', 0, 3), ('far', 3, UNITS))


def way(trace):
    return [(stage.device, stage.start_unit, stage.stop_unit) for stage in trace.stages]


@pytest.fixture
def fleet(tmp_path, peer):
    with Fleet(tmp_path, peer) as fleet:
        fleet.plan(1, *THREE)
        fleet.wait_for_frames(1)
        yield fleet


def test_frames_go_on_from_what_survives_a_killed_device_and_it_is_used_again(fleet):
    fleet.send('mid', signal.SIGKILL)
    fleet.wait_for_loss('mid')
    fleet.plan(2, *WITHOUT_MID)
    assert fleet.wait_for_frames(2) < 5.0
    fleet.group.start(device_process(fleet.scenario, '', 'mid'))
    fleet.peer.wait(lambda: 2 in fleet.last('mid').ready_epochs)
    fleet.plan(3, *THREE)
    fleet.wait_for_frames(3)
    fleet.check()
    resumed = [way(trace) for trace in fleet.traces if trace.resumed]
    # Nothing that near had kept was run again: it had run its old units and ran only the next one.
    assert [('near', 0, 2), ('near', 2, 3), ('far', 3, UNITS)] in resumed
    assert fleet.last('near').resent >= 1


def test_a_frozen_device_is_left_out_and_used_again_when_it_goes_on(fleet):
    fleet.send('mid', signal.SIGSTOP)
    fleet.wait_for_loss('mid')
    fleet.plan(2, *WITHOUT_MID)
    fleet.wait_for_frames(2)
    fleet.send('mid', signal.SIGCONT)
    fleet.peer.wait(lambda: fleet.last('mid').epoch == 2)
    fleet.plan(3, *THREE)
    fleet.wait_for_frames(3)
    fleet.check()


def test_without_a_planner_a_device_that_comes_back_goes_on_under_the_last_plan(fleet):
    fleet.send('mid', signal.SIGKILL)
    fleet.wait_for_loss('mid')
    fleet.group.start(device_process(fleet.scenario, '', 'mid'))
    heard = len(fleet.telemetry['mid'])
    fleet.peer.wait(
        lambda: 1 in fleet.last('mid').ready_epochs and len(fleet.telemetry['mid']) > heard
    )
    fleet.wait_for_frames(1, sum(trace.epoch == 1 for trace in fleet.traces) + 10)
    fleet.check()
    assert any(trace.resumed for trace in fleet.traces)


def test_a_second_planner_is_refused_while_the_first_is_alive(fleet):
    rival = fleet.peer.node.create_publisher(PartitionPlan, topics.plan(''), qos.plan())
    fleet.peer.wait(lambda: rival.get_subscription_count() >= len(DEVICES) + 1)

    def refused():
        # Said again, because the log takes one refusal a second and may have taken another.
        fleet.plan(7, *WITHOUT_MID, planner='rival')
        return 'rival refused: test leads' in fleet.log('device_near')

    fleet.peer.wait(refused)
    fleet.plan(2, *WITHOUT_MID)
    fleet.wait_for_frames(2)
    fleet.check()
    assert {trace.epoch for trace in fleet.traces} == {1, 2}


def test_of_two_devices_with_one_name_the_younger_steps_back(fleet):
    session = fleet.last('mid').session
    spec = device_process(fleet.scenario, '', 'mid')
    double = dataclasses.replace(spec, name='double')
    fleet.group.start(double)
    diagnostics = fleet.peer.collect(DiagnosticArray, topics.DIAGNOSTICS, qos.diagnostics())

    def told():
        lines = [status for message in diagnostics for status in message.status]
        return any('acts as this device' in line.message for line in lines)

    fleet.peer.wait(told)
    heard = len(fleet.telemetry['mid'])
    fleet.peer.wait(lambda: len(fleet.telemetry['mid']) >= heard + 4)
    assert {msg.session for msg in fleet.telemetry['mid'][heard:]} == {session}
    fleet.check()


def test_frames_that_are_played_again_are_dropped(fleet):
    copies = fleet.peer.collect(FeatureMap, topics.features('', 'mid'), qos.frames())
    fleet.peer.wait(lambda: len(copies) >= 5)
    player = fleet.peer.node.create_publisher(FeatureMap, topics.features('', 'mid'), qos.frames())
    fleet.peer.wait(lambda: player.get_subscription_count() >= 2)
    replayed = copies[:5]
    for message in replayed:
        player.publish(message)
    fleet.peer.wait(lambda: fleet.last('mid').duplicates >= 5)
    fleet.check()
    assert len({(r.session, r.seq) for r in fleet.results}) == len(fleet.results)


def ip(arguments):
    subprocess.run(['ip', *arguments.split()], check=True, capture_output=True)


@pytest.fixture
def second_network(monkeypatch):
    """A network namespace with one way to it; DDS may not take a short cut by shared memory."""
    if os.geteuid() or shutil.which('ip') is None:
        pytest.skip('network namespaces need root and iproute2')
    monkeypatch.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'UDPv4')
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    try:
        ip(f'netns add {NAMESPACE}')
    except subprocess.CalledProcessError as error:
        pytest.skip(f'no network namespaces here: {error.stderr}')
    ip(f'link add {NEAR_CARD} type veth peer name {FAR_CARD} netns {NAMESPACE}')
    ip(f'addr add 10.213.0.1/24 dev {NEAR_CARD}')
    ip(f'link set {NEAR_CARD} up')
    for command in (
        f'addr add 10.213.0.2/24 dev {FAR_CARD}',
        f'link set {FAR_CARD} up',
        'link set lo up',
        f'route add default dev {FAR_CARD}',
    ):
        ip(f'-n {NAMESPACE} {command}')
    yield
    ip(f'netns del {NAMESPACE}')


def test_a_network_that_falls_apart_heals(second_network, tmp_path, peer):
    with Fleet(tmp_path, peer, elsewhere=['mid']) as fleet:
        fleet.plan(1, *THREE)
        fleet.wait_for_frames(1)
        ip(f'link set {NEAR_CARD} down')
        fleet.wait_for_loss('mid')
        fleet.plan(2, *WITHOUT_MID)
        fleet.wait_for_frames(2)
        ip(f'link set {NEAR_CARD} up')
        peer.wait(lambda: 2 in fleet.last('mid').ready_epochs)
        fleet.plan(3, *THREE)
        fleet.wait_for_frames(3)
        fleet.check()

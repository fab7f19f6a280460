"""Real nodes in processes of their own, over DDS."""

import json
import time

import numpy as np
import pytest
import yaml

pytest.importorskip('lapdtr_ros.msg')

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from sensor_msgs.msg import Image

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.bringup import (
    Intervention,
    ProcessGroup,
    device_process,
    planner_process,
    source_process,
    view_process,
)
from lapdtr_ros.commands.run import run_scenario
from lapdtr_ros.datasets.noise import write_noise_scene
from lapdtr_ros.datasets.pictures import PictureSequence
from lapdtr_ros.evaluation.run_record import read_record, to_json
from lapdtr_ros.execution.frames import Feature, Packet
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.msg import DeviceTelemetry, FeatureMap, FrameResult, FrameTrace, PartitionPlan
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision
from lapdtr_ros.scenario import load_scenario

MODEL = 'test_vit'
WEIGHTS = 'random:3'
STREAM = 'near/camera0'
SPEC = model_spec(MODEL)
UNITS = len(SPEC.unit_names)


def write_scenario(folder, **changes):
    content = {
        'name': 'test',
        'model': {'name': MODEL, 'weights': WEIGHTS},
        'devices': {'near': {'class': 'raspberry_pi_4'}, 'far': {'class': 'raspberry_pi_4'}},
        'links': [{'between': ['near', 'far'], 'class': 'ethernet'}],
        'streams': {STREAM: {'source': 'near', 'dataset': 'scene', 'rate_hz': 20.0}},
        'requirements': {'weights': {'energy': 0, 'period': 1}, 'pictures_stay': True},
        'execution': {'max_in_flight': 3, 'frame_timeout_s': 10.0},
        **changes,
    }
    path = folder / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


def reference_outputs(folder, count):
    whole = StageRunner(MODEL, WEIGHTS, 0, UNITS)
    pictures = PictureSequence(folder / 'scene', None, 0, SPEC.picture_shape[:2])
    return [whole.run(pictures[i].pixels) for i in range(count)]


def test_split_over_dds_equals_unsplit_through_a_plan_change(tmp_path):
    write_noise_scene(tmp_path / 'scene', frames=6)
    scenario = load_scenario(write_scenario(tmp_path))
    change = Intervention(12, 'planner', {'period_weight': 0.0, 'latency_weight': 1.0})
    record = run_scenario(scenario, tmp_path, frames=50, interventions=[change], save_outputs=True)

    assert sorted(frame.seq for frame in record.frames) == list(range(50))
    assert {frame.outcome for frame in record.frames} == {'finished'}
    assert {frame.epoch for frame in record.frames} == {1, 2}
    assert len(record.plans[0].streams[0].stages) == 2
    references = reference_outputs(tmp_path, 6)
    for frame in record.frames:
        assert sum(stage.stop - stage.start for stage in frame.stages) == UNITS
        output = np.load(tmp_path / 'outputs' / STREAM / f'{frame.seq:06d}.npy')
        np.testing.assert_allclose(output, references[frame.seq % 6], rtol=0, atol=1e-5)
    # As text, because an unknown float is not equal to itself.
    read_back = to_json(read_record(tmp_path / 'run.json'))
    assert json.loads(read_back) == json.loads(to_json(record))


def test_a_truncated_picture_is_refused_and_the_others_finish(tmp_path):
    scene = write_noise_scene(tmp_path / 'scene', frames=5)
    bad = scene / '641' / '000004_camera0.png'
    bad.write_bytes(bad.read_bytes()[:300])
    record = run_scenario(load_scenario(write_scenario(tmp_path)), tmp_path)
    assert {f.seq: f.outcome for f in record.frames} == {
        0: 'finished', 1: 'finished', 2: 'refused', 3: 'finished', 4: 'finished',
    }  # fmt: skip


def test_a_view_of_a_run_is_written_while_it_runs(tmp_path):
    pytest.importorskip('rerun')
    write_noise_scene(tmp_path / 'scene', frames=5)
    scenario = load_scenario(write_scenario(tmp_path))
    view = view_process('', 0, tmp_path / 'view.rrd')
    # Long enough for the view to come up.
    record = run_scenario(scenario, tmp_path, frames=400, view=view)
    assert [frame.outcome for frame in record.frames] == ['finished'] * 400
    from rerun.chunk import RrdReader

    store = RrdReader(tmp_path / 'view.rrd').store()
    paths = {str(path) for path in store.schema().entity_paths()}
    assert {'/decisions', f'/latency/{STREAM}', f'/cameras/{STREAM}'} <= paths


@pytest.fixture
def lone_device(tmp_path, peer):
    """The device node ``near`` with a plan that gives it the whole model."""
    path = write_scenario(tmp_path)
    with ProcessGroup([device_process(path, '', 'near')], tmp_path / 'logs') as group:
        peer.telemetry = peer.collect(
            DeviceTelemetry, topics.telemetry('', 'near'), qos.telemetry()
        )
        peer.results = peer.collect(FrameResult, topics.result('', STREAM), qos.frames())
        plans = peer.node.create_publisher(PartitionPlan, topics.plan(''), qos.plan())
        plan = Plan(STREAM, MODEL, 'near', 'near', (Stage('near', 0, UNITS),))
        decision = StreamDecision(plan, WEIGHTS, 0.0, 0.0, 0.0)
        fleet_plan = FleetPlan(1, 'test', 'exact', 'test', {STREAM: decision})
        plans.publish(
            conversions.fleet_plan_to_msg(fleet_plan, peer.node.get_clock().now().to_msg())
        )
        peer.wait(lambda: peer.telemetry and list(peer.telemetry[-1].ready_epochs) == [1])
        peer.features = peer.node.create_publisher(
            FeatureMap, topics.features('', 'near'), qos.frames()
        )
        peer.wait(lambda: peer.features.get_subscription_count() > 0)
        yield group
        group.check()


def good_message(seq):
    packet = Packet.of_array(np.full(SPEC.picture_shape, seq, np.uint8), 'raw')
    return conversions.feature_to_msg(Feature(STREAM, seq, 1, 0, packet))


def broken(change):
    message = good_message(100)
    change(message)
    return message


BROKEN = {
    'short data': lambda m: setattr(m, 'data', m.data[:-1]),
    'no data': lambda m: setattr(m, 'data', m.data[:0]),
    'dtype': lambda m: setattr(m, 'dtype', 'object'),
    'shape': lambda m: setattr(m, 'shape', [2**31, 2**31, 3]),
    'epoch': lambda m: setattr(m, 'epoch', 99),
    'unit': lambda m: setattr(m, 'unit', 3),
    'unit beyond the model': lambda m: setattr(m, 'unit', 60000),
    'coding': lambda m: setattr(m, 'coding', 77),
    'stream': lambda m: setattr(m, 'stream', 'nobody'),
    'not a jpeg': lambda m: (
        setattr(m, 'coding', FeatureMap.JPEG),
        setattr(m, 'data', m.data[:99]),
    ),
}


def test_malformed_feature_maps_are_counted_and_the_node_lives_on(lone_device, peer):
    peer.features.publish(good_message(0))
    peer.wait(lambda: len(peer.results) == 1)
    for change in BROKEN.values():
        peer.features.publish(broken(change))
    peer.wait(lambda: peer.telemetry[-1].rejected >= len(BROKEN))
    peer.features.publish(good_message(1))
    peer.wait(lambda: len(peer.results) == 2)
    assert [result.seq for result in peer.results] == [0, 1]
    assert peer.telemetry[-1].rejected == len(BROKEN)
    assert 'refused by near' in peer.telemetry[-1].last_error or 'JPEG' in (
        peer.telemetry[-1].last_error
    )


def test_a_frame_that_comes_twice_is_run_once(lone_device, peer):
    for seq in (0, 0, 1):
        peer.features.publish(good_message(seq))
    peer.wait(lambda: peer.telemetry[-1].duplicates == 1 and len(peer.results) == 2)
    assert [result.seq for result in peer.results] == [0, 1]


def test_a_device_that_cannot_load_its_stage_says_why(tmp_path, peer):
    weights = tmp_path / 'broken.safetensors'
    weights.write_bytes(b'not a weight file')
    path = write_scenario(tmp_path, model={'name': MODEL, 'weights': str(weights)})
    specs = [device_process(path, '', name) for name in ('near', 'far')]
    with ProcessGroup([*specs, planner_process(path, '')], tmp_path / 'logs') as group:
        log = tmp_path / 'logs' / 'device_near.log'
        peer.wait(lambda: 'cannot be loaded' in (log.read_text() if log.exists() else ''))
        assert 'broken.safetensors' in log.read_text()
        group.check()


def test_a_source_without_any_device_waits_and_loses_nothing(tmp_path, peer):
    write_noise_scene(tmp_path / 'scene', frames=3)
    path = write_scenario(tmp_path)
    traces = peer.collect(FrameTrace, topics.frame_traces(''), qos.traces())
    specs = [source_process(path, '', STREAM), planner_process(path, '')]
    with ProcessGroup(specs, tmp_path / 'logs') as group:
        peer.wait(lambda: 'activate done' in (tmp_path / 'logs/planner.log').read_text())
        time.sleep(1.0)
        for name in ('near', 'far'):
            group.start(device_process(path, '', name))
        peer.wait(lambda: len(traces) == 3)
    assert [trace.outcome for trace in traces] == [FrameTrace.FINISHED] * 3


def camera_image(stamp_s, encoding='rgb8'):
    height, width, _ = SPEC.picture_shape
    message = Image(height=height, width=width, encoding=encoding, step=3 * width)
    message.header.stamp.sec = stamp_s
    message.header.frame_id = 'near/camera0_optical'
    message.data.frombytes(np.full((height, width, 3), stamp_s, np.uint8).tobytes())
    return message


def test_live_images_keep_stamp_and_frame_and_bad_ones_are_named(tmp_path, peer):
    streams = {STREAM: {'source': 'near', 'image_topic': '/near/image_raw'}}
    path = write_scenario(tmp_path, streams=streams)
    camera = peer.node.create_publisher(Image, '/near/image_raw', qos.camera())
    results = peer.collect(FrameResult, topics.result('', STREAM), qos.frames())
    diagnostics = peer.collect(DiagnosticArray, topics.DIAGNOSTICS, qos.diagnostics())

    def wait_with(stamp_s, encoding, condition):
        deadline = time.monotonic() + 40
        while not condition():
            camera.publish(camera_image(stamp_s, encoding))
            peer.executor.spin_once(timeout_sec=0.2)
            assert time.monotonic() < deadline

    def told(text):
        lines = [status for message in diagnostics for status in message.status]
        return any('source' in line.name and text in line.message for line in lines)

    specs = [
        source_process(path, '', STREAM),
        planner_process(path, ''),
        *(device_process(path, '', name) for name in ('near', 'far')),
    ]
    with ProcessGroup(specs, tmp_path / 'logs') as group:
        wait_with(7, 'rgb8', lambda: results)
        wait_with(8, '32FC1', lambda: told("'32FC1' is not supported"))
        group.check()
    assert {result.header.frame_id for result in results} == {'near/camera0_optical'}
    assert {result.header.stamp.sec for result in results} == {7}


def test_a_device_can_be_deactivated_and_activated_again(lone_device, peer):
    client = peer.node.create_client(ChangeState, '/near/device/change_state')
    peer.wait(client.service_is_ready)
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
        request = ChangeState.Request()
        request.transition.id = transition
        future = client.call_async(request)
        peer.wait(future.done)
        assert future.result().success
    peer.wait(lambda: peer.features.get_subscription_count() > 0)
    peer.features.publish(good_message(0))
    peer.wait(lambda: len(peer.results) == 1)


def test_an_illegal_lifecycle_transition_does_not_end_a_node(tmp_path, peer):
    path = write_scenario(tmp_path)
    client = peer.node.create_client(ChangeState, '/near/device/change_state')
    telemetry = peer.collect(DeviceTelemetry, topics.telemetry('', 'near'), qos.telemetry())
    with ProcessGroup([device_process(path, '', 'near')], tmp_path / 'logs') as group:
        peer.wait(lambda: telemetry and client.service_is_ready())
        request = ChangeState.Request()
        request.transition.id = Transition.TRANSITION_CONFIGURE  # illegal: it is active
        client.call_async(request)
        log = tmp_path / 'logs' / 'device_near.log'
        peer.wait(lambda: 'illegal' in log.read_text())
        heard = len(telemetry)
        peer.wait(lambda: len(telemetry) > heard)
        group.check()


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'model': {'name': 'test_vitt', 'weights': WEIGHTS}}, "did you mean 'test_vit"),
        ({'devices': {'near': {'class': 'jetson_nan'}}}, 'jetson_nan'),
    ],
)
def test_a_node_with_a_bad_scenario_ends_with_its_reason(tmp_path, changes, text):
    path = write_scenario(tmp_path, **changes)
    with ProcessGroup([planner_process(path, '')], tmp_path / 'logs') as group:
        assert group.process('planner').wait(40) == 1
    assert text in (tmp_path / 'logs/planner.log').read_text()


def test_processes_end_cleanly_on_interrupt(tmp_path):
    path = write_scenario(tmp_path)
    specs = [device_process(path, '', 'near'), planner_process(path, '')]
    with ProcessGroup(specs, tmp_path / 'logs') as group:
        deadline = time.monotonic() + 40
        while 'activate done' not in (tmp_path / 'logs/device_near.log').read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        codes = group.stop()
    assert codes['device_near'] == 0
    assert 'Traceback' not in (tmp_path / 'logs/device_near.log').read_text()

"""The CARLA bridge as a real node, on a double of the server that plays a generated scene."""

import json
import multiprocessing
import os

import numpy as np
import pytest
import yaml

pytest.importorskip('lapdtr_ros.msg')
pytest.importorskip('carla')

from diagnostic_msgs.msg import DiagnosticArray
from doubles import carla_world
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import BatteryState, CameraInfo, Image

from lapdtr_ros import camera_messages, conversions, qos, topics
from lapdtr_ros.bringup import (
    ProcessFailedError,
    ProcessGroup,
    carla_bridge_process,
    evaluator_process,
    fleet_processes,
)
from lapdtr_ros.cosimulation.config import VehicleSection
from lapdtr_ros.datasets.generator import generate
from lapdtr_ros.datasets.opv2v import open_dataset, read_image
from lapdtr_ros.datasets.scene import SceneConfig, build_scene
from lapdtr_ros.msg import Detections, ObjectArray
from lapdtr_ros.nodes.carla_bridge import CarlaBridgeNode, traction_watts
from lapdtr_ros.perception.cooperation import COMPLETE, FusedFrame
from lapdtr_ros.perception.ground_truth import GroundTruthRule, ground_truth
from lapdtr_ros.scenario import load_scenario

SCENE = SceneConfig(seed=4, frames=5, vehicles=2, width=64, height=48)
COSIMULATION = {
    'width': 64,
    'height': 48,
    'traffic': 0,
    'timeout_s': 2.0,
    'vehicles': {'cav_0': {'soc': 0.5}, 'cav_1': {}},
}

# The shipped detector that is quick enough for a test.
TWO_VEHICLES = {
    'name': 'two',
    'model': {
        'name': 'efficientvit_m4:stages.0.blocks.0@384x512+detection',
        'weights': 'efficientvit_m4_detection.safetensors',
    },
    'devices': {name: {'class': 'edge_server'} for name in ('cav_0', 'cav_1')},
    'links': [{'between': ['cav_0', 'cav_1'], 'class': 'wifi6'}],
    'streams': {
        f'{name}/camera0': {
            'source': name,
            'sink': 'cav_0',
            'image_topic': f'/{name}/camera0/image',
        }
        for name in ('cav_0', 'cav_1')
    },
    'fusion': {'ego': 'cav_0', 'deadline_s': 1.0},
}


def bridge(config, scene, arguments, silent_from):
    """Body of the bridge's process."""
    from lapdtr_ros.nodes.base import run_node

    server = carla_world.Server(build_scene(config), open_dataset(scene)[0])
    server.silent_from = silent_from
    os._exit(run_node(lambda: CarlaBridgeNode(server.connect), arguments))


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    return generate(SCENE, tmp_path_factory.mktemp('scene'), progress=False, workers=2)


@pytest.fixture
def start(scene, tmp_path):
    """Start a bridge on the double; its process."""
    path = tmp_path / 'cosimulation.yaml'
    running = []

    def begin(silent_from=None, config=SCENE, recorded=scene, **parameters):
        size = {'width': config.width, 'height': config.height}
        path.write_text(yaml.safe_dump(COSIMULATION | size))
        given = {'cosimulation': str(path), **parameters}
        arguments = ['--ros-args']
        for name, value in given.items():
            arguments += ['-p', f'{name}:={value}']
        process = multiprocessing.get_context('spawn').Process(
            target=bridge, args=(config, recorded, arguments, silent_from)
        )
        process.start()
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.join()


def test_pictures_geometry_and_surroundings_share_one_stamp(peer, scene, start, tmp_path):
    got = {
        kind: peer.collect(kind, topic, profile)
        for kind, topic, profile in (
            (Clock, '/clock', 100),
            (Image, '/cav_0/camera1/image', 100),
            (CameraInfo, topics.camera_info('', 'cav_0/camera1'), 100),
            (ObjectArray, topics.objects('', 'cav_0'), 100),
            (BatteryState, topics.battery_state('', 'cav_0'), 100),
        )
    }
    process = start(ticks=9, real_time_factor=0.05, dump=tmp_path / 'dump')
    peer.wait(lambda: not process.is_alive())
    assert process.exitcode == 0
    stamps = [
        {conversions.time_from_msg(msg.header.stamp) for msg in got[kind]}
        for kind in (Image, CameraInfo, ObjectArray, BatteryState)
    ]
    shared = set.intersection(*stamps)
    assert len(shared) >= 2
    assert len(got[Clock]) > len(got[Image])

    recorded = open_dataset(scene)[0]
    dump = open_dataset(tmp_path / 'dump')[0]
    assert [a.id for a in dump.agents] == [a.id for a in recorded.agents]
    own = recorded.agents[0].id
    for image in got[Image]:
        tick = round(conversions.time_from_msg(image.header.stamp) * 1e-9 / carla_world.STEP_S)
        timestamp = f'{tick - (tick - carla_world.FIRST_TICK) % 2:06d}'
        expected = read_image(recorded.frame(own, timestamp).image_paths[1])
        assert np.array_equal(camera_messages.picture_from_msg(image), expected)
    first, last = got[BatteryState][0], got[BatteryState][-1]
    assert 0 < last.percentage < first.percentage < 0.5
    assert first.current < 0


def test_driving_takes_more_than_standing():
    vehicle = VehicleSection(drive_wh_per_km=100.0, auxiliary_w=300.0)
    assert traction_watts(vehicle, 0.0) == 300.0
    # 10 m/s are 36 km/h: 3.6 kWh each hour.
    assert traction_watts(vehicle, 10.0) == pytest.approx(300.0 + 3600.0)


def test_a_lost_server_is_said_and_ends_the_process_with_an_error(peer, start):
    diagnostics = peer.collect(DiagnosticArray, topics.DIAGNOSTICS, qos.diagnostics())
    process = start(silent_from=carla_world.FIRST_TICK + 4, real_time_factor=0.05)
    peer.wait(lambda: not process.is_alive())
    assert process.exitcode == 1
    assert diagnostics


@pytest.mark.parametrize(
    ('parameters', 'said'),
    [
        ({'host': 'localhost', 'port': 1}, 'localhost:1 did not answer within 2 s'),
        ({'host': 'no-such-host.invalid'}, 'no-such-host'),
    ],
)
def test_the_genuine_client_says_what_is_wrong(tmp_path, parameters, said):
    path = tmp_path / 'cosimulation.yaml'
    path.write_text(yaml.safe_dump(COSIMULATION))
    spec = carla_bridge_process(path, '', **parameters)
    with ProcessGroup([spec], tmp_path / 'logs') as group:
        group.process('carla_bridge').wait(40)
        with pytest.raises(ProcessFailedError, match=said):
            group.check()


def test_two_hundred_ticks_go_through_a_fleet_to_average_precision(start, tmp_path):
    config = SceneConfig(seed=4, frames=100, vehicles=2, width=192, height=144)
    recorded = generate(config, tmp_path / 'scene', progress=False, workers=2)
    path = tmp_path / 'scenario.yaml'
    path.write_text(yaml.safe_dump(TWO_VEHICLES), encoding='utf-8')
    scenario = load_scenario(path)
    out = tmp_path / 'accuracy.json'
    specs = [*fleet_processes(scenario), evaluator_process(path, '', str(out))]
    with ProcessGroup(specs, tmp_path / 'logs') as group:
        process = start(None, config, recorded, ticks=200, real_time_factor=0.5)
        process.join(120.0)
        assert process.exitcode == 0
        assert set(group.stop().values()) == {0}
    figures = json.loads(out.read_text())
    # A slow machine skips pictures, and the fusion starts when the fleet is ready.
    assert figures['frames'] >= 20
    assert figures['ground_truths'] > figures['frames']
    assert 0.0 <= figures['ap50'] <= figures['ap30'] <= 1.0
    assert figures['ap30'] > 0.0


def test_detections_are_measured_against_what_vehicles_list(peer, scene, tmp_path):
    recorded = open_dataset(scene)[0]
    timestamp = recorded.timestamps[0]
    views = {f'cav_{n}': recorded.frame(a.id, timestamp) for n, a in enumerate(recorded.agents)}
    truth = ground_truth(views, 'cav_0', GroundTruthRule())
    scenario = tmp_path / 'scenario.yaml'
    scenario.write_text(
        yaml.safe_dump(
            {
                'name': 'two',
                'model': {'name': 'test_vit@64x96+detection', 'weights': 'random:0'},
                'devices': {name: {'class': 'edge_server'} for name in views},
                'links': [{'between': ['cav_0', 'cav_1'], 'class': 'wifi6'}],
                'streams': {
                    f'{name}/camera0': {'source': name, 'image_topic': f'/{name}/camera0/image'}
                    for name in views
                },
                'fusion': {'ego': 'cav_0'},
            }
        )
    )
    out = tmp_path / 'accuracy.json'
    with ProcessGroup([evaluator_process(scenario, '', str(out))], tmp_path / 'logs') as group:
        publishers = []
        for name, view in views.items():
            labels = view.vehicles.values()
            for topic, msg in (
                (topics.lidar_pose('', name), conversions.lidar_pose_to_msg(view.lidar_pose, 7)),
                (topics.objects('', name), conversions.objects_to_msg(labels, 7, name)),
            ):
                publishers.append(
                    (peer.node.create_publisher(type(msg), topic, qos.geometry()), msg)
                )
        frame = FusedFrame(7, 'cav_0', 'nms', COMPLETE, tuple(views), (), (), 0.0, 0, truth)
        msg = conversions.detections_to_msg(frame)
        topic = topics.detections('')
        publishers.append((peer.node.create_publisher(Detections, topic, qos.detections()), msg))
        peer.wait(lambda: all(p.get_subscription_count() for p, _ in publishers))
        for publisher, msg in publishers:
            publisher.publish(msg)
        assert all(publisher.wait_for_all_acked() for publisher, _ in publishers)
        peer.wait(lambda: 'AP50' in _diagnosis(peer))
        assert group.stop() == {'evaluator': 0}
    figures = json.loads(out.read_text())
    assert figures['ap70'] == 1.0
    assert figures['frames'] == 1
    assert figures['ground_truths'] > 0


def _diagnosis(peer):
    if not hasattr(peer, 'diagnostics'):
        peer.diagnostics = peer.collect(DiagnosticArray, topics.DIAGNOSTICS, qos.diagnostics())
    return ' '.join(s.message for m in peer.diagnostics for s in m.status)

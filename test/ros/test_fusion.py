"""The fusion node in a process of its own, fed over DDS by two vehicles that the test plays."""

import dataclasses

import numpy as np
import pytest
import yaml

pytest.importorskip('lapdtr_ros.msg')

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TransformStamped
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParametersAtomically
from sensor_msgs.msg import CameraInfo
from visualization_msgs.msg import MarkerArray

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.bringup import ProcessGroup, fusion_process
from lapdtr_ros.datasets.scene import CAMERA_MOUNTS, LIDAR_MOUNT, mounted
from lapdtr_ros.evaluation.detected import detection_grid
from lapdtr_ros.execution.frames import Packet, Result
from lapdtr_ros.msg import Detections, FrameResult, FrameTrace
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.cooperation import PinholeCamera, View
from lapdtr_ros.perception.detection_targets import encode_targets
from lapdtr_ros.perception.fusion import FusionSettings, fuse
from lapdtr_ros.perception.poses import camera_intrinsic, pose_to_matrix

MODEL = 'test_vit@64x96+detection'
GRID = detection_grid(MODEL)
SIZE = (GRID.height, GRID.width)
STREAMS = {'a/camera0': 'a', 'a/camera1': 'a', 'b/camera0': 'b'}
POSES = {
    'a': (100.0, -50.0, 1.9, 0.0, 30.0, 0.0),
    'b': (125.0, -38.0, 1.9, 1.0, 200.0, -2.0),
}
ORIGIN = (0.0,) * 6
STEP_NS = 100_000_000


def camera(stream):
    lidar, body = mounted(ORIGIN, LIDAR_MOUNT), mounted(ORIGIN, CAMERA_MOUNTS[int(stream[-1])])
    extrinsic = np.linalg.inv(pose_to_matrix(body)) @ pose_to_matrix(lidar)
    return PinholeCamera(camera_intrinsic(GRID.width, GRID.height, 100.0), extrinsic)


CAMERAS = {stream: camera(stream) for stream in STREAMS}
SEEN = {
    'a/camera0': [(14.0, 1.0, -1.2, 4.4, 1.9, 1.5, 0.3), (25.0, -6.0, -1.2, 4.0, 1.8, 1.5, 3.0)],
    'a/camera1': [(-1.0, 9.0, -1.2, 4.6, 1.9, 1.6, 1.0)],
    'b/camera0': [(9.0, -2.0, -1.2, 4.2, 1.8, 1.5, 2.0)],
}


def view(stream, stamp_ns):
    """What a perfect head says about what the stream sees."""
    boxes = Boxes.from_vectors(SEEN[stream])
    values = encode_targets(boxes, CAMERAS[stream], GRID).values
    vehicle = STREAMS[stream]
    return View(stream, vehicle, stamp_ns, CAMERAS[stream], POSES[vehicle], values)


def offline(stamp_ns, streams, **changes):
    found = [view(stream, stamp_ns).decode(GRID, 0.05) for stream in streams]
    return fuse(found, 'a', POSES['a'], FusionSettings(**changes))


class Vehicles:
    """Plays both vehicles and listens to what the fusion node says."""

    def __init__(self, peer):
        self.wait, self.node = peer.wait, peer.node
        self.fused = peer.collect(Detections, topics.detections(''), qos.detections())
        self.markers = peer.collect(MarkerArray, topics.detection_markers(''), qos.detections())
        self.diagnostics = peer.collect(DiagnosticArray, topics.DIAGNOSTICS, qos.diagnostics())
        create = peer.node.create_publisher
        self.poses = {
            vehicle: create(PoseStamped, topics.lidar_pose('', vehicle), qos.geometry())
            for vehicle in POSES
        }
        self.infos, self.mounts, self.results = (
            {stream: create(kind, topic('', stream), profile) for stream in STREAMS}
            for kind, topic, profile in (
                (CameraInfo, topics.camera_info, qos.geometry()),
                (TransformStamped, topics.mount, qos.geometry()),
                (FrameResult, topics.result, qos.frames()),
            )
        )
        self.traces = create(FrameTrace, topics.frame_traces(''), qos.traces())

    def publishers(self):
        groups = (self.poses, self.infos, self.mounts, self.results)
        return [*(p for group in groups for p in group.values()), self.traces]

    def wait_for_fusion(self):
        self.wait(lambda: all(p.get_subscription_count() for p in self.publishers()))

    def place(self, stream, stamp_ns):
        eye, vehicle = CAMERAS[stream], STREAMS[stream]
        self.infos[stream].publish(
            conversions.camera_info_to_msg(eye.intrinsic, SIZE, stamp_ns, stream)
        )
        self.mounts[stream].publish(
            conversions.mount_to_msg(eye.extrinsic, stamp_ns, f'{vehicle}/lidar', stream)
        )
        self.poses[vehicle].publish(conversions.lidar_pose_to_msg(POSES[vehicle], stamp_ns))

    def result(self, stream, stamp_ns):
        packet = Packet.of_array(view(stream, stamp_ns).values[None])
        result = Result(stream, stamp_ns // STEP_NS, 1, 'x', packet, stamp_ns, stream)
        return conversions.result_to_msg(result)

    def deliver(self, stream, stamp_ns):
        self.place(stream, stamp_ns)
        self.results[stream].publish(self.result(stream, stamp_ns))

    def fused_at(self, stamp_ns):
        def found():
            return [m for m in self.fused if conversions.time_from_msg(m.header.stamp) == stamp_ns]

        self.wait(found)
        (message,) = found()
        return conversions.detections_from_msg(message)

    def diagnosis(self):
        lines = [s for message in self.diagnostics for s in message.status if 'fusion' in s.name]
        return {pair.key: pair.value for pair in lines[-1].values} if lines else {}


@pytest.fixture
def vehicles(peer):
    return Vehicles(peer)


def write_scenario(folder, **changes):
    content = {
        'name': 'test',
        'model': {'name': MODEL, 'weights': 'random:0'},
        'devices': {'a': {'class': 'raspberry_pi_4'}, 'b': {'class': 'raspberry_pi_4'}},
        'streams': {stream: {'source': vehicle} for stream, vehicle in STREAMS.items()},
        'fusion': {'ego': 'a', 'deadline_s': 60.0},
        **changes,
    }
    path = folder / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


def fusion(folder, **parameters):
    spec = fusion_process(write_scenario(folder), '', listeners=1)
    spec = dataclasses.replace(spec, parameters={**spec.parameters, **parameters})
    return ProcessGroup([spec], folder / 'logs')


def set_parameter(vehicles, name, value):
    client = vehicles.node.create_client(
        SetParametersAtomically, '/fusion/set_parameters_atomically'
    )
    vehicles.wait(client.service_is_ready)
    request = SetParametersAtomically.Request(
        parameters=[Parameter(name=name, value=ParameterValue(type=4, string_value=value))]
    )
    future = client.call_async(request)
    vehicles.wait(future.done)
    return future.result().result


def test_what_two_vehicles_see_is_merged_as_offline(tmp_path, vehicles):
    with fusion(tmp_path) as group:
        vehicles.wait_for_fusion()
        stamps = [STEP_NS * n for n in (1, 2)]
        # The second moment arrives inside out, and completes first.
        for stream in reversed(STREAMS):
            vehicles.results[stream].publish(vehicles.result(stream, stamps[1]))
            vehicles.place(stream, stamps[1])
        for stream in STREAMS:
            vehicles.deliver(stream, stamps[0])
        for stamp in stamps:
            frame = vehicles.fused_at(stamp)
            expected = offline(stamp, STREAMS)
            assert len(expected) == 4
            np.testing.assert_allclose(frame.boxes.vectors, expected.vectors, atol=1e-6)
            np.testing.assert_allclose(frame.boxes.scores, expected.scores, atol=1e-6)
            assert (frame.status, frame.missing, frame.ego) == ('complete', (), 'a')
        vehicles.wait(lambda: len(vehicles.markers) == 2)
        assert len(vehicles.markers[0].markers) == 1 + 3 * 4

        # Lost and refused frames are not waited for.
        stamp = STEP_NS * 3
        refused = FrameTrace(stream='b/camera0', outcome=FrameTrace.REFUSED)
        refused.header.stamp = conversions.time_to_msg(stamp)
        vehicles.traces.publish(refused)
        for stream in ('a/camera0', 'a/camera1'):
            vehicles.deliver(stream, stamp)
        frame = vehicles.fused_at(stamp)
        assert (frame.status, frame.missing) == ('partial', ('b/camera0',))

        # Users change the way of merging while it runs, and mistakes are told.
        result = set_parameter(vehicles, 'method', 'nmms')
        assert not result.successful
        assert 'nmms' in result.reason
        assert 'noisy_or' in set_parameter(vehicles, 'score_rule', 'noisy').reason
        for number, changes in enumerate(({'score_rule': 'mean'}, {'method': 'nms'})):
            for name, value in changes.items():
                assert set_parameter(vehicles, name, value).successful
            stamp = STEP_NS * (4 + number)
            for stream in STREAMS:
                vehicles.deliver(stream, stamp)
            frame, expected = vehicles.fused_at(stamp), offline(stamp, STREAMS, **changes)
            assert frame.method == changes.get('method', 'wbf')
            np.testing.assert_allclose(frame.boxes.vectors, expected.vectors, atol=1e-6)
            np.testing.assert_allclose(frame.boxes.scores, expected.scores, atol=1e-6)
        group.check()


def test_the_same_boxes_go_out_as_vision_messages(tmp_path, peer, vehicles):
    messages = pytest.importorskip('vision_msgs.msg')
    kind = messages.Detection3DArray
    heard = peer.collect(kind, topics.vision_detections(''), qos.detections())
    with fusion(tmp_path):
        vehicles.wait_for_fusion()
        vehicles.wait(lambda: peer.node.count_publishers(topics.vision_detections('')))
        for stream in STREAMS:
            vehicles.deliver(stream, STEP_NS)
        frame = vehicles.fused_at(STEP_NS)
        vehicles.wait(lambda: heard)
    (message,) = heard
    scores = [one.results[0].hypothesis.score for one in message.detections]
    np.testing.assert_allclose(scores, frame.boxes.scores, atol=1e-6)
    forward = [one.bbox.center.position.x for one in message.detections]
    np.testing.assert_allclose(forward, frame.boxes.centers[:, 0], atol=1e-6)


def test_a_silent_vehicle_is_named_at_the_deadline_and_late_and_bad_results_are_counted(
    tmp_path, vehicles
):
    with fusion(tmp_path, deadline_s=0.3) as group:
        vehicles.wait_for_fusion()
        vehicles.results['b/camera0'].publish(vehicles.result('b/camera0', 100 * STEP_NS))
        vehicles.wait(lambda: vehicles.diagnosis().get('waiting') == '1')

        stamp = STEP_NS
        for stream in ('a/camera0', 'a/camera1'):
            vehicles.deliver(stream, stamp)
        frame = vehicles.fused_at(stamp)
        assert (frame.status, frame.missing) == ('partial', ('b/camera0',))
        assert 0.3 <= frame.age_s < 3.0
        np.testing.assert_allclose(
            frame.boxes.vectors, offline(stamp, ('a/camera0', 'a/camera1')).vectors, atol=1e-6
        )
        vehicles.deliver('b/camera0', stamp)
        vehicles.wait(lambda: vehicles.diagnosis().get('late') == '1')

        # An ego that says nothing leaves the others without a frame.
        vehicles.deliver('b/camera0', 2 * stamp)
        frame = vehicles.fused_at(2 * stamp)
        assert (frame.status, len(frame.boxes), frame.late) == ('no_ego_pose', 0, 1)

        wrong_shape = vehicles.result('a/camera0', 3 * stamp)
        wrong_shape.shape = [1, 9, GRID.columns, GRID.rows]
        vehicles.results['a/camera0'].publish(wrong_shape)
        cut = vehicles.result('a/camera0', 3 * stamp)
        cut.data = cut.data[:-4]
        vehicles.results['a/camera0'].publish(cut)
        vehicles.infos['a/camera0'].publish(CameraInfo())
        vehicles.wait(lambda: vehicles.diagnosis().get('rejected') == '3')
        vehicles.deliver('a/camera0', 4 * stamp)
        assert len(vehicles.fused_at(4 * stamp).boxes) == 2
        assert len(vehicles.fused) == 3
        group.check()


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'model': {'name': 'test_vit', 'weights': 'random:0'}}, 'add +detection'),
        ({'fusion': None}, 'no fusion section'),
    ],
)
def test_a_fusion_that_cannot_work_ends_with_its_reason(tmp_path, changes, text):
    path = write_scenario(tmp_path, **changes)
    with ProcessGroup([fusion_process(path, '')], tmp_path / 'logs') as group:
        assert group.process('fusion').wait(60) == 1
    assert text in (tmp_path / 'logs' / 'fusion.log').read_text()

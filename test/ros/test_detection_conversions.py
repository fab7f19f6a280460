"""Detections, cameras and poses as messages: nothing is lost, and the axes are those of REP 103."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip('lapdtr_ros.msg')

from geometry_msgs.msg import PoseStamped
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo
from visualization_msgs.msg import Marker

from lapdtr_ros import conversions
from lapdtr_ros.datasets.scene import CAMERA_MOUNTS, LIDAR_MOUNT, mounted
from lapdtr_ros.perception.boxes import BoxError, Boxes
from lapdtr_ros.perception.cooperation import COMPLETE, NO_EGO_POSE, PARTIAL, FusedFrame
from lapdtr_ros.perception.poses import camera_intrinsic, pose_to_matrix

names = st.text('abc_0123/', min_size=1, max_size=8)
lists = st.lists(names, max_size=3).map(tuple)
numbers = st.floats(-1e3, 1e3)
sizes = st.floats(0.1, 20.0)
rows = st.tuples(numbers, numbers, numbers, sizes, sizes, sizes, st.floats(-math.pi, math.pi))


@st.composite
def boxes(draw):
    vectors = draw(st.lists(rows, max_size=4))
    score = st.lists(st.floats(0, 1), min_size=len(vectors), max_size=len(vectors))
    stream = st.lists(st.integers(-1, 30), min_size=len(vectors), max_size=len(vectors))
    return Boxes.from_vectors(vectors, draw(score), draw(stream))


fused = st.builds(
    FusedFrame,
    stamp_ns=st.integers(0, 2**31 * 10**9 - 1),
    ego=names,
    method=st.sampled_from(['nms', 'wbf']),
    status=st.sampled_from([COMPLETE, PARTIAL, NO_EGO_POSE]),
    streams=lists,
    missing=lists,
    out_of_range=lists,
    age_s=st.floats(0, 100),
    late=st.integers(0, 2**40),
    boxes=boxes(),
)


def over_the_wire(message):
    return deserialize_message(serialize_message(message), type(message))


def one_box(**changes):
    # The vehicle of the fixture in the format's description: ahead and to the right, in CARLA axes.
    vector = (23.1058, 3.1144, -1.23, 4.9, 2.12, 1.51, math.radians(45))
    fields = {
        'stamp_ns': 3_450_000_000,
        'ego': 'cav_641',
        'method': 'nms',
        'status': COMPLETE,
        'streams': ('cav_641/camera0',),
        'missing': (),
        'out_of_range': (),
        'age_s': 0.1,
        'late': 0,
        'boxes': Boxes.from_vectors([vector], [0.75], [0]),
    }
    return FusedFrame(**{**fields, **changes})


@given(fused)
def test_detections_survive_the_wire(frame):
    back = conversions.detections_from_msg(over_the_wire(conversions.detections_to_msg(frame)))
    for name, value in vars(frame).items():
        if name != 'boxes':
            assert getattr(back, name) == value
    np.testing.assert_array_equal(back.boxes.vectors, frame.boxes.vectors)
    np.testing.assert_array_equal(back.boxes.scores, frame.boxes.scores)
    np.testing.assert_array_equal(back.boxes.ids, frame.boxes.ids)


def test_right_of_the_vehicle_is_negative_y_and_turning_left_is_positive_yaw():
    message = conversions.detections_to_msg(one_box())
    (detection,) = message.detections
    assert (detection.x, detection.y, detection.z) == (23.1058, -3.1144, -1.23)
    assert detection.yaw == pytest.approx(math.radians(-45))
    assert (detection.length, detection.width, detection.height) == (4.9, 2.12, 1.51)
    assert message.header.frame_id == 'cav_641/lidar'
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (3, 450_000_000)


def test_ahead_and_to_the_left_is_positive_y():
    vector = (10.0, -4.0, -1.0, 4.0, 2.0, 1.5, 0.0)
    message = conversions.detections_to_msg(one_box(boxes=Boxes.from_vectors([vector])))
    assert message.detections[0].y == 4.0


def test_a_detection_that_is_not_finite_is_refused():
    message = conversions.detections_to_msg(one_box())
    message.detections[0].x = math.nan
    with pytest.raises(BoxError, match='NaN'):
        conversions.detections_from_msg(message)


def test_markers_delete_the_old_ones_and_show_box_heading_and_score():
    message = over_the_wire(conversions.markers_to_msg(one_box(), lifetime_s=1.5))
    first, cube, arrow, text = message.markers
    assert first.action == Marker.DELETEALL
    assert (cube.type, arrow.type, text.type) == (
        Marker.CUBE,
        Marker.ARROW,
        Marker.TEXT_VIEW_FACING,
    )
    assert (cube.scale.x, cube.scale.y, cube.scale.z) == (4.9, 2.12, 1.51)
    assert cube.pose.position.y == -3.1144
    assert 2 * math.atan2(cube.pose.orientation.z, cube.pose.orientation.w) == pytest.approx(
        math.radians(-45)
    )
    assert arrow.pose.orientation == cube.pose.orientation
    assert text.text == '0.75'
    assert text.pose.position.z > cube.pose.position.z + 0.5 * cube.scale.z
    for marker in (cube, arrow, text):
        assert marker.header.frame_id == 'cav_641/lidar'
        assert marker.header.stamp.sec == 3
        assert (marker.lifetime.sec, marker.lifetime.nanosec) == (1, 500_000_000)
        assert marker.color.a > 0
    assert len({(marker.ns, marker.id) for marker in message.markers[1:]}) == 3


def test_no_detections_still_delete_the_old_markers():
    message = conversions.markers_to_msg(one_box(boxes=Boxes.empty()), 1.0)
    assert [marker.action for marker in message.markers] == [Marker.DELETEALL]


def test_vision_messages_hold_the_same_box():
    messages = pytest.importorskip('vision_msgs.msg')
    message = over_the_wire(conversions.vision_detections_to_msg(one_box(), messages))
    (detection,) = message.detections
    assert detection.bbox.center.position.y == -3.1144
    assert detection.bbox.size.x == 4.9
    assert detection.results[0].hypothesis.score == 0.75


INTRINSIC = camera_intrinsic(96, 64, 100.0)


def test_intrinsics_survive_and_follow_the_size_of_the_picture():
    message = over_the_wire(conversions.camera_info_to_msg(INTRINSIC, (64, 96), 7, 'a/camera0'))
    np.testing.assert_array_equal(conversions.intrinsic_from_msg(message, (64, 96)), INTRINSIC)
    doubled = conversions.intrinsic_from_msg(message, (128, 192))
    np.testing.assert_allclose(doubled, np.diag([2, 2, 1]) @ INTRINSIC)
    assert message.header.frame_id == 'a/camera0_optical'
    assert message.header.stamp.nanosec == 7
    assert (message.height, message.width) == (64, 96)


def test_a_camera_without_calibration_is_refused():
    with pytest.raises(conversions.GeometryError, match='not calibrated'):
        conversions.intrinsic_from_msg(CameraInfo(width=96, height=64), (64, 96))


@given(
    st.tuples(
        numbers, numbers, numbers, st.floats(-180, 180), st.floats(-180, 180), st.floats(-89, 89)
    )
)
def test_lidar_poses_survive_the_wire(pose):
    message = over_the_wire(conversions.lidar_pose_to_msg(pose, 5))
    assert message.header.frame_id == 'map'
    back = conversions.lidar_pose_from_msg(message)
    np.testing.assert_allclose(pose_to_matrix(back), pose_to_matrix(pose), atol=1e-8)


def test_a_pose_in_another_frame_or_without_numbers_is_refused():
    message = conversions.lidar_pose_to_msg((0.0,) * 6, 0)
    message.pose.position.x = math.nan
    with pytest.raises(conversions.GeometryError, match='no pose'):
        conversions.lidar_pose_from_msg(message)
    odometry = PoseStamped()
    odometry.header.frame_id = 'odom'
    with pytest.raises(conversions.GeometryError, match="'odom'"):
        conversions.lidar_pose_from_msg(odometry)


def test_mounts_survive_and_the_right_camera_sits_right_and_looks_right():
    origin = (0.0,) * 6
    lidar, camera = mounted(origin, LIDAR_MOUNT), mounted(origin, CAMERA_MOUNTS[1])
    extrinsic = np.linalg.inv(pose_to_matrix(camera)) @ pose_to_matrix(lidar)
    message = over_the_wire(conversions.mount_to_msg(extrinsic, 0, 'a/lidar', 'a/camera1'))
    np.testing.assert_allclose(conversions.extrinsic_from_msg(message), extrinsic, atol=1e-12)
    assert (message.header.frame_id, message.child_frame_id) == ('a/lidar', 'a/camera1')
    moved = message.transform.translation
    assert (moved.x, moved.y, moved.z) == pytest.approx((0.5, -0.3, -0.1))
    rotation = message.transform.rotation
    assert 2 * math.atan2(rotation.z, rotation.w) == pytest.approx(math.radians(-100))

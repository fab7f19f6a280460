"""Box corners, projection and the ROS boundary, against the fixture checked with CARLA."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapdtr_ros.perception import geometry
from lapdtr_ros.perception.poses import camera_intrinsic, pose_to_matrix

LIDAR = (99.566987, -50.25, 1.95, 0, 30, 0)
CAMERA0 = (102.165064, -48.75, 1.05, 0, 30, 0)
CAMERA1 = (99.85, -49.740192, 1.85, 0, 130, 0)
INTRINSIC = camera_intrinsic(800, 600, 100.0)
VEHICLE = {
    'locations': [[118.0, -36.0, 0.0]],
    'angles': [[0.0, 75.0, 0.0]],
    'centers': [[0.02, 0.0, 0.72]],
    'extents': [[2.45, 1.06, 0.755]],
}

finite = st.floats(-100.0, 100.0)
angle = st.floats(-180.0, 180.0)


def fixture_corners(variant=geometry.OPENCOOD):
    world = geometry.vehicle_corners(**VEHICLE, variant=variant)
    return geometry.transform_points(np.linalg.inv(pose_to_matrix(LIDAR)), world)


def test_fixture_vehicle_has_the_corners_of_carla():
    corners = fixture_corners()[0]
    expected = [(25.5877, 4.0972), (24.0887, 5.5963), (20.6238, 2.1315), (22.1229, 0.6324)]
    np.testing.assert_allclose(corners[:4, :2], expected, atol=1e-4)
    np.testing.assert_allclose(corners[4:, :2], expected, atol=1e-4)
    np.testing.assert_allclose(corners[:4, 2], -1.985, atol=1e-6)
    np.testing.assert_allclose(corners[4:, 2], -0.475, atol=1e-6)


def test_fixture_vehicle_becomes_the_expected_box():
    box = geometry.corners_to_boxes(fixture_corners())[0]
    np.testing.assert_allclose(
        box, [23.1058, 3.1144, -1.23, 4.9, 2.12, 1.51, np.radians(45.0)], atol=1e-4
    )


def test_exact_variant_turns_the_centre_offset():
    exact = geometry.vehicle_corners(**VEHICLE, variant=geometry.EXACT)
    opencood = geometry.vehicle_corners(**VEHICLE, variant=geometry.OPENCOOD)
    assert np.abs(exact - opencood).max() == pytest.approx(0.0193, abs=5e-5)
    cos, sin = np.cos(np.radians(75.0)), np.sin(np.radians(75.0))
    np.testing.assert_allclose(
        exact[0].mean(axis=0), [118.0 + 0.02 * cos, -36.0 + 0.02 * sin, 0.72]
    )


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match='carla'):
        geometry.vehicle_corners(**VEHICLE, variant='carla')


def test_no_vehicles_have_no_corners():
    assert geometry.vehicle_corners([], [], [], []).shape == (0, 8, 3)


def test_relative_transform_gives_the_extrinsics_of_the_fixture():
    np.testing.assert_allclose(
        geometry.relative_transform(LIDAR, CAMERA0),
        [[1, 0, 0, -3], [0, 1, 0, 0], [0, 0, 1, 0.9], [0, 0, 0, 1]],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        geometry.relative_transform(LIDAR, CAMERA1)[:3],
        [
            [-0.173648, 0.984808, 0, -0.208618],
            [-0.984808, -0.173648, 0, 0.544498],
            [0, 0, 1, 0.1],
        ],
        atol=1e-6,
    )


def test_fixture_vehicle_projects_to_the_expected_pixels():
    extrinsic = geometry.relative_transform(LIDAR, CAMERA0)
    pixels, depth = geometry.project_to_image(fixture_corners()[0], extrinsic, INTRINSIC)
    expected = [
        (460.88, 316.12),
        (489.07, 317.27),
        (440.59, 320.66),
        (411.10, 319.04),
        (460.88, 293.68),
        (489.07, 293.24),
        (440.59, 291.91),
        (411.10, 292.54),
    ]
    np.testing.assert_allclose(pixels, expected, atol=6e-3)
    assert (depth > 17.0).all()


def test_points_behind_a_camera_have_no_pixel():
    extrinsic = geometry.relative_transform(LIDAR, CAMERA1)
    pixels, depth = geometry.project_to_image([[20.0, -9.0, -1.0]], extrinsic, INTRINSIC)
    assert np.isnan(pixels).all()
    assert depth[0] < 0.0


def test_pixel_ray_at_the_depth_of_a_point_meets_the_point():
    points = np.array([[23.0, 3.0, -1.2], [15.0, -6.0, 0.4]])
    extrinsic = geometry.relative_transform(LIDAR, (*CAMERA0[:3], 3.0, 25.0, -4.0))
    pixels, depth = geometry.project_to_image(points, extrinsic, INTRINSIC)
    origin, directions = geometry.pixel_rays(pixels, extrinsic, INTRINSIC)
    np.testing.assert_allclose(origin + depth[:, None] * directions, points, atol=1e-9)


def test_ground_depth_is_where_the_ray_meets_the_road():
    extrinsic = geometry.relative_transform(LIDAR, CAMERA0)
    pixels = np.array([[400.0, 400.0], [250.0, 310.0], [400.0, 300.0], [400.0, 200.0]])
    origin, directions = geometry.pixel_rays(pixels, extrinsic, INTRINSIC)
    depth = geometry.ground_depth(origin, directions, ground_z=-1.95)
    # Camera 1.05 m above the road, level: depth = height * focal / rows below the horizon.
    np.testing.assert_allclose(depth[:2], 1.05 * INTRINSIC[0, 0] / np.array([100.0, 10.0]))
    assert np.isinf(depth[2:]).all()


@given(finite, finite, angle, st.floats(1.0, 12.0), st.floats(0.5, 0.99), st.floats(0.5, 4.0))
def test_boxes_survive_the_way_over_corners(x, y, yaw, length, ratio, height):
    box = np.array([[x, y, -1.0, length, length * ratio, height, np.radians(yaw)]])
    back = geometry.corners_to_boxes(geometry.box_corners(box))
    np.testing.assert_allclose(back[:, :6], box[:, :6], atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * back[:, 6]), np.exp(1j * box[:, 6]), atol=1e-9)


def test_yaw_of_an_oncoming_tilted_vehicle_does_not_break_at_pi():
    world = geometry.vehicle_corners([[0, 0, 0]], [[0, 0, 0]], [[2, 1, 1]], [[5.0, 180.0, 5.0]])
    yaw = geometry.corners_to_boxes(world)[0, 6]
    assert abs(abs(yaw) - np.pi) < 0.02


@given(finite, finite, finite, angle, angle, st.floats(-89.0, 89.0))
def test_ros_pose_is_the_mirrored_carla_pose(x, y, z, roll, yaw, pitch):
    position, (qx, qy, qz, qw) = geometry.pose_to_ros((x, y, z, roll, yaw, pitch))
    rotation = np.array(
        [
            [1 - 2 * (qy**2 + qz**2), 2 * (qx * qy - qz * qw), 2 * (qx * qz + qy * qw)],
            [2 * (qx * qy + qz * qw), 1 - 2 * (qx**2 + qz**2), 2 * (qy * qz - qx * qw)],
            [2 * (qx * qz - qy * qw), 2 * (qy * qz + qx * qw), 1 - 2 * (qx**2 + qy**2)],
        ]
    )
    mirror = np.diag([1.0, -1.0, 1.0])
    carla = pose_to_matrix((x, y, z, roll, yaw, pitch))
    np.testing.assert_allclose(rotation, mirror @ carla[:3, :3] @ mirror, atol=1e-9)
    np.testing.assert_allclose(position, mirror @ carla[:3, 3], atol=1e-9)


def test_boxes_keep_their_corners_in_ros_axes():
    box = np.array([[10.0, 3.0, -1.0, 4.0, 2.0, 1.5, 0.4]])
    mirrored = geometry.box_corners(box) * (1.0, -1.0, 1.0)
    ros = geometry.box_corners(geometry.flip_handedness(box))
    # Mirroring swaps left and right, so the same points come in another order.
    np.testing.assert_allclose(ros[0, [1, 0, 3, 2]], mirrored[0, :4], atol=1e-12)
    np.testing.assert_array_equal(geometry.flip_handedness(geometry.flip_handedness(box)), box)


@given(st.floats(-3.1, 3.1))
def test_yaw_survives_the_quaternion(yaw):
    assert geometry.yaw_from_quaternion(geometry.quaternion_from_yaw(yaw)) == pytest.approx(yaw)


def test_quaternion_of_a_level_pose_is_that_of_its_mirrored_yaw():
    _, quaternion = geometry.pose_to_ros((0, 0, 0, 0, 30.0, 0))
    np.testing.assert_allclose(quaternion, geometry.quaternion_from_yaw(-np.radians(30.0)))


def test_wrapped_angles_lie_within_a_turn():
    np.testing.assert_allclose(
        geometry.wrap_angle([0.5, 0.5 + 4 * np.pi, np.pi]), [0.5, 0.5, -np.pi]
    )

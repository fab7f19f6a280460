"""Who counts as ground truth of a cooperative frame."""

import numpy as np
import pytest

from lapdtr_ros.datasets.opv2v import AgentFrame, CameraModel, VehicleLabel
from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.perception.boxes import GT_RANGE, Limits
from lapdtr_ros.perception.geometry import EXACT, relative_transform
from lapdtr_ros.perception.ground_truth import (
    CAMERA_LABELS,
    GroundTruthRule,
    agents_in_range,
    ground_truth,
)
from lapdtr_ros.perception.poses import camera_intrinsic

FIXTURE_LIDAR = (99.566987, -50.25, 1.95, 0.0, 30.0, 0.0)


def vehicle(number, x, y, yaw=0.0, center=(0.0, 0.0, 0.75)):
    return VehicleLabel(number, (x, y, 0.0), center, (2.0, 1.0, 0.75), (0.0, yaw, 0.0), 0.0)


def agent(x, y, vehicles=(), yaw=0.0, camera_yaws=(0.0,), lidar_pose=None):
    lidar = lidar_pose or (x, y, 1.9, 0.0, yaw, 0.0)
    cameras = {}
    for number, camera_yaw in enumerate(camera_yaws):
        pose = (*lidar[:2], 1.5, 0.0, yaw + camera_yaw, 0.0)
        cameras[number] = CameraModel(
            pose, camera_intrinsic(800, 600, 100.0), relative_transform(lidar, pose)
        )
    return AgentFrame(
        timestamp='000060',
        lidar_pose=lidar,
        true_ego_pos=(x, y, 0.0, 0.0, yaw, 0.0),
        predicted_ego_pos=(x, y, 0.0, 0.0, yaw, 0.0),
        ego_speed=0.0,
        plan_trajectory=(),
        cameras=cameras,
        vehicles={label.id: label for label in vehicles},
    )


def test_fixture_vehicle_appears_in_the_ego_frame():
    label = VehicleLabel(
        7, (118.0, -36.0, 0.0), (0.02, 0.0, 0.72), (2.45, 1.06, 0.755), (0.0, 75.0, 0.0), 0.0
    )
    boxes = ground_truth({1: agent(0, 0, [label], lidar_pose=FIXTURE_LIDAR)}, 1)
    np.testing.assert_allclose(
        boxes.vectors[0], [23.1058, 3.1144, -1.23, 4.9, 2.12, 1.51, np.radians(45)], atol=1e-4
    )
    np.testing.assert_array_equal(boxes.ids, [7])
    np.testing.assert_array_equal(boxes.scores, [1.0])


def test_labels_of_agents_in_range_are_united_and_the_first_one_wins():
    frame = {
        2: agent(30, 0, [vehicle(8, 40, 0), vehicle(9, 51, 0), vehicle(1, 0, 0)]),
        1: agent(0, 0, [vehicle(9, 50, 0), vehicle(2, 30, 0)]),
    }
    boxes = ground_truth(frame, 1)
    # 9 as the ego lists it; the ego (1) itself because agent 2 lists it.
    assert dict(zip(boxes.ids, boxes.centers[:, 0], strict=True)) == pytest.approx(
        {9: 50.0, 2: 30.0, 8: 40.0, 1: 0.0}
    )


def test_agents_out_of_range_do_not_count():
    frame = {
        1: agent(0, 0, [vehicle(5, 10, 0)]),
        2: agent(56.0, 42.0, [vehicle(6, 20, 0)]),
        3: agent(56.1, 42.1, [vehicle(7, 30, 0)]),
    }
    assert set(ground_truth(frame, 1).ids) == {5, 6}
    assert set(ground_truth(frame, 1, GroundTruthRule(communication_range_m=80.0)).ids) == {5, 6, 7}
    assert set(ground_truth(frame, 1, agents=[1, 3]).ids) == {5, 7}


def test_the_ego_comes_first_among_agents_in_range():
    poses = {'b': (1.0, 0, 0, 0, 0, 0), 'a': (0.0, 0, 0, 0, 0, 0), 'c': (99.0, 0, 0, 0, 0, 0)}
    assert agents_in_range(poses, 'a') == ['a', 'b']


def test_camera_labels_need_the_centre_in_a_picture_of_the_agent_that_lists_it():
    ahead, behind = vehicle(1, 20, 0), vehicle(2, -20, 0)
    beside = (vehicle(3, 10, 15), vehicle(4, 10, -15))
    rule = GroundTruthRule(labels=CAMERA_LABELS)
    seen = ground_truth({1: agent(0, 0, [ahead, behind, *beside])}, 1, rule)
    assert set(seen.ids) == {1}
    both = {1: agent(0, 0, [ahead, behind], camera_yaws=(0.0, 180.0))}
    assert set(ground_truth(both, 1, rule).ids) == {1, 2}
    front_only = GroundTruthRule(labels=CAMERA_LABELS, cameras=(0,))
    assert set(ground_truth(both, 1, front_only).ids) == {1}


def test_another_agents_camera_makes_a_vehicle_visible():
    behind = vehicle(2, -20, 0)
    frame = {1: agent(0, 0, [behind]), 2: agent(-50, 0, [behind])}
    rule = GroundTruthRule(labels=CAMERA_LABELS)
    assert set(ground_truth(frame, 1, rule).ids) == {2}
    assert len(ground_truth(frame, 1, rule, agents=[1])) == 0


def test_limits_drop_boxes_that_reach_outside():
    frame = {1: agent(0, 0, [vehicle(1, 49, 0), vehicle(2, 40, 0), vehicle(3, 0, 39.5)])}
    narrow = GroundTruthRule(limits=Limits((-50, 50), (-50, 50), (-3, 1)))
    assert set(ground_truth(frame, 1, narrow).ids) == {2, 3}
    assert set(ground_truth(frame, 1, GroundTruthRule(limits=GT_RANGE)).ids) == {1, 2}


def test_exact_variant_moves_a_turned_vehicle():
    frame = {1: agent(0, 0, [vehicle(1, 20, 0, yaw=-90.0, center=(-0.1, 0, 0.75))])}
    opencood = ground_truth(frame, 1).centers[0]
    exact = ground_truth(frame, 1, GroundTruthRule(variant=EXACT)).centers[0]
    np.testing.assert_allclose(opencood[:2], [19.9, 0.0], atol=1e-9)
    np.testing.assert_allclose(exact[:2], [20.0, 0.1], atol=1e-9)


def test_no_labels_give_no_boxes():
    assert len(ground_truth({1: agent(0, 0)}, 1, GroundTruthRule(labels=CAMERA_LABELS))) == 0


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match='ego'):
        ground_truth({1: agent(0, 0)}, 4)
    with pytest.raises(UnknownNameError, match='agent'):
        ground_truth({1: agent(0, 0)}, 1, agents=[1, 9])
    with pytest.raises(UnknownNameError, match='label rule'):
        GroundTruthRule(labels='radar')

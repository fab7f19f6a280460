"""Pictures of detections: the right boxes at the right places, in the right colours."""

import numpy as np
import pytest
from PIL import Image

from lapdtr_ros.datasets.opv2v import AgentFrame, CameraModel, VehicleLabel
from lapdtr_ros.evaluation.detected import DetectedFrame
from lapdtr_ros.evaluation.detection_pictures import (
    camera_picture,
    detection_images,
    heat_image,
    view_from_above,
)
from lapdtr_ros.evaluation.pictures import GREEN, ORANGE
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes
from lapdtr_ros.perception.ground_truth import GroundTruthRule
from lapdtr_ros.perception.poses import camera_intrinsic

GREY = np.full((90, 120, 3), 128, np.uint8)
STILL = (0.0,) * 6
CAMERA = CameraModel(STILL, camera_intrinsic(120, 90, 100.0), np.eye(4))
NOTHING = Boxes.empty()


def boxes(*places, scores=()):
    return Boxes.from_vectors([(*place, 0.0, 4.0, 2.0, 1.5, 0.3) for place in places], scores)


def columns_near(picture, colour, tolerance=60):
    near = np.abs(picture.astype(int) - colour).sum(axis=2) < tolerance
    return np.nonzero(near)[1]


def test_truth_is_green_and_what_was_found_is_orange_on_its_side_of_the_picture():
    drawn = camera_picture(GREY, CAMERA, boxes((10.0, 5.0)), boxes((10.0, -5.0), scores=[0.8]))
    assert columns_near(drawn, GREEN).mean() > 65
    assert columns_near(drawn, ORANGE).mean() < 55


def test_vehicles_that_the_camera_does_not_see_are_not_drawn():
    drawn = camera_picture(GREY, CAMERA, boxes((-10.0, 5.0)), boxes((1.0, 30.0), scores=[0.8]))
    assert (drawn == GREY).all()


def test_from_above_ahead_is_right_and_the_right_side_is_below():
    picture = view_from_above(NOTHING, boxes((30.0, 20.0), scores=[0.5]), CAMERA_RANGE)
    near = np.abs(picture.astype(int) - ORANGE).sum(axis=2) < 60
    rows, columns = np.nonzero(near[60:])  # below the legend
    height, width = picture.shape[:2]
    assert columns.mean() > 0.7 * width
    assert rows.mean() + 60 > 0.6 * height


@pytest.mark.parametrize('camera', [True, False])
def test_a_report_shows_a_few_moments_spread_over_all(tmp_path, camera):
    path = tmp_path / 'x.png'
    Image.fromarray(GREY).save(path)
    car = VehicleLabel(1, (12.0, 3.0, 0.0), (0.0, 0.0, 0.0), (2.0, 1.0, 0.7), (0.0, 0.0, 0.0), 0.0)
    frames = [
        DetectedFrame(
            {
                10: AgentFrame(
                    timestamp=f'{2 * number:06d}',
                    lidar_pose=STILL,
                    true_ego_pos=STILL,
                    predicted_ego_pos=STILL,
                    ego_speed=0.0,
                    plan_trajectory=(),
                    cameras={0: CAMERA} if camera else {},
                    vehicles={1: car},
                    image_paths={0: path} if camera else {},
                )
            },
            {},
        )
        for number in range(7)
    ]
    found = [boxes((12.0, 3.0), (20.0, -3.0), scores=[0.9, 0.1])] * len(frames)
    images = detection_images(frames, found, GroundTruthRule(limits=CAMERA_RANGE), count=3)
    assert [image.title for image in images] == ['Moment 000000', 'Moment 000006', 'Moment 000012']
    assert '1 labelled vehicles; orange: 1 found' in images[0].caption
    assert images[0].picture.shape == ((480, 1288, 3) if camera else (480, 640, 3))


def test_heat_of_each_front_camera_is_laid_over_its_picture(tmp_path):
    path = tmp_path / 'x.png'
    Image.fromarray(GREY).save(path)
    view = AgentFrame(
        timestamp='000000',
        lidar_pose=STILL,
        true_ego_pos=STILL,
        predicted_ego_pos=STILL,
        ego_speed=0.0,
        plan_trajectory=(),
        cameras={0: CAMERA},
        vehicles={},
        image_paths={0: path},
    )
    heat = np.zeros((9, 12))
    heat[6, 3] = 1.0
    image = heat_image(DetectedFrame({10: view, 11: view}, {}), {10: heat, 11: 0 * heat})
    warm = np.abs(image.picture.astype(int) - 128).sum(axis=2) > 60
    rows, columns = np.nonzero(warm[100:, :640])  # of the first, below the title
    assert image.picture.shape == (480, 1288, 3)
    assert not warm[100:, 648:].any()
    assert abs(columns.mean() - 3.5 / 12 * 640) < 40
    assert abs(rows.mean() + 100 - 6.5 / 9 * 480) < 40

import numpy as np
import pytest

from lapdtr_ros.evaluation.boxed_pictures import BoxedPictures
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.cooperation import COMPLETE, FusedFrame

STREAM = 'cav_2/camera0'
HERE, AHEAD = (0.0, 0.0, 1.9, 0.0, 0.0, 0.0), (10.0, 0.0, 1.9, 0.0, 0.0, 0.0)
INTRINSIC = np.array([[160.0, 0.0, 160.0], [0.0, 160.0, 120.0], [0.0, 0.0, 1.0]])
GREY = np.full((240, 320, 3), 90, np.uint8)


def detections(stamp_ns, *scores):
    # 30 m ahead of the ego, so 20 m ahead of the camera's vehicle.
    rows = [(30.0, 0.0, -1.0, 4.0, 2.0, 1.6, 0.0)] * len(scores)
    boxes = Boxes.from_vectors(np.array(rows).reshape(-1, 7), scores)
    return FusedFrame(stamp_ns, 'cav_1', 'nms', COMPLETE, (STREAM,), (), (), 0.0, 0, boxes)


@pytest.fixture
def pictures():
    pictures = BoxedPictures()
    pictures.add_picture(STREAM, 7, GREY)
    pictures.add_intrinsic(STREAM, 7, INTRINSIC)
    pictures.add_mount(STREAM, 7, 'cav_2', np.eye(4))
    pictures.add_pose('cav_1', 7, HERE)
    pictures.add_pose('cav_2', 7, AHEAD)
    return pictures


def test_a_box_is_drawn_where_the_camera_sees_it(pictures):
    (drawn,) = pictures.boxed(detections(7, 0.9)).values()
    rows, columns = np.nonzero((drawn != GREY).any(axis=2))
    # The near face is 18 m away, 2 m wide and 1.6 m high, its centre 1 m below the camera.
    assert columns.mean() == pytest.approx(160.0, abs=3.0)
    assert rows.mean() == pytest.approx(120.0 + 160.0 * 1.0 / 19.0, abs=5.0)
    assert np.ptp(columns) == pytest.approx(160.0 * 2.0 / 18.0, abs=8.0)


def test_weak_detections_are_not_drawn(pictures):
    (drawn,) = pictures.boxed(detections(7, 0.05)).values()
    assert np.array_equal(drawn, GREY)


def test_only_cameras_of_the_moment_whose_place_is_known_are_shown(pictures):
    pictures.add_picture('cav_3/camera0', 7, GREY)
    assert set(pictures.boxed(detections(7, 0.9))) == {STREAM}
    assert pictures.boxed(detections(8, 0.9)) == {}
    pictures.add_picture(STREAM, 9, GREY)
    assert pictures.boxed(detections(9, 0.9)) == {}


def test_old_moments_are_forgotten(pictures):
    for stamp_ns in range(100, 140):
        pictures.add_picture(STREAM, stamp_ns, GREY)
    assert pictures.boxed(detections(7, 0.9)) == {}

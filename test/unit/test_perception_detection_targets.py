"""Targets of a dense monocular head and the way back to boxes."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.detection_targets import (
    CHANNELS,
    DEPTH,
    HEADING,
    HEAT,
    LEAST_SPREAD,
    OFFSET,
    SIZE,
    SPREAD,
    BoxCoding,
    Grid,
    TargetError,
    decode,
    encode_targets,
)
from lapdtr_ros.perception.geometry import relative_transform
from lapdtr_ros.perception.poses import camera_intrinsic

LIDAR = (-0.5, 0.0, 1.9, 0.0, 0.0, 0.0)
MOUNTS = [
    (2.5, 0.0, 1.0, 0.0, 0.0, 0.0),
    (0.0, 0.3, 1.8, 0.0, 100.0, 0.0),
    (0.0, -0.3, 1.8, 2.0, -100.0, -3.0),
    (-2.0, 0.0, 1.5, 0.0, 180.0, 0.0),
]
GRIDS = [Grid(16, 16, 224, 224), Grid(14, 14, 224, 224), Grid(32, 44, 224, 308)]


@dataclass(frozen=True)
class PictureCamera:
    intrinsic: np.ndarray
    extrinsic: np.ndarray


def camera(mount=MOUNTS[0], grid=GRIDS[0]):
    scale = np.diag([grid.width / 800, grid.height / 600, 1.0])
    return PictureCamera(
        scale @ camera_intrinsic(800, 600, 100.0), relative_transform(LIDAR, mount)
    )


def box(x, y, yaw=0.0, size=(4.5, 2.0, 1.5)):
    return Boxes.from_vectors([[x, y, -1.15, *size, yaw]])


place = st.tuples(
    st.floats(-60.0, 60.0),
    st.floats(-60.0, 60.0),
    st.floats(-2.0, 0.5),
    st.floats(2.0, 12.0),
    st.floats(1.0, 3.0),
    st.floats(1.0, 4.0),
    st.floats(-3.1, 3.1),
)


@settings(deadline=None)
@given(
    st.lists(place, min_size=1, max_size=12),
    st.sampled_from(MOUNTS),
    st.sampled_from(GRIDS),
    st.sampled_from([None, -1.15]),
)
def test_visible_boxes_survive_encoding(vectors, mount, grid, plane):
    boxes, view = Boxes.from_vectors(vectors), camera(mount, grid)
    coding = BoxCoding(prior_plane_z=plane)
    targets = encode_targets(boxes, view, grid, coding)
    expected = boxes[targets.owner[targets.mask]]
    decoded = decode(targets.values, view, grid, coding, score_threshold=0.999)
    assert len(decoded) == len(expected)
    # Heat ties leave the order open: pair by place.
    nearest = [np.abs(decoded.centers - center).sum(axis=1).argmin() for center in expected.centers]
    found = decoded[nearest]
    np.testing.assert_allclose(found.centers, expected.centers, atol=1e-3)
    np.testing.assert_allclose(found.sizes, expected.sizes, atol=1e-3)
    np.testing.assert_allclose(np.exp(1j * found.yaw), np.exp(1j * expected.yaw), atol=1e-3)


def test_opv2vs_cameras_see_all_around_but_for_strips_beside_the_front_one():
    def seen(degrees):
        angle = np.radians(degrees)
        vehicle = box(25.0 * np.cos(angle), 25.0 * np.sin(angle))
        return any(encode_targets(vehicle, camera(m), GRIDS[0]).mask.any() for m in MOUNTS)

    blind = [degrees for degrees in range(-180, 180, 3) if not seen(degrees)]
    # The facing edges of cameras 0 and 1 (and 2) are parallel and 2.1 m apart.
    assert blind == [-48, -45, 45, 48]


def test_the_target_of_one_box_is_what_the_table_says():
    grid, coding = GRIDS[0], BoxCoding(prior_depth=10.0, mean_size=(4.5, 2.0, 1.5))
    # 23 m ahead of the LiDAR is 20 m ahead of the front camera, which is 0.9 m lower.
    targets = encode_targets(box(23.0, 0.0, yaw=0.5), camera(), grid, coding)
    focal_y = 800 / (2 * np.tan(np.radians(50.0))) * 224 / 600
    v = 112.0 + focal_y * (1.15 - 0.9) / 20.0
    row, column = int(v // 14), 8
    np.testing.assert_array_equal(np.argwhere(targets.mask), [[row, column]])
    cell = targets.values[:, row, column]
    assert cell[HEAT] == 1.0
    np.testing.assert_allclose(cell[OFFSET], [-0.5, v / 14 - row - 0.5], atol=1e-5)
    assert cell[DEPTH] == pytest.approx(np.log(2.0), abs=1e-6)
    np.testing.assert_allclose(cell[SIZE], 0.0, atol=1e-6)
    np.testing.assert_allclose(cell[HEADING], [np.sin(0.5), np.cos(0.5)], atol=1e-6)


def test_heading_is_relative_to_the_viewing_ray():
    view = camera()
    ahead = encode_targets(box(23.0, 0.0, yaw=0.0), view, GRIDS[0])
    # Turned and moved around the camera (at x = 3) by the same angle: the same side shows.
    turned = box(3.0 + 20.0 * np.cos(0.4), 20.0 * np.sin(0.4), yaw=0.4)
    aside = encode_targets(turned, view, GRIDS[0])
    np.testing.assert_allclose(
        ahead.values[HEADING][:, ahead.mask], aside.values[HEADING][:, aside.mask], atol=1e-6
    )


def test_the_nearer_of_two_boxes_owns_a_shared_cell():
    boxes = Boxes.concatenate([box(23.0, 0.1), box(40.0, 0.2), box(33.0, 0.1)])
    targets = encode_targets(boxes, camera(), GRIDS[0])
    np.testing.assert_array_equal(targets.owner[targets.mask], [0])


def test_invisible_boxes_leave_no_trace():
    boxes = Boxes.concatenate([box(-20.0, 0.0), box(3.5, 30.0), box(150.0, 0.0)])
    targets = encode_targets(boxes, camera(), GRIDS[0])
    assert not targets.values.any()
    assert not targets.mask.any()
    assert not encode_targets(Boxes.empty(), camera(), GRIDS[0]).mask.any()


def test_heat_spreads_with_the_size_in_the_picture():
    far = encode_targets(box(60.0, 0.0), camera(), GRIDS[2]).values[HEAT]
    near = encode_targets(box(9.0, 0.0), camera(), GRIDS[2]).values[HEAT]
    assert near.sum() > 1.5 * far.sum()
    single = encode_targets(
        box(9.0, 0.0), camera(), GRIDS[2], BoxCoding(heat_sigma=0.0, heat_spread=0.0)
    )
    np.testing.assert_array_equal(single.values[HEAT], single.mask)


def test_a_box_around_the_camera_plane_still_has_finite_targets():
    targets = encode_targets(box(5.0, 0.5), camera(), GRIDS[0])
    assert targets.mask.any()
    assert np.isfinite(targets.values).all()


def test_a_plane_prior_leaves_little_to_regress_where_it_holds():
    coding = BoxCoding(prior_plane_z=-1.15)
    # A fine grid: the cell's middle is near the centre's pixel.
    grid = Grid(224, 224, 224, 224)
    view = camera(MOUNTS[3])
    for distance in (6.0, 12.0, 20.0):
        targets = encode_targets(box(-1.5 - distance, 0.0), view, grid, coding)
        assert abs(targets.values[DEPTH][targets.mask][0]) < 0.2


def test_only_peaks_above_the_threshold_become_boxes_best_first():
    prediction = np.zeros((CHANNELS, 16, 16))
    prediction[HEADING.stop - 1] = 1.0
    prediction[SPREAD] = LEAST_SPREAD
    for row, column, heat in [(4, 4, 0.5), (4, 5, 0.4), (9, 9, 0.9), (12, 2, 0.05)]:
        prediction[HEAT, row, column] = heat
    view, grid = camera(), GRIDS[0]
    np.testing.assert_allclose(decode(prediction, view, grid).scores, [0.9, 0.5])
    np.testing.assert_allclose(decode(prediction, view, grid, limit=1).scores, [0.9])
    np.testing.assert_allclose(
        decode(prediction, view, grid, score_threshold=0.01).scores, [0.9, 0.5, 0.05]
    )
    assert len(decode(np.zeros_like(prediction), view, grid)) == 0


def test_doubt_about_the_depth_lowers_the_score_as_the_overlap_becomes_less_likely():
    prediction = np.zeros((CHANNELS, 16, 16))
    prediction[HEAT, 4, 4] = 0.8
    # A vehicle of 4.5 m, seen from behind at 15 m, overlaps by half within about 1.5 m.
    prediction[HEADING.stop - 1] = 1.0
    certain, unsure, aside = prediction.copy(), prediction.copy(), prediction.copy()
    certain[SPREAD], unsure[SPREAD], aside[SPREAD] = -6.0, np.log(0.1), np.log(0.1)
    aside[HEADING] = [[[1.0]], [[0.0]]]
    scores = [decode(p, camera(), GRIDS[0]).scores[0] for p in (certain, unsure, aside)]
    assert scores[0] == pytest.approx(0.8, abs=1e-6)
    errors = np.random.default_rng(0).laplace(scale=1.5, size=100_000)
    assert scores[1] == pytest.approx(0.8 * (np.abs(errors) < 1.5).mean(), abs=0.01)
    assert scores[2] == pytest.approx(0.8 * (np.abs(errors) < 2.0 / 3.0).mean(), abs=0.01)


def test_boxes_of_known_depth_come_before_those_of_guessed_depth():
    prediction = np.zeros((CHANNELS, 16, 16))
    prediction[HEADING.stop - 1] = 1.0
    prediction[HEAT, 4, 4], prediction[SPREAD, 4, 4] = 0.9, 1.0
    prediction[HEAT, 9, 9], prediction[SPREAD, 9, 9] = 0.6, -4.0
    found = decode(prediction, camera(), GRIDS[0])
    np.testing.assert_array_equal(found.scores, np.sort(found.scores)[::-1])
    assert found.scores[0] == pytest.approx(0.6, abs=0.01)


def test_nonsense_of_a_head_gives_no_nonsensical_boxes():
    rng = np.random.default_rng(0)
    prediction = rng.normal(size=(CHANNELS, 16, 16)) * 1e4
    prediction[:, 3, 3] = np.nan
    prediction[SIZE, 5:8] = np.nan
    prediction[DEPTH, 9] = np.inf
    boxes = decode(prediction, camera(), GRIDS[0], limit=1000)
    assert len(boxes) > 5
    assert ((boxes.scores >= 0.0) & np.isfinite(boxes.scores)).all()
    assert boxes.sizes.max() < 100.0
    assert np.abs(boxes.centers).max() < 250.0


def test_what_does_not_fit_is_refused():
    with pytest.raises(TargetError, match='shape'):
        decode(np.zeros((CHANNELS, 14, 14)), camera(), GRIDS[0])
    with pytest.raises(TargetError, match='rows'):
        replace(GRIDS[0], rows=0)
    with pytest.raises(TargetError, match='prior_depth'):
        BoxCoding(prior_depth=0.5)

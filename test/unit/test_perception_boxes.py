"""Overlap of rotated boxes against vectors and shapely; NMS and weighted fusion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon

from lapdtr_ros.perception.boxes import (
    GT_RANGE,
    BoxError,
    Boxes,
    Limits,
    bev_iou,
    rotated_nms,
    weighted_box_fusion,
)
from lapdtr_ros.perception.poses import pose_to_matrix

CAR = (0.0, 0.0, -1.0, 4.0, 2.0, 1.5, 0.0)

# Coarse steps make shared edges, corners and equal boxes common: the hard cases of clipping.
position = st.one_of(st.floats(-6.0, 6.0), st.integers(-6, 6).map(float))
size = st.one_of(st.floats(0.3, 12.0), st.integers(1, 6).map(float))
heading = st.one_of(st.floats(-7.0, 7.0), st.integers(-8, 8).map(lambda n: n * np.pi / 4))
score = st.floats(0.01, 1.0)
vector = st.tuples(position, position, st.just(-1.0), size, size, st.just(1.5), heading)
box_sets = st.lists(st.tuples(vector, score), min_size=1, max_size=8).map(
    lambda items: Boxes.from_vectors([v for v, _ in items], [s for _, s in items])
)


def car(x=0.0, y=0.0, yaw=0.0, score=1.0, z=-1.0):
    return Boxes.from_vectors([[x, y, z, 4.0, 2.0, 1.5, yaw]], [score])


def shapely_iou(first, second):
    a, b = (Polygon(boxes.bev_corners()[0]) for boxes in (first, second))
    shared = a.intersection(b).area
    return shared / (a.area + b.area - shared)


def assert_same_boxes(first, second, atol=1e-9):
    np.testing.assert_allclose(first.vectors[:, :6], second.vectors[:, :6], atol=atol)
    np.testing.assert_allclose(np.exp(1j * first.yaw), np.exp(1j * second.yaw), atol=atol)


@pytest.mark.parametrize(
    ('other', 'expected'),
    [
        (car(x=1.0), 0.6),
        (car(y=0.5), 0.6),
        (car(yaw=np.radians(30.0)), 0.62331),
        (car(yaw=np.radians(90.0)), 0.33333),
        (car(x=20.0), 0.0),
        (car(x=4.0), 0.0),
        (car(z=49.0), 1.0),
    ],
)
def test_iou_equals_the_reference_vectors(other, expected):
    assert bev_iou(car(), other)[0, 0] == pytest.approx(expected, abs=1e-5)


@settings(max_examples=300, deadline=None)
@given(vector, vector)
def test_iou_equals_shapely(first, second):
    first, second = Boxes.from_vectors([first]), Boxes.from_vectors([second])
    assert bev_iou(first, second)[0, 0] == pytest.approx(shapely_iou(first, second), abs=1e-9)


@settings(deadline=None)
@given(box_sets, box_sets)
def test_iou_is_symmetric_and_a_share(first, second):
    overlap = bev_iou(first, second)
    np.testing.assert_allclose(overlap, bev_iou(second, first).T, atol=1e-9)
    assert (overlap >= 0.0).all()
    assert (overlap <= 1.0).all()


@settings(deadline=None)
@given(box_sets, st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(-180.0, 180.0))
def test_iou_survives_a_rigid_motion(boxes, x, y, yaw):
    moved = boxes.transformed(pose_to_matrix((x, y, 2.0, 0.0, yaw, 0.0)))
    np.testing.assert_allclose(bev_iou(boxes, boxes), bev_iou(moved, moved), atol=1e-7)


@given(box_sets)
@settings(deadline=None)
def test_overlaps_within_a_set_equal_those_with_its_copy(boxes):
    copy = boxes[:]
    np.testing.assert_allclose(bev_iou(boxes, boxes), bev_iou(boxes, copy), atol=1e-9)
    np.testing.assert_allclose(np.diag(bev_iou(boxes, copy)), 1.0)


def test_many_pairs_give_the_same_overlaps_as_few(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = np.tile(CAR, (40, 1)) + rng.normal(size=(40, 7)) * (5, 5, 0, 0, 0, 0, 2)
    boxes = Boxes.from_vectors(vectors)
    whole = bev_iou(boxes, boxes)
    monkeypatch.setattr('lapdtr_ros.perception.boxes._PAIR_CHUNK', 7)
    np.testing.assert_allclose(bev_iou(boxes, boxes), whole, atol=1e-12)


def test_overlap_with_nothing_is_empty():
    assert bev_iou(Boxes.empty(), car()).shape == (0, 1)
    assert bev_iou(car(), Boxes.empty()).shape == (1, 0)


@settings(deadline=None)
@given(box_sets, st.floats(0.05, 0.9))
def test_nms_is_idempotent_and_leaves_no_overlap(boxes, threshold):
    kept = rotated_nms(boxes, threshold)
    again = rotated_nms(kept, threshold)
    np.testing.assert_array_equal(again.vectors, kept.vectors)
    overlap = bev_iou(kept, kept)
    np.fill_diagonal(overlap, 0.0)
    # The kept boxes come in another order of pairs, which rounds differently.
    assert (overlap <= threshold + 1e-9).all()
    assert kept.scores[0] == boxes.scores.max()


def test_nms_keeps_the_best_of_each_group_and_respects_the_limit():
    boxes = Boxes.concatenate([car(score=0.5), car(x=0.2, score=0.9), car(x=30.0, score=0.7)])
    np.testing.assert_array_equal(rotated_nms(boxes, 0.15).scores, [0.9, 0.7])
    np.testing.assert_array_equal(rotated_nms(boxes, 0.15, limit=1).scores, [0.9])


@settings(deadline=None)
@given(vector, st.lists(score, min_size=1, max_size=6), st.sampled_from(['max', 'mean']))
def test_fusing_identical_boxes_gives_the_box(box, scores, rule):
    fused = weighted_box_fusion(Boxes.from_vectors([box] * len(scores), scores), 0.5, rule)
    assert len(fused) == 1
    assert_same_boxes(fused, Boxes.from_vectors([box]))
    assert fused.scores[0] == pytest.approx(max(scores) if rule == 'max' else np.mean(scores))


def test_fusion_weights_by_score():
    fused = weighted_box_fusion(
        Boxes.concatenate([car(x=0.0, score=0.9), car(x=0.4, score=0.3)]), 0.3
    )
    assert fused.centers[0, 0] == pytest.approx(0.1)
    assert fused.scores[0] == pytest.approx(0.9)


def test_agreement_raises_the_score_under_noisy_or():
    fused = weighted_box_fusion(Boxes.concatenate([car(score=0.5)] * 2), 0.3, 'noisy_or')
    assert fused.scores[0] == pytest.approx(0.75)


def test_a_box_seen_backwards_does_not_turn_the_mean_sideways():
    boxes = Boxes.concatenate([car(yaw=0.1, score=0.9), car(yaw=np.pi - 0.1, score=0.8)])
    fused = weighted_box_fusion(boxes, 0.3)
    assert abs(fused.yaw[0]) < 0.1


def test_the_majority_decides_which_end_is_the_front():
    boxes = Boxes.concatenate(
        [car(score=0.5), car(yaw=np.pi, score=0.4), car(yaw=np.pi, score=0.4)]
    )
    fused = weighted_box_fusion(boxes, 0.3)
    assert np.cos(fused.yaw[0]) == pytest.approx(-1.0)


def test_headings_around_pi_average_to_pi():
    boxes = Boxes.concatenate([car(yaw=np.pi - 0.1), car(yaw=-np.pi + 0.1)])
    assert np.cos(weighted_box_fusion(boxes, 0.3).yaw[0]) == pytest.approx(-1.0)


def test_a_box_counts_in_one_group_only():
    chain = [car(x=0.0, score=0.9), car(x=1.5, score=0.8), car(x=3.0, score=0.7)]
    fused = weighted_box_fusion(Boxes.concatenate(chain), 0.3)
    np.testing.assert_allclose(fused.centers[:, 0], [1.5 * 0.8 / 1.7, 3.0])


def test_boxes_apart_are_not_fused():
    assert len(weighted_box_fusion(Boxes.concatenate([car(), car(x=10.0)]), 0.1)) == 2
    assert len(weighted_box_fusion(Boxes.empty(), 0.1)) == 0


def test_box_fusion_names_bad_rules_and_scores():
    with pytest.raises(BoxError, match='median'):
        weighted_box_fusion(car(), 0.1, 'median')
    with pytest.raises(BoxError, match='-1'):
        weighted_box_fusion(car(score=-1.0), 0.1)


@settings(deadline=None)
@given(box_sets, st.floats(-50.0, 50.0), st.floats(-50.0, 50.0), st.floats(-180.0, 180.0))
def test_moving_there_and_back_gives_the_boxes(boxes, x, y, yaw):
    transform = pose_to_matrix((x, y, 1.0, 0.0, yaw, 0.0))
    back = boxes.transformed(transform).transformed(np.linalg.inv(transform))
    assert_same_boxes(back, boxes)
    np.testing.assert_array_equal(back.scores, boxes.scores)


def test_a_tilted_frame_keeps_sizes():
    moved = car().transformed(pose_to_matrix((0, 0, 0, 8.0, 0, 10.0)))
    np.testing.assert_array_equal(moved.sizes, car().sizes)


def test_limits_ask_for_all_corners_including_height():
    boxes = Boxes.concatenate([car(), car(x=139.0), car(y=38.9), car(z=0.5)])
    np.testing.assert_array_equal(GT_RANGE.contains(boxes), [True, False, True, False])
    plan = Limits((-140, 140), (-40, 40))
    np.testing.assert_array_equal(plan.contains(boxes), [True, False, True, True])


def test_boxes_are_selected_by_mask_index_and_slice():
    boxes = Boxes.concatenate([car(x=float(i)) for i in range(4)])
    np.testing.assert_array_equal(boxes[boxes.centers[:, 0] > 1].centers[:, 0], [2, 3])
    np.testing.assert_array_equal(boxes[[3, 0]].centers[:, 0], [3, 0])
    np.testing.assert_array_equal(boxes[1:3].centers[:, 0], [1, 2])
    np.testing.assert_array_equal(boxes[2].centers[:, 0], [2])
    assert len(boxes[[]]) == 0
    assert len(Boxes.concatenate([])) == 0


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ({'yaw': np.zeros(2)}, 'yaw has shape'),
        ({'yaw': np.array([])}, 'yaw has shape'),
        ({'scores': np.ones(3)}, 'scores has shape'),
        ({'centers': np.array([[0.0, np.nan, 0.0]])}, 'centers holds NaN'),
        ({'sizes': np.array([[4.0, 0.0, 1.0]])}, 'smallest size is 0'),
    ],
)
def test_arrays_that_are_no_boxes_are_refused(change, told):
    arrays = {'centers': np.zeros((1, 3)), 'sizes': np.ones((1, 3)), 'yaw': np.zeros(1)}
    with pytest.raises(BoxError, match=told):
        Boxes(**(arrays | change))

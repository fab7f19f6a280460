"""Average precision against vectors produced with OpenCOOD's own functions."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.evaluation.average_precision import (
    OPENCOOD_FILTER,
    DetectionFilter,
    EvaluationProtocol,
    ProtocolError,
    evaluate_frames,
    match_greedily,
)
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes


def row(*items):
    """Boxes of 4 m x 2 m in a row: `x` or `(x, score)`."""
    pairs = [item if isinstance(item, tuple) else (item, 1.0) for item in items]
    vectors = [[x, 0.0, -1.0, 4.0, 2.0, 1.5, 0.0] for x, _ in pairs]
    return Boxes.from_vectors(vectors, [score for _, score in pairs])


FRAME_A = (row((0.2, 0.9), (50.0, 0.8)), row(0.0, 10.0))
FRAME_B = (row((70.0, 0.95), (20.1, 0.5)), row(20.0))
FRAME_C = (row(), row(0.0))
DUPLICATE = (row((0.0, 0.9), (0.1, 0.8)), row(0.0))


def evaluate(*frames, **options):
    return evaluate_frames(frames, EvaluationProtocol(split='test', **options))


@pytest.mark.parametrize(
    ('frames', 'local', 'global_'),
    [
        ([FRAME_A, FRAME_B], 0.5, 0.333333),
        ([FRAME_A, FRAME_B, FRAME_C], 0.375, 0.25),
        ([DUPLICATE], 1.0, 1.0),
    ],
)
def test_ap_equals_the_reference_vectors(frames, local, global_):
    assert evaluate(*frames, sort='local').ap50 == pytest.approx(local, abs=1e-6)
    assert evaluate(*frames, sort='global').ap50 == pytest.approx(global_, abs=1e-6)


def test_counts_and_curve_of_the_reference_case():
    result = evaluate(FRAME_A, FRAME_B, sort='local')
    curve = result.curves[0.5]
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 1 / 3, 1 / 2])
    np.testing.assert_allclose(curve.recall, [1 / 3, 1 / 3, 1 / 3, 2 / 3])
    np.testing.assert_allclose(curve.scores, [0.9, 0.8, 0.95, 0.5])
    assert (result.frames, result.ground_truths, result.detections) == (2, 3, 4)
    assert result.true_positives[0.5] == 2


def test_thresholds_differ():
    # 0.4 m of 4 m: IoU 3.6 / 4.4 = 0.818; 1 m: 0.6; 1.9 m: 0.356.
    result = evaluate((row((0.4, 0.9), (11.0, 0.8), (21.9, 0.7)), row(0.0, 10.0, 20.0)))
    assert result.ap30 == pytest.approx(1.0)
    assert result.ap50 == pytest.approx(2 / 3)
    assert result.ap70 == pytest.approx(1 / 3)


def test_a_detection_takes_the_box_it_overlaps_most():
    # The better detection lies between two vehicles, nearer to the second.
    result = evaluate((row((1.2, 0.9), (0.0, 0.8)), row(0.0, 2.0)), thresholds=(0.3,))
    assert result.ap30 == pytest.approx(1.0)


def test_precision_before_a_recall_is_the_best_that_follows():
    # False, true, true: precision 0, 1/2, 2/3.
    assert evaluate((row((50.0, 0.9), (0.0, 0.8), (10.0, 0.7)), row(0.0, 10.0))).ap50 == (
        pytest.approx(2 / 3)
    )


def test_detections_need_not_come_sorted():
    frame = (row((50.0, 0.3), (0.0, 0.9)), row(0.0))
    assert evaluate(frame, sort='local').ap50 == pytest.approx(1.0)


def test_an_overlap_of_exactly_the_threshold_is_correct():
    np.testing.assert_array_equal(match_greedily(np.array([[0.5], [0.6]]), 0.5), [True, False])


def test_height_does_not_count():
    raised = Boxes.from_vectors([[0.0, 0.0, 49.0, 4.0, 2.0, 9.0, 0.0]])
    assert evaluate((raised, row(0.0))).ap70 == 1.0


def test_no_ground_truth_is_nan_and_no_detections_are_zero():
    assert math.isnan(evaluate((row((0.0, 0.9)), row())).ap50)
    assert math.isnan(evaluate((row(), row())).ap50)
    assert math.isnan(evaluate().ap50)
    assert evaluate((row(), row(0.0))).ap50 == 0.0


def test_detections_that_reach_outside_the_plan_limits_do_not_count():
    frame = (row((0.0, 0.5), (50.0, 0.9)), row(0.0, 50.0))
    assert evaluate(frame, limits=CAMERA_RANGE).ap50 == pytest.approx(1.0)
    assert evaluate(frame, limits=CAMERA_RANGE).ground_truths == 1
    assert evaluate(frame).ground_truths == 2


def test_detection_filters_do_what_they_say():
    truck = Boxes.from_vectors([[0.0, 0.0, -1.0, 8.0, 2.5, 3.0, 0.0]], [0.8])
    floating = Boxes.from_vectors([[20.0, 0.0, 1.0, 4.0, 2.0, 1.5, 0.0]], [0.8])
    boxes = Boxes.concatenate([truck, floating, row((40.0, 0.9), (40.2, 0.7), (60.0, 0.1))])
    kept = OPENCOOD_FILTER.apply(boxes)
    np.testing.assert_allclose(kept.centers[:, 0], [40.0])
    assert len(DetectionFilter().apply(boxes)) == 5
    assert len(DetectionFilter(score_threshold=0.5).apply(boxes)) == 4
    assert len(DetectionFilter(max_side_m=6.0).apply(boxes)) == 4
    assert len(DetectionFilter(z_range=(-3.0, 1.0)).apply(boxes)) == 4
    assert len(DetectionFilter(nms_iou=0.15).apply(boxes)) == 4
    assert len(DetectionFilter(nms_iou=0.15, limit=1).apply(boxes)) == 1


vehicles = st.lists(
    st.tuples(
        st.integers(-12, 12), st.integers(-3, 3), st.floats(-3.0, 3.0), st.floats(0.05, 0.95)
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda item: item[:2],
)


def scatter(items):
    """Vehicles apart from each other (a coarse grid), with scores."""
    vectors = [[10.0 * i, 9.0 * j, -1.0, 4.0, 2.0, 1.5, yaw] for i, j, yaw, _ in items]
    return Boxes.from_vectors(vectors, [score for *_, score in items])


@settings(deadline=None)
@given(st.lists(vehicles, min_size=1, max_size=4), st.sampled_from(['global', 'local']))
def test_ground_truth_fed_back_is_perfect_and_a_shift_is_not(scenes, sort):
    frames = [(scatter(items), scatter(items)) for items in scenes]
    perfect = evaluate(*frames, sort=sort)
    assert perfect.ap == pytest.approx({0.3: 1.0, 0.5: 1.0, 0.7: 1.0})
    shifted = [
        (Boxes.from_vectors(found.vectors + np.array([1.0, 0, 0, 0, 0, 0, 0]), found.scores), truth)
        for found, truth in frames
    ]
    assert evaluate(*shifted, sort=sort).ap70 < 0.01


@settings(deadline=None)
@given(vehicles, vehicles)
def test_ap_is_a_share_and_falls_with_the_threshold(found, truth):
    result = evaluate((scatter(found), scatter(truth)))
    assert 0.0 <= result.ap70 <= result.ap50 <= result.ap30 <= 1.0


def test_global_sort_does_not_depend_on_the_order_of_frames():
    forth = evaluate(FRAME_A, FRAME_B, sort='global').ap50
    assert forth == evaluate(FRAME_B, FRAME_A, sort='global').ap50
    assert evaluate(FRAME_A, FRAME_B, sort='local').ap50 != pytest.approx(
        evaluate(FRAME_B, FRAME_A, sort='local').ap50
    )


def test_a_report_states_the_protocol():
    report = json.loads(json.dumps(evaluate(FRAME_A).as_dict()))
    assert report['ap50'] == pytest.approx(0.5)
    assert report['protocol']['sort'] == 'global'
    assert report['protocol']['label_rule'] == 'lidar'
    assert report['protocol']['limits']['y'] == [-40.0, 40.0]


def test_the_protocol_hands_its_label_rule_on():
    protocol = EvaluationProtocol(split='test', label_rule='camera', cameras=(0, 3))
    rule = protocol.ground_truth_rule
    assert (rule.labels, rule.cameras, rule.limits) == ('camera', (0, 3), protocol.limits)


def test_senseless_protocols_and_unknown_thresholds_are_refused():
    with pytest.raises(UnknownNameError, match='sort'):
        EvaluationProtocol(split='test', sort='random')
    with pytest.raises(ProtocolError, match='thresholds'):
        EvaluationProtocol(split='test', thresholds=(50.0,))
    with pytest.raises(UnknownNameError, match='threshold'):
        evaluate(FRAME_A, thresholds=(0.5,)).ap70  # noqa: B018

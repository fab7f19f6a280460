"""Detections on disk, compared with others, and the accuracy that a run record keeps of them."""

import dataclasses
import json
import math

import numpy as np
import pytest

from lapdtr_ros.evaluation.average_precision import EvaluationProtocol, evaluate_frames
from lapdtr_ros.evaluation.live import (
    DetectionsError,
    accuracy_record,
    boxes_difference,
    compare_detections,
    read_detections,
    write_detections,
)
from lapdtr_ros.evaluation.run_record import (
    HostRecord,
    RunRecord,
    RunRecordError,
    from_json,
    to_json,
)
from lapdtr_ros.evaluation.summary import summarise
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes
from lapdtr_ros.perception.cooperation import FusedFrame

CAR = (14.0, 1.0, -1.2, 4.4, 1.9, 1.5, 3.1)
VAN = (-5.0, 9.0, -1.2, 5.4, 2.1, 1.9, 0.0)
BOTH = Boxes.from_vectors([CAR, VAN], [0.9, 0.4], [0, 1])


def frame(stamp_ns, boxes):
    return FusedFrame(
        stamp_ns=stamp_ns,
        ego='a',
        method='nms',
        status='partial',
        streams=('a/camera0', 'b/camera0'),
        missing=('b/camera1',),
        out_of_range=(),
        age_s=0.25,
        late=3,
        boxes=boxes,
    )


def test_detections_survive_the_disk_in_order_of_time(tmp_path):
    path = tmp_path / 'detections.json'
    write_detections([frame(20, Boxes.empty()), frame(10, BOTH)], path)
    first, second = read_detections(path)
    assert (first.stamp_ns, second.stamp_ns, len(second.boxes)) == (10, 20, 0)
    np.testing.assert_array_equal(first.boxes.vectors, BOTH.vectors)
    np.testing.assert_array_equal(first.boxes.ids, BOTH.ids)
    same = {**vars(frame(10, BOTH)), 'boxes': None}
    assert {**vars(first), 'boxes': None} == same


@pytest.mark.parametrize('text', ['{', '[]', '{"format": "something else", "version": 1}'])
def test_a_file_without_detections_is_refused(tmp_path, text):
    path = tmp_path / 'detections.json'
    with pytest.raises(DetectionsError, match=r'detections\.json'):
        read_detections(path)
    path.write_text(text)
    with pytest.raises(DetectionsError, match='repeat the run'):
        read_detections(path)


def test_equal_boxes_in_another_order_are_equal():
    assert boxes_difference(BOTH, BOTH[[1, 0]]) == 0.0
    assert boxes_difference(Boxes.empty(), Boxes.empty()) == 0.0


@pytest.mark.parametrize(
    ('other', 'expected'),
    [
        (dataclasses.replace(BOTH, centers=BOTH.centers + np.array([0.0, 0.01, 0.0])), 0.01),
        (dataclasses.replace(BOTH, yaw=BOTH.yaw + 2 * np.pi - 0.02), 0.02),
        (dataclasses.replace(BOTH, scores=BOTH.scores - 0.03), 0.03),
        (BOTH[:1], math.inf),
        (BOTH[[0, 0]], math.inf),
    ],
)
def test_the_largest_difference_of_any_box_counts(other, expected):
    assert boxes_difference(BOTH, other) == pytest.approx(expected)


def test_a_moment_without_live_boxes_differs_only_where_there_is_something_to_find():
    agreement = compare_detections({1: BOTH}, {1: BOTH, 2: BOTH, 3: Boxes.empty()})
    assert (agreement.moments, agreement.differing) == (3, 1)
    assert not agreement.holds
    assert not agreement.as_equivalence('offline').holds
    assert compare_detections({1: BOTH}, {1: BOTH}).holds
    assert not compare_detections({1: BOTH}, {}).holds


def test_accuracy_survives_in_a_run_record_and_is_one_of_its_figures():
    protocol = EvaluationProtocol('test', limits=CAMERA_RANGE)
    result = evaluate_frames([(BOTH[:1], BOTH)], protocol)
    accuracy = accuracy_record(result)
    host = HostRecord('cpu', 2, 1)
    record = RunRecord('n', 's', 't', 'm', 'w', host, devices=(), accuracy=accuracy)
    assert from_json(to_json(record)) == record
    figure = summarise(record).accuracy
    assert (figure.value, figure.unit, figure.level) == (0.5, 'AP50', 'measured')
    assert accuracy.protocol['sort'] == 'global'
    assert (accuracy.ground_truths, accuracy.detections) == (2, 1)
    damaged = json.loads(to_json(record))
    damaged['run']['accuracy']['protocol'] = 7
    with pytest.raises(RunRecordError, match='protocol is 7, expected an object'):
        from_json(json.dumps(damaged))


def test_accuracy_without_anything_to_find_is_unknown():
    nothing = evaluate_frames([(BOTH, Boxes.empty())], EvaluationProtocol('test'))
    record = RunRecord('n', 's', 't', 'm', 'w', HostRecord('cpu', 2, 1), devices=())
    record = dataclasses.replace(record, accuracy=accuracy_record(nothing))
    assert summarise(record).accuracy.value is None
    assert math.isnan(from_json(to_json(record)).accuracy.ap50)

"""Aggregation of several vehicles' detections, and gathering them in time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.fusion import (
    NMS,
    SCORE_RULES,
    WBF,
    AgentDetections,
    FusionError,
    FusionSettings,
    FusionWindow,
    PoseNoise,
    fuse,
    with_delay,
)
from lapdtr_ros.perception.geometry import relative_transform

EGO_POSE = (100.0, -50.0, 1.9, 0.0, 30.0, 0.0)
OTHER_POSE = (130.0, -30.0, 1.9, 0.0, -140.0, 0.0)
SCENE = Boxes.from_vectors(
    [[12.0, 3.0, -1.0, 4.5, 2.0, 1.5, 0.3], [25.0, -8.0, -1.0, 4.0, 1.8, 1.5, 2.0]], [0.9, 0.6]
)


def seen_by(agent, pose, boxes=SCENE, stamp=0.0):
    """The scene, given in the ego's frame, as another vehicle reports it."""
    return AgentDetections(
        agent, stamp, pose, boxes.transformed(relative_transform(EGO_POSE, pose))
    )


def close(first, second, atol=1e-6):
    return np.allclose(first.vectors[:, :6], second.vectors[:, :6], atol=atol) and np.allclose(
        np.exp(1j * first.yaw), np.exp(1j * second.yaw), atol=atol
    )


@pytest.mark.parametrize('method', ['nms', 'wbf'])
def test_two_vehicles_that_see_the_same_agree(method):
    reports = [seen_by('ego', EGO_POSE), seen_by('other', OTHER_POSE)]
    fused = fuse(reports, 'ego', EGO_POSE, FusionSettings(method, score_rule='max'))
    assert close(fused, SCENE)
    np.testing.assert_allclose(fused.scores, SCENE.scores)


def test_a_vehicle_sees_through_the_eyes_of_another():
    reports = [seen_by('ego', EGO_POSE, SCENE[[0]]), seen_by('other', OTHER_POSE, SCENE[[1]])]
    fused = fuse(reports, 'ego', EGO_POSE)
    assert close(fused, SCENE)
    np.testing.assert_array_equal(fused.ids, [0, 1])


def test_the_ego_need_not_contribute():
    assert close(fuse([seen_by('other', OTHER_POSE)], 'ego', EGO_POSE), SCENE)
    assert len(fuse([], 'ego', EGO_POSE)) == 0


def test_vehicles_out_of_range_are_not_heard():
    far = seen_by('other', (100.0 + 56.1, -50.0 + 42.1, 1.9, 0, 0, 0))
    assert len(fuse([far], 'ego', EGO_POSE)) == 0
    assert len(fuse([far], 'ego', EGO_POSE, FusionSettings(communication_range_m=71.0))) == 2


def test_weak_detections_are_dropped():
    settings = FusionSettings(score_threshold=0.6)
    assert len(fuse([seen_by('ego', EGO_POSE)], 'ego', EGO_POSE, settings)) == 1


def test_averaging_lies_between_what_two_vehicles_report():
    shifted = Boxes.from_vectors(SCENE.vectors + np.array([0.4, 0, 0, 0, 0, 0, 0]), SCENE.scores)
    reports = [seen_by('ego', EGO_POSE), seen_by('other', OTHER_POSE, shifted)]
    fused = fuse(reports, 'ego', EGO_POSE, FusionSettings(method=WBF))
    np.testing.assert_allclose(fused.centers[:, 0], SCENE.centers[:, 0] + 0.2, atol=1e-6)


def test_delay_takes_old_reports_of_others_and_new_ones_of_the_ego():
    history = [
        {name: seen_by(name, EGO_POSE, stamp=0.1 * i) for name in ('ego', 'other')}
        for i in range(5)
    ]
    stamps = {d.agent: d.stamp for d in with_delay(history, 4, 'ego', 3)}
    assert stamps == pytest.approx({'ego': 0.4, 'other': 0.1})
    stamps = {d.agent: d.stamp for d in with_delay(history, 1, 'ego', 3)}
    assert stamps == pytest.approx({'ego': 0.1, 'other': 0.0})
    with pytest.raises(FusionError, match='delay_frames'):
        with_delay(history, 1, 'ego', -1)


def test_pose_noise_moves_others_only_and_is_repeatable():
    noise = PoseNoise(position_std_m=0.5, yaw_std_deg=1.0, seed=3)
    settings = FusionSettings(noise=noise)
    assert close(fuse([seen_by('ego', EGO_POSE)], 'ego', EGO_POSE, settings), SCENE)
    other = [seen_by('other', OTHER_POSE)]
    first, second = (fuse(other, 'ego', EGO_POSE, settings) for _ in range(2))
    assert not close(first, SCENE, atol=1e-2)
    assert close(first, second)


def test_pose_noise_has_the_stated_spread_on_x_y_z_and_yaw_only():
    noise = PoseNoise(position_std_m=0.2, yaw_std_deg=2.0, seed=1)
    poses = np.array([noise.apply('a', 0.1 * i, EGO_POSE) for i in range(2000)]) - EGO_POSE
    np.testing.assert_allclose(poses.std(axis=0), [0.2, 0.2, 0.2, 0.0, 2.0, 0.0], rtol=0.06)
    np.testing.assert_allclose(poses.mean(axis=0), 0.0, atol=0.15)
    assert noise.apply('a', 0.1, EGO_POSE) != noise.apply('b', 0.1, EGO_POSE)
    assert noise.apply('a', 0.1, EGO_POSE) != PoseNoise(0.2, 2.0, 2).apply('a', 0.1, EGO_POSE)


@pytest.mark.parametrize(
    ('arguments', 'error', 'told'),
    [
        ({'method': 'mean'}, UnknownNameError, 'fusion method'),
        ({'score_rule': 'noisy-or'}, UnknownNameError, 'score rule'),
        ({'iou_threshold': 1.0}, FusionError, 'iou_threshold'),
        ({'limit': 0}, FusionError, 'limit'),
    ],
)
def test_senseless_settings_are_refused(arguments, error, told):
    with pytest.raises(error, match=told):
        FusionSettings(**arguments)


def test_each_method_has_its_own_overlap_unless_one_is_given():
    assert FusionSettings(NMS).overlap < FusionSettings(WBF).overlap
    assert FusionSettings(WBF, iou_threshold=0.0).overlap == 0.0


def test_the_score_rule_decides_how_agreement_counts():
    twice = Boxes.from_vectors(np.repeat(SCENE.vectors[:1], 2, axis=0), [0.8, 0.5])
    merged = {rule: FusionSettings(WBF, score_rule=rule).merge(twice) for rule in SCORE_RULES}
    scores = {rule: boxes.scores.tolist() for rule, boxes in merged.items()}
    assert scores == {
        'max': [0.8],
        'mean': [pytest.approx(0.65)],
        'noisy_or': [pytest.approx(0.9)],
    }


# --- FusionWindow ---------------------------------------------------------------------------------


def test_a_complete_frame_is_due_at_once():
    window = FusionWindow({'a', 'b'}, deadline_s=0.2)
    assert window.add('a', 1, 'A', now=10.0)
    assert window.due(10.1) == []
    assert window.add('b', 1, 'B', now=10.1)
    (frame,) = window.due(10.1)
    assert (frame.key, frame.contributions, frame.missing) == (1, {'a': 'A', 'b': 'B'}, frozenset())
    assert frame.age_s == pytest.approx(0.1)
    assert window.due(99.0) == []
    assert (window.counters.complete, window.counters.partial) == (1, 0)


def test_an_incomplete_frame_is_due_at_its_deadline_and_tells_who_is_missing():
    window = FusionWindow({'a', 'b'}, deadline_s=0.25)
    window.add('a', 1, 'A', now=10.0)
    assert window.due(10.2) == []
    (frame,) = window.due(10.25)
    assert frame.missing == {'b'}
    assert window.counters.partial == 1


def test_late_duplicate_and_unexpected_contributions_are_counted_and_dropped():
    window = FusionWindow({'a', 'b'}, deadline_s=0.2)
    assert window.add('a', 1, 'first', now=0.0)
    assert not window.add('a', 1, 'again', now=0.0)
    assert not window.add('c', 1, 'C', now=0.0)
    (frame,) = window.due(1.0)
    assert frame.contributions == {'a': 'first'}
    assert not window.add('b', 1, 'B', now=1.0)
    counters = window.counters
    assert (counters.duplicate, counters.unexpected, counters.late) == (1, 1, 1)
    assert window.due(9.0) == []


def test_frames_are_delivered_in_order_and_an_overtaken_one_still_counts():
    window = FusionWindow({'a', 'b'}, deadline_s=1.0)
    for contributor, key in (('a', 5), ('a', 4), ('b', 5)):
        window.add(contributor, key, key, now=0.0)
    assert [frame.key for frame in window.due(0.0)] == [5]
    assert window.add('b', 4, 4, now=0.1)
    window.add('a', 7, 7, now=0.1)
    window.add('a', 6, 6, now=0.1)
    assert [frame.key for frame in window.due(2.0)] == [4, 6, 7]


def test_the_oldest_frame_gives_way_when_too_many_are_open():
    window = FusionWindow({'a', 'b'}, deadline_s=1e6, capacity=3)
    for key in range(10):
        window.add('a', key, key, now=0.0)
    assert len(window) == 3
    assert window.counters.overflowed == 7
    assert not window.add('b', 0, 0, now=0.0)
    assert [frame.key for frame in window.due(2e6)] == [7, 8, 9]


def test_a_contributor_that_leaves_completes_the_frames_that_waited_for_it():
    window = FusionWindow({'a', 'b'}, deadline_s=10.0)
    window.add('a', 1, 'A', now=0.0)
    window.expected = {'a'}
    assert len(window.due(0.0)) == 1


def test_reset_lets_a_recording_start_again():
    window = FusionWindow({'a'}, deadline_s=0.1)
    window.add('a', 1, 'A', now=0.0)
    window.due(0.0)
    assert not window.add('a', 1, 'A', now=1.0)
    window.reset()
    assert window.add('a', 1, 'A', now=1.0)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from('abc'), st.integers(0, 30)), max_size=80),
    st.integers(1, 5),
)
def test_every_contribution_is_accounted_for_and_no_frame_comes_twice(arrivals, capacity):
    window = FusionWindow({'a', 'b'}, deadline_s=3.0, capacity=capacity)
    delivered = []
    accepted = 0
    for now, (contributor, key) in enumerate(arrivals):
        accepted += window.add(contributor, key, key, float(now))
        assert len(window) <= capacity
        if now % 4 == 0:
            delivered += window.due(float(now))
    delivered += window.due(1e9)
    counters = window.counters
    assert accepted + counters.late + counters.duplicate + counters.unexpected == len(arrivals)
    assert len({frame.key for frame in delivered}) == len(delivered)
    assert counters.complete + counters.partial == len(delivered)
    assert len(window) == 0


@pytest.mark.parametrize('deadline', [-1.0, float('nan'), float('inf')])
def test_a_senseless_deadline_is_refused(deadline):
    with pytest.raises(FusionError, match='deadline_s'):
        FusionWindow({'a'}, deadline)


def test_a_window_without_room_is_refused():
    with pytest.raises(FusionError, match='capacity'):
        FusionWindow({'a'}, 1.0, capacity=0)

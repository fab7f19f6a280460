import numpy as np
import pytest

from lapdtr_ros.execution.device import (
    Delivery,
    DeviceCore,
    DuplicateFrameError,
    Holding,
    Job,
    RefusedFrameError,
    RefusedPlanError,
    RefusedReportError,
    StageKey,
    run_job,
)
from lapdtr_ros.execution.frames import JPEG, Feature, Packet, Result
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision
from lapdtr_ros.planning.profile import ModelProfile, UnitProfile

STREAM = 'cav_0/camera0'
PROFILE = ModelProfile(
    'toy', (4, 6, 3), tuple(UnitProfile(f'u{i}', 1e6, 100, (5, 2), 40) for i in range(4))
)


class Adder:
    """Units that each add their number + 1, so that the way of a frame can be read off."""

    def run_packet(self, packet, start, stop, cut):
        total = packet.to_array().astype(np.float32).mean() + sum(range(start + 1, stop + 1))
        return Packet.of_array(np.full((1, 5, 2), total, np.float32))


def fleet_plan(epoch, *stages):
    plan = Plan(STREAM, 'toy', 'cav_0', 'cav_0', tuple(Stage(*s) for s in stages))
    decision = StreamDecision(plan, 'random:0', 0.1, 0.2, 0.3)
    return FleetPlan(epoch, 'planner', 'exact', 'test', {STREAM: decision})


def core(device='a'):
    return DeviceCore(device, lambda model: PROFILE, lambda plan, stream: 0.5)


def load(device_core, plan):
    for key in device_core.apply(plan):
        device_core.loaded_stage(key, Adder())


def run(device_core, job):
    """Run a job as the node does; what is to be done with the output."""
    return device_core.finished(job, *run_job(device_core.device, job), now=0.0)


def picture(seq, epoch=1, **changes):
    pixels = np.full(PROFILE.picture_shape, 10, np.uint8)
    fields = {'unit': 0, 'packet': Packet.of_array(pixels, 'raw'), **changes}
    return Feature(STREAM, seq, epoch, **fields)


def features(seq, unit, epoch=1, shape=(1, 5, 2)):
    return Feature(STREAM, seq, epoch, unit, Packet.of_array(np.ones(shape, np.float32)))


def test_plan_names_the_stages_to_load_and_becomes_ready_when_they_are():
    device = core()
    assert device.apply(fleet_plan(1, ('a', 0, 2), ('b', 2, 4))) == (
        StageKey('toy', 'random:0', 0, 2),
    )
    assert device.ready_epochs() == ()
    device.loaded_stage(StageKey('toy', 'random:0', 0, 2), Adder())
    assert device.ready_epochs() == (1,)


def test_device_without_a_stage_is_ready_at_once():
    device = core('c')
    assert device.apply(fleet_plan(1, ('a', 0, 4))) == ()
    assert device.ready_epochs() == (1,)


def test_a_failed_stage_never_becomes_ready_and_is_named():
    device = core()
    (key,) = device.apply(fleet_plan(1, ('a', 0, 4)))
    device.failed_stage(key, 'file is truncated')
    assert device.ready_epochs() == ()
    assert list(device.failures().values()) == ['file is truncated']


def test_an_older_plan_is_ignored():
    device = core()
    load(device, fleet_plan(5, ('a', 0, 4)))
    assert device.apply(fleet_plan(4, ('a', 0, 2), ('b', 2, 4))) == ()
    assert device.newest.epoch == 5


def test_first_stage_passes_features_on_and_last_stage_gives_the_result():
    first, last = core('a'), core('b')
    plan = fleet_plan(1, ('a', 0, 1), ('b', 1, 4))
    load(first, plan)
    load(last, plan)
    delivery = run(first, first.accept(picture(7), now=0.0))
    assert delivery.target == 'b'
    passed = delivery.output
    assert (passed.seq, passed.unit, passed.epoch) == (7, 1, 1)
    delivery = run(last, last.accept(passed, now=0.0))
    assert delivery.target is None
    result = delivery.output
    assert isinstance(result, Result)
    assert result.packet.to_array()[0, 0, 0] == 10 + 1 + 2 + 3 + 4
    assert [(r.device, r.start, r.stop, r.energy_j) for r in result.trace] == [
        ('a', 0, 1, 0.5),
        ('b', 1, 4, 0.5),
    ]


def test_targets_tell_the_next_device():
    device = core('a')
    plan = fleet_plan(1, ('a', 0, 1), ('b', 1, 4))
    device.apply(plan)
    assert device.targets(1) == {STREAM: 'b'}


@pytest.mark.parametrize(
    ('feature', 'text'),
    [
        (picture(0, epoch=9), 'unknown epoch 9'),
        (picture(0, unit=7), 'unit 7, but its stage runs units 0 to 3'),
        (picture(0, unit=3), 'unit 3 takes features, got raw'),
        (picture(0, packet=Packet('raw', 'uint8', (4, 6, 3), bytes(71))), 'takes 72'),
        (picture(0, packet=Packet('raw', 'uint8', (9, 9, 3), bytes(243))), r'\(9, 9, 3\)'),
        (picture(0, packet=Packet('raw', 'float32', (4, 6, 3), bytes(288))), 'float32'),
        (picture(0, packet=Packet('coding 77', 'uint8', (4, 6, 3), bytes(72))), 'coding 77'),
        (picture(0, packet=Packet(JPEG, 'uint8', (4, 6, 3), bytes(100000))), 'limit 72'),
        (Feature('nobody', 0, 1, 0, Packet('raw', 'uint8', (4, 6, 3), bytes(72))), 'no stage'),
    ],
)
def test_a_bad_feature_map_is_refused_with_its_reason(feature, text):
    device = core()
    load(device, fleet_plan(1, ('a', 0, 4)))
    with pytest.raises(RefusedFrameError, match=text):
        device.accept(feature, 0.0)


def test_features_of_another_shape_are_refused():
    device = core('b')
    load(device, fleet_plan(1, ('a', 0, 1), ('b', 1, 4)))
    with pytest.raises(RefusedFrameError, match=r'\(1, 5, 3\)'):
        device.accept(features(0, 1, shape=(1, 5, 3)), 0.0)


def test_a_frame_is_taken_once():
    device = core()
    load(device, fleet_plan(1, ('a', 0, 4)))
    device.accept(picture(0), 0.0)
    with pytest.raises(DuplicateFrameError):
        device.accept(picture(0), 0.0)


def test_a_refused_frame_may_come_again_in_good_shape():
    device = core()
    load(device, fleet_plan(1, ('a', 0, 4)))
    with pytest.raises(RefusedFrameError):
        device.accept(picture(0, packet=Packet('raw', 'uint8', (4, 6, 3), b'')), 0.0)
    assert device.accept(picture(0), 0.0).feature.seq == 0


def test_old_epoch_runs_until_its_frames_are_done_and_is_then_forgotten():
    device = core()
    load(device, fleet_plan(1, ('a', 0, 2), ('b', 2, 4)))
    load(device, fleet_plan(2, ('a', 0, 4)))
    assert device.ready_epochs() == (1, 2)
    device.retire(STREAM, 1)
    device.accept(picture(0, epoch=1), 0.0)
    device.retire(STREAM, 2)
    assert device.ready_epochs() == (2,)
    assert set(device.loaded) == {StageKey('toy', 'random:0', 0, 4)}
    with pytest.raises(DuplicateFrameError, match='epoch 1 is over'):
        device.accept(picture(1, epoch=1), 0.0)


def test_a_stage_that_two_epochs_share_is_loaded_once():
    device = core()
    load(device, fleet_plan(1, ('a', 0, 2), ('b', 2, 4)))
    assert device.apply(fleet_plan(2, ('a', 0, 2), ('c', 2, 4))) == ()
    assert device.ready_epochs() == (1, 2)


def test_a_stage_loaded_too_late_is_dropped():
    device = core()
    (key,) = device.apply(fleet_plan(1, ('a', 0, 4)))
    device.apply(fleet_plan(2, ('b', 0, 4)))
    device.retire(STREAM, 2)
    device.loaded_stage(key, Adder())
    assert not device.loaded


# --- After a loss: a -> b -> c, then another plan -------------------------------------------------

BEFORE = fleet_plan(1, ('a', 0, 1), ('b', 1, 3), ('c', 3, 4))


def ran(device_core, feature):
    """A device that has run a frame and sent it on."""
    return run(device_core, device_core.accept(feature, 0.0))


def device_with(name, *plans):
    device = core(name)
    for plan in plans:
        load(device, plan)
    return device


def test_a_device_tells_the_newest_that_it_has_of_frames():
    a, b = device_with('a', BEFORE), device_with('b', BEFORE)
    sent = ran(a, picture(5)).output
    assert a.holdings(STREAM, 0, [4, 5], 1, 1) == [Holding(5, 1, False)]
    job = b.accept(sent, 0.0)
    assert b.holdings(STREAM, 0, [5], 1, 1) == [Holding(5, 1, True)]
    run(b, job)
    assert b.holdings(STREAM, 0, [5], 1, 1) == [Holding(5, 3, False)]
    assert b.holdings(STREAM, 9, [5], 1, 1) == []


def test_a_kept_feature_goes_to_the_new_owner_as_it_was():
    after = fleet_plan(2, ('a', 0, 2), ('c', 2, 4))
    b = device_with('b', BEFORE, after)
    first = ran(b, features(5, 1))
    assert first.target == 'c'
    (again,) = b.resume(STREAM, 0, [5], epoch=2, round=1, now=0.0)
    assert again.target == 'c'
    assert again.output.packet is first.output.packet
    assert (again.output.epoch, again.output.round, again.output.unit) == (2, 1, 3)


def test_a_frame_goes_on_from_the_middle_of_a_stage():
    after = fleet_plan(2, ('a', 0, 2), ('c', 2, 4))
    c = device_with('c', BEFORE, after)
    job = c.accept(Feature(STREAM, 5, 2, 3, features(5, 3).packet, round=1), 0.0)
    assert (job.start, job.stage.stop) == (3, 4)
    assert job.energy_j == pytest.approx(0.5 / 2)
    delivery = run(c, job)
    assert delivery.output.packet.to_array()[0, 0, 0] == 1 + 4
    assert [(r.start, r.stop) for r in delivery.output.trace] == [(3, 4)]


def test_a_device_that_now_owns_the_next_units_goes_on_itself():
    after = fleet_plan(2, ('a', 0, 3), ('c', 3, 4))
    a = device_with('a', BEFORE, after)
    ran(a, picture(5))
    (job,) = a.resume(STREAM, 0, [5], epoch=2, round=1, now=0.0)
    assert isinstance(job, Job)
    assert (job.start, job.stage.stop) == (1, 3)
    delivery = run(a, job)
    assert delivery.target == 'c'
    assert delivery.output.packet.to_array()[0, 0, 0] == 10 + 1 + 2 + 3
    assert [(r.start, r.stop) for r in delivery.output.trace] == [(0, 1), (1, 3)]


def test_a_frame_in_hand_goes_on_under_the_new_plan_when_it_is_run():
    after = fleet_plan(2, ('a', 0, 1), ('b', 1, 3), ('d', 3, 4))
    b = device_with('b', BEFORE, after)
    job = b.accept(features(5, 1), 0.0)
    assert b.resume(STREAM, 0, [5], epoch=2, round=1, now=0.0) == []
    delivery = run(b, job)
    assert (delivery.target, delivery.output.epoch) == ('d', 2)


def test_a_frame_that_was_run_is_not_run_again_in_a_later_round():
    after = fleet_plan(2, ('a', 0, 1), ('b', 1, 3), ('d', 3, 4))
    b = device_with('b', BEFORE, after)
    first = ran(b, features(5, 1))
    again = b.accept(Feature(STREAM, 5, 2, 1, features(5, 1).packet, round=1), 0.0)
    assert isinstance(again, Delivery)
    assert again.target == 'd'
    assert again.output.packet is first.output.packet
    with pytest.raises(DuplicateFrameError):
        b.accept(Feature(STREAM, 5, 2, 1, features(5, 1).packet, round=1), 0.0)


def test_a_second_copy_of_a_frame_in_hand_is_dropped_and_its_plan_taken_over():
    after = fleet_plan(2, ('b', 0, 3), ('d', 3, 4))
    b = device_with('b', BEFORE, after)
    job = b.accept(features(5, 1), 0.0)
    with pytest.raises(DuplicateFrameError, match='goes on under epoch 2'):
        b.accept(picture(5, epoch=2, round=1), 0.0)
    assert run(b, job).target == 'd'


def test_a_result_that_was_lost_is_sent_again():
    c = device_with('c', BEFORE)
    first = ran(c, features(5, 3))
    (again,) = c.resume(STREAM, 0, [5], epoch=1, round=1, now=0.0)
    assert again.target is None
    assert again.output.packet is first.output.packet
    assert c.holdings(STREAM, 0, [5], 1, 1) == [Holding(5, 4, False)]


def test_a_device_tells_how_long_what_it_sent_has_not_arrived():
    plans = [
        BEFORE,
        fleet_plan(2, ('a', 0, 1), ('c', 1, 4)),
        fleet_plan(3, ('a', 0, 1), ('c', 1, 4)),
    ]
    a = device_with('a', *plans)
    assert ran(a, picture(5)).unheard_s == 0.0  # at 0.0

    def unheard(epoch, round, now):
        (step,) = a.resume(STREAM, 0, [5], epoch, round, now)
        return step.unheard_s

    assert unheard(epoch=1, round=1, now=1.5) == 1.5
    assert unheard(epoch=2, round=2, now=2.0) == 0.0
    assert unheard(epoch=2, round=3, now=5.0) == 3.0
    assert unheard(epoch=3, round=4, now=6.0) == 0.0


def test_an_older_round_moves_nothing():
    a = device_with('a', BEFORE)
    ran(a, picture(5, round=3))
    assert a.resume(STREAM, 0, [5], epoch=1, round=3, now=0.0) == []


def test_an_output_of_a_plan_that_is_over_is_kept_until_it_is_asked_for():
    after = fleet_plan(2, ('b', 0, 2), ('c', 2, 4))
    a = device_with('a', BEFORE, after)
    job = a.accept(picture(5), 0.0)
    a.retire(STREAM, 2)
    assert run(a, job) is None
    (delivery,) = a.resume(STREAM, 0, [5], epoch=2, round=1, now=0.0)
    assert (delivery.target, delivery.output.unit) == ('b', 1)


def test_what_failed_may_be_tried_in_a_later_round():
    a = device_with('a', BEFORE)
    a.failed(a.accept(picture(5), 0.0))
    assert a.holdings(STREAM, 0, [5], 1, 1) == []
    assert isinstance(a.accept(picture(5, round=1), 0.0), Job)


def test_finished_frames_are_forgotten_and_the_others_kept():
    a = device_with('a', BEFORE)
    for seq in range(6):
        ran(a, picture(seq))
    size = a.kept_bytes // 6
    a.done(STREAM, 0, next_seq=5, under_way=[2])
    assert [holding.seq for holding in a.holdings(STREAM, 0, range(6), 1, 1)] == [2, 5]
    assert a.kept_bytes == 2 * size
    a.done(STREAM, 77, next_seq=0, under_way=[])
    assert a.kept_bytes == 0


def test_memory_stays_bounded_when_no_source_ever_reports():
    a = device_with('a', BEFORE)
    for seq in range(400):
        ran(a, picture(seq))
    assert len(a.holdings(STREAM, 0, range(400), 1, 1)) == 128
    for epoch in range(2, 40):
        a.apply(fleet_plan(epoch, ('a', 0, 4)))
    assert len(a.ready_epochs()) <= 16


def test_frames_of_a_source_that_started_again_are_new():
    a = device_with('a', BEFORE)
    ran(a, picture(0))
    assert isinstance(a.accept(picture(0, session=7), 0.0), Job)


@pytest.mark.parametrize(
    ('plan', 'text'),
    [
        (fleet_plan(10**9, ('a', 0, 4)), 'epochs rise in small steps'),
        (fleet_plan(2, ('a', 0, 3)), 'cover 3 units, toy has 4'),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(plan, text):
    a = device_with('a', BEFORE)
    with pytest.raises(RefusedPlanError, match=text):
        a.apply(plan)
    assert a.newest.epoch == 1


def test_words_about_unknown_plans_and_streams_change_nothing():
    a = device_with('a', BEFORE)
    ran(a, picture(0))
    with pytest.raises(RefusedReportError):
        a.retire(STREAM, 2**32 - 1)
    with pytest.raises(RefusedReportError):
        a.resume(STREAM, 0, [0], epoch=2, round=1, now=0.0)
    with pytest.raises(RefusedReportError):
        a.resume('nobody', 0, [0], epoch=1, round=1, now=0.0)
    a.retire('nobody', 1)
    assert a.ready_epochs() == (1,)
    assert a.holdings(STREAM, 0, [0], 1, 1) == [Holding(0, 1, False)]

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.execution.frames import Packet, Result, StageRecord
from lapdtr_ros.execution.source import EpochGate, FrameLedger, InFlight, check_result
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision
from lapdtr_ros.planning.profile import ModelProfile, UnitProfile

STREAM = 'cav_0/camera0'


def frame(seq, epoch=1, sent_s=0.0):
    return InFlight(seq, epoch, sent_s, 0, '')


def plan(epoch, *devices):
    stages = tuple(Stage(d, i, i + 1) for i, d in enumerate(devices))
    decision = StreamDecision(Plan(STREAM, 'toy', devices[0], devices[0], stages), 'w', 0, 0, 0)
    return FleetPlan(epoch, 'planner', 'exact', 'test', {STREAM: decision})


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_never_more_frames_in_flight_than_credits(sends, credits):
    ledger = FrameLedger(credits, 1.0)
    seq = done = 0
    for send in sends:
        if send and ledger.may_send:
            ledger.sent(frame(seq))
            seq += 1
        elif not send and done < seq:
            assert ledger.finished(done) is not None
            done += 1
        assert len(ledger) == seq - done <= credits


def test_a_result_counts_once():
    ledger = FrameLedger(2, 1.0)
    ledger.sent(frame(0))
    assert ledger.finished(0).seq == 0
    assert ledger.finished(0) is None


def test_a_late_frame_is_lost_and_frees_its_credit():
    ledger = FrameLedger(1, 1.0)
    ledger.sent(frame(0, sent_s=5.0))
    assert ledger.expired(5.9) == []
    assert [f.seq for f in ledger.expired(6.1)] == [0]
    assert ledger.may_send
    assert ledger.finished(0) is None


def test_oldest_epoch_is_that_of_the_oldest_frame_in_flight():
    ledger = FrameLedger(4, 1.0)
    ledger.sent(frame(0, epoch=1))
    ledger.sent(frame(1, epoch=2))
    assert ledger.oldest_epoch(2) == 1
    ledger.finished(0)
    assert ledger.oldest_epoch(2) == 2
    ledger.finished(1)
    assert ledger.oldest_epoch(7) == 7


def test_a_plan_is_used_only_when_all_its_devices_are_ready():
    gate = EpochGate(STREAM)
    assert gate.current() is None
    gate.add_plan(plan(1, 'a', 'b'))
    gate.set_ready('a', [1])
    assert gate.current() is None
    assert gate.waiting_for(gate.newest) == ('b',)
    gate.set_ready('b', [1])
    assert gate.current().epoch == 1


def test_the_old_plan_goes_on_until_the_new_one_is_ready():
    gate = EpochGate(STREAM)
    gate.add_plan(plan(1, 'a'))
    gate.set_ready('a', [1])
    gate.add_plan(plan(2, 'a', 'b'))
    assert gate.current().epoch == 1
    gate.set_ready('a', [1, 2])
    gate.set_ready('b', [2])
    assert gate.current().epoch == 2


def test_it_never_goes_back_to_an_older_plan():
    gate = EpochGate(STREAM)
    gate.add_plan(plan(1, 'a'))
    gate.add_plan(plan(2, 'b'))
    gate.set_ready('a', [1])
    gate.set_ready('b', [2])
    assert gate.current().epoch == 2
    gate.set_ready('b', [])
    assert gate.current() is None


def test_a_plan_that_leaves_the_stream_out_stops_it_until_the_next_one():
    gate = EpochGate(STREAM)
    gate.add_plan(plan(1, 'a'))
    gate.set_ready('a', [1, 3])
    gate.add_plan(FleetPlan(2, 'planner', 'exact', 'test', {}))
    assert gate.stopped
    assert gate.current() is None
    gate.add_plan(plan(3, 'a'))
    assert not gate.stopped
    assert gate.current().epoch == 3


def test_a_lost_device_is_not_ready():
    gate = EpochGate(STREAM)
    gate.add_plan(plan(1, 'a', 'b'))
    for device in 'ab':
        gate.set_ready(device, [1])
    gate.set_ready('b', ())
    assert gate.current() is None
    assert gate.waiting_for(gate.newest) == ('b',)


PROFILE = ModelProfile(
    'toy', (2, 2, 3), tuple(UnitProfile(f'u{i}', 1e6, 100, (1, 4), 16) for i in range(4))
)


def result(bounds=(0, 2, 4), stream=STREAM, shape=(1, 1, 4), dtype='float32', nbytes=16):
    records = [
        StageRecord('a', start, stop, 0, 0.0, 0.0, 0, 0, 0.0)
        for start, stop in itertools.pairwise(bounds)
    ]
    packet = Packet('features', dtype, shape, bytes(nbytes))
    return Result(stream, 3, 1, 'a', packet, trace=tuple(records))


def test_a_good_result_passes():
    check_result(result(), STREAM, PROFILE)
    check_result(result(bounds=(0, 1, 2, 4)), STREAM, PROFILE)


@pytest.mark.parametrize(
    ('bad', 'text'),
    [
        (result(stream='other'), "of stream 'other'"),
        (result(shape=(1, 4)), 'expected float32'),
        (result(shape=(2**31, 2**31)), 'expected float32'),
        (result(dtype='object'), 'expected float32'),
        (result(nbytes=15), 'payload of 15 bytes'),
        (result(bounds=(0, 2)), 'expected all 4 units'),
        (result(bounds=(1, 4)), 'expected all 4 units'),
        (result(bounds=(0,)), 'expected all 4 units'),
    ],
)
def test_a_result_that_no_model_gave_is_refused(bad, text):
    with pytest.raises(LapdtrError, match=text):
        check_result(bad, STREAM, PROFILE)

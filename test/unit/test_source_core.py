from hypothesis import given
from hypothesis import strategies as st

from lapdtr_ros.execution.source import EpochGate, FrameLedger, InFlight
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision

STREAM = 'cav_0/camera0'


def frame(seq, epoch=1, sent_s=0.0):
    return InFlight(seq, epoch, sent_s, 100, 0, '')


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


def test_a_plan_without_the_stream_does_not_concern_it():
    gate = EpochGate('other')
    gate.add_plan(plan(1, 'a'))
    assert gate.newest is None

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip('lapdtr_ros.msg')

from rclpy.serialization import deserialize_message, serialize_message

from lapdtr_ros import conversions
from lapdtr_ros import msg as messages
from lapdtr_ros.execution.frames import (
    Feature,
    FrameOutcome,
    Packet,
    Result,
    StageRecord,
)
from lapdtr_ros.planning.plan import (
    Alternative,
    FleetPlan,
    Moving,
    Plan,
    PlanError,
    Stage,
    StreamDecision,
)

names = st.text('abcdefghij_0123456789/', max_size=20)
seconds = st.floats(0, 1e6)
records = st.builds(
    StageRecord,
    device=names,
    start=st.integers(0, 60000),
    stop=st.integers(0, 60000),
    started_ns=st.integers(0, 2**31 * 10**9 - 1),
    queue_s=seconds,
    compute_s=seconds,
    received_bytes=st.integers(0, 2**40),
    sent_bytes=st.integers(0, 2**40),
    energy_j=seconds,
)
packets = st.builds(
    lambda shape: Packet.of_array(np.random.default_rng(0).random(shape, np.float32)),
    st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
)
common = {
    'stream': names,
    'seq': st.integers(0, 2**63),
    'epoch': st.integers(0, 2**32 - 1),
    'stamp_ns': st.integers(0, 2**31 * 10**9 - 1),
    'frame_id': names,
    'trace': st.lists(records, max_size=3).map(tuple),
}


def over_the_wire(message):
    return deserialize_message(serialize_message(message), type(message))


def without_payload(item):
    return {k: v for k, v in vars(item).items() if k != 'packet'}


def same_payload(first, second):
    assert (first.coding, first.dtype, first.shape) == (second.coding, second.dtype, second.shape)
    assert bytes(first.data) == bytes(second.data)


@given(st.builds(Feature, unit=st.integers(0, 65535), packet=packets, **common))
def test_feature_survives_the_wire(feature):
    back = conversions.feature_from_msg(over_the_wire(conversions.feature_to_msg(feature)))
    assert without_payload(back) == without_payload(feature)
    same_payload(back.packet, feature.packet)


@given(st.builds(Result, device=names, packet=packets, **common))
def test_result_survives_the_wire(result):
    back = conversions.result_from_msg(over_the_wire(conversions.result_to_msg(result)))
    assert without_payload(back) == without_payload(result)
    same_payload(back.packet, result.packet)


@given(
    st.builds(
        FrameOutcome,
        outcome=st.sampled_from(['finished', 'lost', 'refused']),
        latency_s=seconds,
        picture_bytes=st.integers(0, 2**40),
        **common,
    )
)
def test_outcome_survives_the_wire(outcome):
    back = conversions.outcome_from_msg(over_the_wire(conversions.outcome_to_msg(outcome)))
    assert back == outcome


def fleet_plan(stages):
    plan = Plan('cav_0/camera0', 'toy', 'cav_0', 'rsu', tuple(stages), 'jpeg')
    decision = StreamDecision(plan, 'random:0', 0.1, 0.2, 0.3, 'toy.calibration', 0.61)
    moving = Moving(joules=2.0, seconds=0.4)
    other = Alternative('keep the running plan', 0.4, 0.5, 0.6, 0.7, Moving())
    return FleetPlan(
        3, '/planner', 'exact', 'because', {plan.stream: decision}, 'battery', (other,), moving
    )


def test_fleet_plan_survives_the_wire():
    plan = fleet_plan([Stage('a', 0, 2), Stage('b', 2, 5)])
    stamp = conversions.time_to_msg(5)
    assert (
        conversions.fleet_plan_from_msg(over_the_wire(conversions.fleet_plan_to_msg(plan, stamp)))
        == plan
    )


def test_a_plan_with_a_gap_is_refused():
    message = conversions.fleet_plan_to_msg(
        fleet_plan([Stage('a', 0, 2), Stage('b', 2, 5)]), conversions.time_to_msg(0)
    )
    message.streams[0].stages[1].start_unit = 3
    with pytest.raises(PlanError, match='expected a start of 2'):
        conversions.fleet_plan_from_msg(message)


def test_numpy_scalars_are_not_silently_sent_as_zero():
    record = StageRecord('a', 0, 1, 0, np.float32(0.5), np.float64(0.25), 1, 1, np.float32(math.e))
    message = over_the_wire(conversions.stage_record_to_msg(record))
    assert (message.queue_s, message.compute_s) == (0.5, 0.25)
    assert message.energy_j == pytest.approx(math.e)


def test_constants_that_no_message_has_are_refused():
    with pytest.raises(conversions.ReportError, match='outcome is 48'):
        conversions.outcome_from_msg(messages.FrameTrace(outcome=48))
    with pytest.raises(conversions.ReportError, match='status is 9'):
        conversions.detections_from_msg(messages.Detections(status=9))

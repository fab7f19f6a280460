"""Between the dataclasses of the pure code and ROS messages: ``*_to_msg`` and ``*_from_msg``.

Every scalar passes through ``int()``, ``float()`` or ``str()`` because rclpy does not check field
types by default and a numpy scalar would silently be sent as zero. Bulk data goes through
``array.array``, the only assignment to ``uint8[]`` that is not slow.
"""

from __future__ import annotations

import array

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image

from lapdtr_ros.msg import (
    FeatureMap,
    FrameResult,
    FrameTrace,
    PartitionPlan,
    StageAssignment,
    StageTrace,
    StreamPlan,
)

from .errors import LapdtrError
from .execution import frames
from .execution.frames import Feature, FrameOutcome, Packet, Result, StageRecord
from .planning.plan import FleetPlan, Plan, Stage, StreamDecision

_CODING_TO_MSG = {
    frames.FEATURES: FeatureMap.FEATURES,
    frames.RAW: FeatureMap.RAW,
    frames.JPEG: FeatureMap.JPEG,
}
_CODING_FROM_MSG = {value: key for key, value in _CODING_TO_MSG.items()}
_OUTCOME_TO_MSG = {
    frames.FINISHED: FrameTrace.FINISHED,
    frames.LOST: FrameTrace.LOST,
    frames.REFUSED: FrameTrace.REFUSED,
}
_OUTCOME_FROM_MSG = {value: key for key, value in _OUTCOME_TO_MSG.items()}


# Encoding -> (bytes per pixel, channel order that gives RGB).
_ENCODINGS = {
    'rgb8': (3, (0, 1, 2)),
    'bgr8': (3, (2, 1, 0)),
    'rgba8': (4, (0, 1, 2)),
    'bgra8': (4, (2, 1, 0)),
    'mono8': (1, (0, 0, 0)),
}


class ImageError(LapdtrError):
    """A camera message that holds no usable picture."""


def picture_from_msg(msg: Image) -> np.ndarray:
    """A camera picture as uint8 RGB, shape (height, width, 3).

    Raises:
        ImageError: an encoding other than 8-bit colour or grey, or too few data.
    """
    try:
        depth, order = _ENCODINGS[msg.encoding]
    except KeyError:
        raise ImageError(
            f'image encoding {msg.encoding!r} is not supported; publish one of '
            f'{", ".join(_ENCODINGS)}'
        ) from None
    row = msg.width * depth
    if msg.height == 0 or msg.width == 0 or msg.step < row or len(msg.data) < msg.height * msg.step:
        raise ImageError(
            f'image of {msg.width} x {msg.height} {msg.encoding} needs {msg.height} rows of '
            f'at least {row} bytes; got a step of {msg.step} and {len(msg.data)} bytes'
        )
    rows = np.frombuffer(msg.data, np.uint8)[: msg.height * msg.step].reshape(msg.height, msg.step)
    pixels = rows[:, :row].reshape(msg.height, msg.width, depth)
    return np.ascontiguousarray(pixels[:, :, order])


def time_to_msg(nanoseconds: int) -> Time:
    """Nanoseconds since the epoch of the clock."""
    seconds, rest = divmod(int(nanoseconds), 1_000_000_000)
    return Time(sec=seconds, nanosec=rest)


def time_from_msg(msg: Time) -> int:
    """Nanoseconds since the epoch of the clock."""
    return msg.sec * 1_000_000_000 + msg.nanosec


def _bytes_to_msg(data: bytes | memoryview) -> array.array:
    filled = array.array('B')
    filled.frombytes(data)
    return filled


def stage_record_to_msg(record: StageRecord) -> StageTrace:
    """One stage's part of a frame's trace."""
    return StageTrace(
        device=str(record.device),
        start_unit=int(record.start),
        stop_unit=int(record.stop),
        started=time_to_msg(record.started_ns),
        queue_s=float(record.queue_s),
        compute_s=float(record.compute_s),
        received_bytes=int(record.received_bytes),
        sent_bytes=int(record.sent_bytes),
        energy_j=float(record.energy_j),
    )


def stage_record_from_msg(msg: StageTrace) -> StageRecord:
    """One stage's part of a frame's trace."""
    return StageRecord(
        device=msg.device,
        start=msg.start_unit,
        stop=msg.stop_unit,
        started_ns=time_from_msg(msg.started),
        queue_s=msg.queue_s,
        compute_s=msg.compute_s,
        received_bytes=msg.received_bytes,
        sent_bytes=msg.sent_bytes,
        energy_j=msg.energy_j,
    )


def feature_to_msg(feature: Feature) -> FeatureMap:
    """A feature map on its way to a device."""
    msg = FeatureMap(
        stream=str(feature.stream),
        seq=int(feature.seq),
        epoch=int(feature.epoch),
        unit=int(feature.unit),
        coding=_CODING_TO_MSG[feature.packet.coding],
        dtype=str(feature.packet.dtype),
        shape=[int(n) for n in feature.packet.shape],
        data=_bytes_to_msg(feature.packet.data),
        trace=[stage_record_to_msg(record) for record in feature.trace],
    )
    msg.header.stamp = time_to_msg(feature.stamp_ns)
    msg.header.frame_id = str(feature.frame_id)
    return msg


def feature_from_msg(msg: FeatureMap) -> Feature:
    """A feature map that arrived; its content is not yet checked.

    An unknown coding is kept as text so that the receiver's check refuses and names it.
    """
    return Feature(
        stream=msg.stream,
        seq=msg.seq,
        epoch=msg.epoch,
        unit=msg.unit,
        packet=Packet(
            _CODING_FROM_MSG.get(msg.coding, f'coding {msg.coding}'),
            msg.dtype,
            tuple(msg.shape),
            memoryview(msg.data),
        ),
        stamp_ns=time_from_msg(msg.header.stamp),
        frame_id=msg.header.frame_id,
        trace=tuple(stage_record_from_msg(record) for record in msg.trace),
    )


def result_to_msg(result: Result) -> FrameResult:
    """Output of the last unit."""
    msg = FrameResult(
        stream=str(result.stream),
        seq=int(result.seq),
        epoch=int(result.epoch),
        device=str(result.device),
        dtype=str(result.packet.dtype),
        shape=[int(n) for n in result.packet.shape],
        data=_bytes_to_msg(result.packet.data),
        trace=[stage_record_to_msg(record) for record in result.trace],
    )
    msg.header.stamp = time_to_msg(result.stamp_ns)
    msg.header.frame_id = str(result.frame_id)
    return msg


def result_from_msg(msg: FrameResult) -> Result:
    """Output of the last unit."""
    return Result(
        stream=msg.stream,
        seq=msg.seq,
        epoch=msg.epoch,
        device=msg.device,
        packet=Packet(frames.FEATURES, msg.dtype, tuple(msg.shape), memoryview(msg.data)),
        stamp_ns=time_from_msg(msg.header.stamp),
        frame_id=msg.header.frame_id,
        trace=tuple(stage_record_from_msg(record) for record in msg.trace),
    )


def outcome_to_msg(outcome: FrameOutcome) -> FrameTrace:
    """A frame as its source saw it."""
    msg = FrameTrace(
        stream=str(outcome.stream),
        seq=int(outcome.seq),
        epoch=int(outcome.epoch),
        outcome=_OUTCOME_TO_MSG[outcome.outcome],
        oldest_epoch=int(outcome.oldest_epoch),
        latency_s=float(outcome.latency_s),
        picture_bytes=int(outcome.picture_bytes),
        stages=[stage_record_to_msg(record) for record in outcome.trace],
    )
    msg.header.stamp = time_to_msg(outcome.stamp_ns)
    msg.header.frame_id = str(outcome.frame_id)
    return msg


def outcome_from_msg(msg: FrameTrace) -> FrameOutcome:
    """A frame as its source saw it.

    Raises:
        KeyError: an outcome that is none of the message's constants.
    """
    return FrameOutcome(
        stream=msg.stream,
        seq=msg.seq,
        epoch=msg.epoch,
        outcome=_OUTCOME_FROM_MSG[msg.outcome],
        oldest_epoch=msg.oldest_epoch,
        latency_s=msg.latency_s,
        picture_bytes=msg.picture_bytes,
        stamp_ns=time_from_msg(msg.header.stamp),
        frame_id=msg.header.frame_id,
        trace=tuple(stage_record_from_msg(record) for record in msg.stages),
    )


def fleet_plan_to_msg(plan: FleetPlan, stamp: Time) -> PartitionPlan:
    """A fleet plan, stamped with the time of the decision."""
    msg = PartitionPlan(
        epoch=int(plan.epoch),
        planner=str(plan.planner),
        solver=str(plan.solver),
        reason=str(plan.reason),
        streams=[_decision_to_msg(decision) for decision in plan.streams.values()],
    )
    msg.header.stamp = stamp
    return msg


def fleet_plan_from_msg(msg: PartitionPlan) -> FleetPlan:
    """A fleet plan.

    Raises:
        PlanError: stages that are not consecutive or not on distinct devices.
    """
    return FleetPlan(
        epoch=msg.epoch,
        planner=msg.planner,
        solver=msg.solver,
        reason=msg.reason,
        streams={stream.stream: _decision_from_msg(stream) for stream in msg.streams},
    )


def _decision_to_msg(decision: StreamDecision) -> StreamPlan:
    plan = decision.plan
    return StreamPlan(
        stream=str(plan.stream),
        model=str(plan.model),
        weights=str(decision.weights),
        source=str(plan.source),
        sink=str(plan.sink),
        picture=str(plan.picture),
        stages=[
            StageAssignment(
                device=str(stage.device), start_unit=int(stage.start), stop_unit=int(stage.stop)
            )
            for stage in plan.stages
        ],
        energy_j=float(decision.energy_j),
        latency_s=float(decision.latency_s),
        period_s=float(decision.period_s),
    )


def _decision_from_msg(msg: StreamPlan) -> StreamDecision:
    plan = Plan(
        stream=msg.stream,
        model=msg.model,
        source=msg.source,
        sink=msg.sink,
        stages=tuple(Stage(s.device, s.start_unit, s.stop_unit) for s in msg.stages),
        picture=msg.picture,
    )
    return StreamDecision(plan, msg.weights, msg.energy_j, msg.latency_s, msg.period_s)

"""Between the dataclasses of the pure code and ROS messages: ``*_to_msg`` and ``*_from_msg``.

Every scalar passes through ``int()``, ``float()`` or ``str()`` because rclpy does not check field
types by default and a numpy scalar would silently be sent as zero. Bulk data goes through
``array.array``, the only assignment to ``uint8[]`` that is not slow.
"""

from __future__ import annotations

import array
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, TransformStamped, Vector3
from nav_msgs.msg import Odometry
from sensor_msgs.msg import BatteryState, CameraInfo
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from lapdtr_ros.msg import Alternative as AlternativeMsg
from lapdtr_ros.msg import (
    CacheReport,
    Detection,
    Detections,
    DeviceTelemetry,
    FeatureMap,
    FrameResult,
    FrameTrace,
    Object,
    ObjectArray,
    PartitionPlan,
    ResumeRequest,
    StageAssignment,
    StageTrace,
    StreamPlan,
)
from lapdtr_ros.msg import CutSetting as CutSettingMsg

from .datasets.opv2v import Pose as ActorPose
from .datasets.opv2v import VehicleLabel
from .energy.battery_state import BatteryReading
from .errors import LapdtrError
from .execution import frames
from .execution.frames import Feature, FrameOutcome, Holding, Packet, Result, StageRecord
from .perception import cooperation, geometry
from .perception.boxes import Boxes
from .perception.cooperation import FusedFrame
from .perception.poses import matrix_to_pose, pose_to_matrix
from .planning.monitor import LinkReading, Reading
from .planning.plan import (
    Alternative,
    CutSetting,
    FleetPlan,
    Moving,
    Plan,
    Stage,
    StreamDecision,
)

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
_STATUS_TO_MSG = {
    cooperation.COMPLETE: Detections.COMPLETE,
    cooperation.PARTIAL: Detections.PARTIAL,
    cooperation.NO_EGO_POSE: Detections.NO_EGO_POSE,
}
_STATUS_FROM_MSG = {value: key for key, value in _STATUS_TO_MSG.items()}

# The fixed frame of a fleet; poses of LiDARs are given in it.
MAP = 'map'

_KMH = 3.6  # km/h in a m/s
_TRACTION_V = 400.0
_SECONDS_PER_HOUR = 3600.0


class ReportError(LapdtrError):
    """A report with impossible parts, or whose parts do not belong together."""


class GeometryError(LapdtrError):
    """A message that does not describe a camera or a pose."""


def time_to_msg(nanoseconds: int) -> Time:
    """Nanoseconds since the epoch of the clock."""
    seconds, rest = divmod(int(nanoseconds), 1_000_000_000)
    return Time(sec=seconds, nanosec=rest)


def time_from_msg(msg: Time) -> int:
    """Nanoseconds since the epoch of the clock."""
    return msg.sec * 1_000_000_000 + msg.nanosec


def bytes_to_msg(data: bytes | memoryview) -> array.array:
    """Bulk data for a ``uint8[]`` field."""
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
        cut=_cut_to_msg(feature.packet.cut),
        data=bytes_to_msg(feature.packet.data),
        trace=[stage_record_to_msg(record) for record in feature.trace],
        session=int(feature.session),
        round=int(feature.round),
    )
    msg.header.stamp = time_to_msg(feature.stamp_ns)
    msg.header.frame_id = str(feature.frame_id)
    return msg


def feature_from_msg(msg: FeatureMap) -> Feature:
    """A feature map that arrived; its content is not yet checked.

    An unknown coding is kept as text so that the receiver's check refuses and names it.

    Raises:
        PlanError: a cut setting out of range.
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
            _cut_from_msg(msg.cut),
        ),
        stamp_ns=time_from_msg(msg.header.stamp),
        frame_id=msg.header.frame_id,
        trace=tuple(stage_record_from_msg(record) for record in msg.trace),
        session=msg.session,
        round=msg.round,
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
        data=bytes_to_msg(result.packet.data),
        trace=[stage_record_to_msg(record) for record in result.trace],
        session=int(result.session),
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
        session=msg.session,
    )


def cache_report_to_msg(
    device: str, question: ResumeRequest, holdings: Sequence[Holding]
) -> CacheReport:
    """What a device holds of the frames that a source asks for."""
    return CacheReport(
        device=str(device),
        stream=question.stream,
        session=question.session,
        round=question.round,
        seqs=[int(holding.seq) for holding in holdings],
        units=[int(holding.unit) for holding in holdings],
        in_hand=[bool(holding.in_hand) for holding in holdings],
    )


def holdings_from_msg(msg: CacheReport) -> list[Holding]:
    """What a device holds.

    Raises:
        ReportError: lists of different lengths.
    """
    if not len(msg.seqs) == len(msg.units) == len(msg.in_hand):
        raise ReportError(
            f'cache report of {msg.device!r} with {len(msg.seqs)} frames, {len(msg.units)} units '
            f'and {len(msg.in_hand)} states; expected as many of each'
        )
    return [Holding(*entry) for entry in zip(msg.seqs, msg.units, msg.in_hand, strict=True)]


def outcome_to_msg(outcome: FrameOutcome) -> FrameTrace:
    """A frame as its source saw it."""
    msg = FrameTrace(
        stream=str(outcome.stream),
        seq=int(outcome.seq),
        epoch=int(outcome.epoch),
        outcome=_OUTCOME_TO_MSG[outcome.outcome],
        latency_s=float(outcome.latency_s),
        picture_bytes=int(outcome.picture_bytes),
        stages=[stage_record_to_msg(record) for record in outcome.trace],
        resumed=int(outcome.resumed),
    )
    msg.header.stamp = time_to_msg(outcome.stamp_ns)
    msg.header.frame_id = str(outcome.frame_id)
    return msg


def _constant(field: str, value: int, known: Mapping[int, str]) -> str:
    """What a constant of a message stands for."""
    if value not in known:
        raise ReportError(f'{field} is {value}; use one of {", ".join(map(str, known))}')
    return known[value]


def outcome_from_msg(msg: FrameTrace) -> FrameOutcome:
    """A frame as its source saw it.

    Raises:
        ReportError: an outcome that is none of the message's constants.
    """
    return FrameOutcome(
        stream=msg.stream,
        seq=msg.seq,
        epoch=msg.epoch,
        outcome=_constant('outcome', msg.outcome, _OUTCOME_FROM_MSG),
        latency_s=msg.latency_s,
        picture_bytes=msg.picture_bytes,
        stamp_ns=time_from_msg(msg.header.stamp),
        frame_id=msg.header.frame_id,
        trace=tuple(stage_record_from_msg(record) for record in msg.stages),
        resumed=msg.resumed,
    )


def fleet_plan_to_msg(plan: FleetPlan, stamp: Time) -> PartitionPlan:
    """A fleet plan, stamped with the time of the decision."""
    msg = PartitionPlan(
        epoch=int(plan.epoch),
        planner=str(plan.planner),
        solver=str(plan.solver),
        reason=str(plan.reason),
        cause=str(plan.cause),
        alternatives=[_alternative_to_msg(alternative) for alternative in plan.alternatives],
        moving_j=float(plan.moving.joules),
        moving_s=float(plan.moving.seconds),
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
        cause=msg.cause,
        alternatives=tuple(_alternative_from_msg(entry) for entry in msg.alternatives),
        moving=Moving(joules=msg.moving_j, seconds=msg.moving_s),
    )


def _alternative_to_msg(alternative: Alternative) -> AlternativeMsg:
    return AlternativeMsg(
        name=str(alternative.name),
        energy_j=float(alternative.energy_j),
        latency_s=float(alternative.latency_s),
        period_s=float(alternative.period_s),
        accuracy=float(alternative.accuracy),
        moving_j=float(alternative.moving.joules),
        moving_s=float(alternative.moving.seconds),
    )


def _alternative_from_msg(msg: AlternativeMsg) -> Alternative:
    return Alternative(
        msg.name,
        msg.energy_j,
        msg.latency_s,
        msg.period_s,
        msg.accuracy,
        Moving(joules=msg.moving_j, seconds=msg.moving_s),
    )


def reading_from_msg(msg: DeviceTelemetry) -> Reading:
    """What the planner watches of a device's telemetry; its values are not yet checked.

    Raises:
        ReportError: lists about links that have different lengths.
    """
    if not len(msg.link_targets) == len(msg.link_bytes_per_s) == len(msg.link_delay_s):
        raise ReportError(
            f'telemetry of {msg.device!r} with {len(msg.link_targets)} links, '
            f'{len(msg.link_bytes_per_s)} rates and {len(msg.link_delay_s)} delays; expected as '
            f'many of each'
        )
    figures = zip(msg.link_bytes_per_s, msg.link_delay_s, strict=True)
    return Reading(
        device=msg.device,
        session=msg.session,
        device_class=msg.device_class,
        soc=msg.soc,
        load=msg.load,
        queue=msg.queue,
        time_ratio=msg.unit_time_ratio,
        links={
            target: LinkReading(*pair)
            for target, pair in zip(msg.link_targets, figures, strict=True)
        },
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
                device=str(stage.device),
                start_unit=int(stage.start),
                stop_unit=int(stage.stop),
                level=int(stage.level),
                cut=_cut_to_msg(stage.cut),
            )
            for stage in plan.stages
        ],
        energy_j=float(decision.energy_j),
        latency_s=float(decision.latency_s),
        period_s=float(decision.period_s),
        calibration=str(decision.calibration),
        accuracy=float(decision.accuracy),
    )


def _cut_to_msg(cut: CutSetting) -> CutSettingMsg:
    return CutSettingMsg(
        keep=int(cut.keep), form=str(cut.form), bits=int(cut.bits), transfer=str(cut.transfer)
    )


def _cut_from_msg(msg: CutSettingMsg) -> CutSetting:
    return CutSetting(msg.keep, msg.form, msg.bits, msg.transfer)


def _decision_from_msg(msg: StreamPlan) -> StreamDecision:
    plan = Plan(
        stream=msg.stream,
        model=msg.model,
        source=msg.source,
        sink=msg.sink,
        stages=tuple(
            Stage(s.device, s.start_unit, s.stop_unit, s.level, _cut_from_msg(s.cut))
            for s in msg.stages
        ),
        picture=msg.picture,
    )
    return StreamDecision(
        plan,
        msg.weights,
        msg.energy_j,
        msg.latency_s,
        msg.period_s,
        msg.calibration,
        msg.accuracy,
    )


# --- Cameras and poses: CARLA axes (y right) here, REP 103 (y left) in messages -------------------


def battery_to_msg(soc: float, capacity_j: float, power_w: float, stamp_ns: int) -> BatteryState:
    """State of a vehicle's traction battery, as if of a constant voltage.

    Args:
        soc: remaining / full, 0 to 1.
        capacity_j: energy when full [J].
        power_w: what is taken out [W].
        stamp_ns: time of the state.
    """
    capacity_ah = capacity_j / _TRACTION_V / _SECONDS_PER_HOUR
    return BatteryState(
        header=header_to_msg(stamp_ns, ''),
        voltage=_TRACTION_V,
        temperature=float('nan'),
        current=-float(power_w) / _TRACTION_V,
        charge=float(soc) * capacity_ah,
        capacity=capacity_ah,
        design_capacity=capacity_ah,
        percentage=float(soc),
        power_supply_status=BatteryState.POWER_SUPPLY_STATUS_DISCHARGING,
        power_supply_technology=BatteryState.POWER_SUPPLY_TECHNOLOGY_LION,
        present=True,
    )


def battery_reading_from_msg(msg: BatteryState) -> BatteryReading:
    """What a battery's message says about energy."""
    return BatteryReading(
        voltage=msg.voltage,
        current=msg.current,
        charge=msg.charge,
        capacity=msg.capacity,
        design_capacity=msg.design_capacity,
        percentage=msg.percentage,
        present=msg.present,
    )


def lidar_frame(vehicle: str) -> str:
    """Coordinate frame of a vehicle's LiDAR."""
    return f'{vehicle}/lidar'


def camera_info_to_msg(
    intrinsic: np.ndarray, size: tuple[int, int], stamp_ns: int, frame_id: str
) -> CameraInfo:
    """A camera without distortion.

    Args:
        intrinsic: (3, 3), pixels.
        size: (height, width) of the picture that it belongs to.
        stamp_ns: time of the picture.
        frame_id: frame of the camera's body (x forward); the message names the optical one.
    """
    height, width = size
    numbers = [float(value) for value in np.asarray(intrinsic).flat]
    return CameraInfo(
        header=header_to_msg(stamp_ns, f'{frame_id}_optical'),
        height=int(height),
        width=int(width),
        distortion_model='plumb_bob',
        d=[0.0] * 5,
        k=numbers,
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[*numbers[:3], 0.0, *numbers[3:6], 0.0, *numbers[6:], 0.0],
    )


def intrinsic_from_msg(msg: CameraInfo, size: tuple[int, int]) -> np.ndarray:
    """Intrinsic (3, 3) of a camera whose picture is stretched to ``size`` (height, width).

    Distortion is not looked at: rectified pictures are expected.

    Raises:
        GeometryError: a camera that is not calibrated.
    """
    intrinsic = np.array(msg.k, dtype=np.float64).reshape(3, 3)
    if not (msg.width and msg.height and intrinsic[0, 0] > 0 and intrinsic[1, 1] > 0):
        raise GeometryError(
            f'camera_info of {msg.header.frame_id!r} is not calibrated: {msg.width} x '
            f'{msg.height} pixels, K = {intrinsic.tolist()}; publish its calibration'
        )
    return np.diag([size[1] / msg.width, size[0] / msg.height, 1.0]) @ intrinsic


def lidar_pose_to_msg(pose: Sequence[float], stamp_ns: int) -> PoseStamped:
    """Pose ``(x, y, z, roll, yaw, pitch)`` of a LiDAR in the map."""
    position, quaternion = geometry.pose_to_ros(pose)
    return PoseStamped(
        header=header_to_msg(stamp_ns, MAP),
        pose=Pose(position=_point(position), orientation=_quaternion(quaternion)),
    )


def lidar_pose_from_msg(msg: PoseStamped) -> ActorPose:
    """Pose ``(x, y, z, roll, yaw, pitch)`` of a LiDAR in the map.

    Raises:
        GeometryError: a number is not finite, the quaternion is 0 or the frame is another one.
    """
    if msg.header.frame_id != MAP:
        raise GeometryError(f'LiDAR pose is in frame {msg.header.frame_id!r}; publish it in {MAP}')
    p, q = msg.pose.position, msg.pose.orientation
    return _pose_from_ros((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))


def mount_to_msg(extrinsic: np.ndarray, stamp_ns: int, lidar: str, camera: str) -> TransformStamped:
    """Where a camera sits on its vehicle: its body frame (x forward) seen from the LiDAR.

    Args:
        extrinsic: (4, 4), from LiDAR to camera, as in OPV2V.
        stamp_ns: time of the picture.
        lidar: frame of the LiDAR.
        camera: frame of the camera's body.
    """
    position, quaternion = geometry.pose_to_ros(matrix_to_pose(np.linalg.inv(extrinsic)))
    msg = TransformStamped(header=header_to_msg(stamp_ns, lidar), child_frame_id=str(camera))
    x, y, z = (float(value) for value in position)
    msg.transform.translation = Vector3(x=x, y=y, z=z)
    msg.transform.rotation = _quaternion(quaternion)
    return msg


def extrinsic_from_msg(msg: TransformStamped) -> np.ndarray:
    """Extrinsic (4, 4) from LiDAR to camera, as in OPV2V.

    Raises:
        GeometryError: a number is not finite or the quaternion is 0.
    """
    t, q = msg.transform.translation, msg.transform.rotation
    pose = _pose_from_ros((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))
    return np.linalg.inv(pose_to_matrix(pose))


def odometry_to_msg(pose: Sequence[float], speed: float, stamp_ns: int, vehicle: str) -> Odometry:
    """Pose ``(x, y, z, roll, yaw, pitch)`` of a vehicle in the map and its speed ahead in m/s."""
    position, quaternion = geometry.pose_to_ros(pose)
    msg = Odometry(header=header_to_msg(stamp_ns, MAP), child_frame_id=str(vehicle))
    msg.pose.pose = Pose(position=_point(position), orientation=_quaternion(quaternion))
    msg.twist.twist.linear.x = float(speed)
    return msg


def odometry_from_msg(msg: Odometry) -> tuple[ActorPose, float]:
    """Pose ``(x, y, z, roll, yaw, pitch)`` of a vehicle in the map and its speed in m/s.

    Raises:
        GeometryError: a number is not finite or the quaternion is 0.
    """
    p, q = msg.pose.pose.position, msg.pose.pose.orientation
    return _pose_from_ros((p.x, p.y, p.z), (q.x, q.y, q.z, q.w)), msg.twist.twist.linear.x


def objects_to_msg(labels: Iterable[VehicleLabel], stamp_ns: int, vehicle: str) -> ObjectArray:
    """Ground truth around one vehicle."""
    return ObjectArray(
        header=header_to_msg(stamp_ns, MAP),
        vehicle=str(vehicle),
        objects=[_object_to_msg(label) for label in labels],
    )


def _object_to_msg(label: VehicleLabel) -> Object:
    position, quaternion = geometry.pose_to_ros(label.pose)
    length, width, height = (2.0 * float(half) for half in label.extent)
    return Object(
        id=int(label.id),
        pose=Pose(position=_point(position), orientation=_quaternion(quaternion)),
        size=Vector3(x=length, y=width, z=height),
        speed=float(label.speed) / _KMH,
    )


def objects_from_msg(msg: ObjectArray) -> tuple[VehicleLabel, ...]:
    """Ground truth around one vehicle; the origin of each label is the centre of its box.

    Raises:
        GeometryError: a number is not finite or a quaternion is 0.
    """
    return tuple(_object_from_msg(entry) for entry in msg.objects)


def _object_from_msg(msg: Object) -> VehicleLabel:
    p, q = msg.pose.position, msg.pose.orientation
    x, y, z, roll, yaw, pitch = _pose_from_ros((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
    return VehicleLabel(
        id=msg.id,
        location=(x, y, z),
        center=(0.0, 0.0, 0.0),
        extent=(msg.size.x / 2, msg.size.y / 2, msg.size.z / 2),
        angle=(roll, yaw, pitch),
        speed=msg.speed * _KMH,
    )


def _pose_from_ros(position: Sequence[float], quaternion: Sequence[float]) -> ActorPose:
    try:
        return geometry.pose_from_ros(position, quaternion)
    except ValueError as error:
        raise GeometryError(str(error)) from None


def header_to_msg(stamp_ns: int, frame_id: str) -> Header:
    """A header of a time and a frame."""
    return Header(stamp=time_to_msg(stamp_ns), frame_id=str(frame_id))


def _point(values: Sequence[float] | np.ndarray) -> Point:
    x, y, z = (float(value) for value in values)
    return Point(x=x, y=y, z=z)


def _quaternion(values: Sequence[float] | np.ndarray) -> Quaternion:
    x, y, z, w = (float(value) for value in values)
    return Quaternion(x=x, y=y, z=z, w=w)


# --- Detections -----------------------------------------------------------------------------------


def detections_to_msg(frame: FusedFrame) -> Detections:
    """Fused detections, in the ego's LiDAR frame."""
    boxes = frame.boxes
    vectors = geometry.flip_handedness(boxes.vectors)
    rows = zip(vectors.tolist(), boxes.scores.tolist(), boxes.ids.tolist(), strict=True)
    return Detections(
        header=header_to_msg(frame.stamp_ns, lidar_frame(frame.ego)),
        ego=str(frame.ego),
        method=str(frame.method),
        status=_STATUS_TO_MSG[frame.status],
        streams=list(frame.streams),
        missing=list(frame.missing),
        out_of_range=list(frame.out_of_range),
        age_s=float(frame.age_s),
        late=int(frame.late),
        detections=[
            Detection(
                x=x,
                y=y,
                z=z,
                length=length,
                width=width,
                height=height,
                yaw=yaw,
                score=score,
                stream=stream,
            )
            for (x, y, z, length, width, height, yaw), score, stream in rows
        ],
    )


def detections_from_msg(msg: Detections) -> FusedFrame:
    """Fused detections, in CARLA axes.

    Raises:
        BoxError: a number that is not finite, or a size that is not positive.
        ReportError: a status that is none of the message's constants.
    """
    rows = [(d.x, d.y, d.z, d.length, d.width, d.height, d.yaw) for d in msg.detections]
    return FusedFrame(
        stamp_ns=time_from_msg(msg.header.stamp),
        ego=msg.ego,
        method=msg.method,
        status=_constant('status', msg.status, _STATUS_FROM_MSG),
        streams=tuple(msg.streams),
        missing=tuple(msg.missing),
        out_of_range=tuple(msg.out_of_range),
        age_s=msg.age_s,
        late=msg.late,
        boxes=Boxes.from_vectors(
            geometry.flip_handedness(rows),
            [d.score for d in msg.detections],
            [d.stream for d in msg.detections],
        ),
    )


def markers_to_msg(frame: FusedFrame, lifetime_s: float) -> MarkerArray:
    """Boxes for RViz: a cube, an arrow along the heading and the score for every detection.

    The first marker deletes those of the moment before.

    Args:
        frame: fused detections.
        lifetime_s: after this many seconds without a successor they vanish.
    """
    header = header_to_msg(frame.stamp_ns, lidar_frame(frame.ego))
    markers = [Marker(header=header, action=Marker.DELETEALL)]
    vectors = geometry.flip_handedness(frame.boxes.vectors)
    for index, (vector, score) in enumerate(zip(vectors, frame.boxes.scores, strict=True)):
        x, y, z, length, width, height, yaw = vector.tolist()
        turned = _quaternion(geometry.quaternion_from_yaw(yaw))
        colour = _score_colour(float(score))

        def marker(
            namespace: str,
            kind: int,
            position: Sequence[float],
            scale: Sequence[float],
            colour: ColorRGBA,
            orientation: Quaternion,
            index: int = index,
        ) -> Marker:
            return Marker(
                header=header,
                ns=namespace,
                id=index,
                type=kind,
                action=Marker.ADD,
                pose=Pose(position=_point(position), orientation=orientation),
                scale=Vector3(x=scale[0], y=scale[1], z=scale[2]),
                color=colour,
                lifetime=_duration(lifetime_s),
            )

        cube = marker('boxes', Marker.CUBE, (x, y, z), (length, width, height), colour, turned)
        arrow = marker('headings', Marker.ARROW, (x, y, z), (length, 0.2, 0.2), _WHITE, turned)
        above = (x, y, z + 0.5 * height + 0.6)
        text = marker(
            'scores', Marker.TEXT_VIEW_FACING, above, (0.0, 0.0, 0.8), _WHITE, Quaternion(w=1.0)
        )
        text.text = f'{score:.2f}'
        markers += [cube, arrow, text]
    return MarkerArray(markers=markers)


_WHITE = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)


def _score_colour(score: float) -> ColorRGBA:
    """From orange, unsure, to green, sure; see-through so that the arrow shows."""
    return ColorRGBA(r=1.0 - score, g=0.5 + 0.3 * score, b=0.2, a=0.6)


def _duration(seconds: float) -> Duration:
    whole, rest = divmod(round(seconds * 1e9), 1_000_000_000)
    return Duration(sec=whole, nanosec=rest)


def vision_messages() -> Any | None:
    """The module ``vision_msgs.msg``, None where that package is not installed."""
    try:
        return importlib.import_module('vision_msgs.msg')
    except ImportError:
        return None


def vision_detections_to_msg(frame: FusedFrame, messages: Any) -> Any:
    """Fused detections as ``vision_msgs/Detection3DArray``.

    Args:
        frame: fused detections.
        messages: what `vision_messages` found.
    """
    header = header_to_msg(frame.stamp_ns, lidar_frame(frame.ego))
    array_msg = messages.Detection3DArray(header=header)
    vectors = geometry.flip_handedness(frame.boxes.vectors)
    for vector, score in zip(vectors, frame.boxes.scores, strict=True):
        x, y, z, length, width, height, yaw = vector.tolist()
        turned = _quaternion(geometry.quaternion_from_yaw(yaw))
        pose = Pose(position=Point(x=x, y=y, z=z), orientation=turned)
        result = messages.ObjectHypothesisWithPose()
        result.hypothesis.class_id = 'vehicle'
        result.hypothesis.score = float(score)
        result.pose.pose = pose
        size = Vector3(x=length, y=width, z=height)
        box = messages.BoundingBox3D(center=pose, size=size)
        array_msg.detections.append(messages.Detection3D(header=header, results=[result], bbox=box))
    return array_msg

"""The fusion node: turns the results of all cameras of all vehicles into one list of vehicles."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from geometry_msgs.msg import PoseStamped, TransformStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo
from visualization_msgs.msg import MarkerArray

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.evaluation.detected import detection_grid
from lapdtr_ros.models.facts import DETECTION, model_spec
from lapdtr_ros.msg import Detections, FrameResult, FrameTrace
from lapdtr_ros.perception import cooperation
from lapdtr_ros.perception.boxes import ScoreRule
from lapdtr_ros.perception.cooperation import Cooperation, FusedFrame, View
from lapdtr_ros.perception.detection_targets import CHANNELS, TargetError
from lapdtr_ros.perception.fusion import AgentDetections, FusionMethod, FusionSettings, PoseNoise
from lapdtr_ros.scenario import FusionSection, ScenarioError, load_scenario

from .base import (
    OK,
    STALE,
    WARN,
    Diagnosis,
    ManagedNode,
    accepted,
    changed,
    declare,
    parameter,
    refused,
    run_node,
)
from .handback import Handback

# How late a deadline may be noticed, seconds.
_DEADLINE_CHECK_S = 0.02


@dataclass(frozen=True)
class FusionParameters:
    """Parameters of the fusion node. Empty or negative: as the scenario says."""

    listeners: int = parameter(
        0, 'Subscribers that must hear the detections before results are taken', minimum=0
    )
    ego: str = parameter('', 'Vehicle in whose LiDAR frame the detections are')
    deadline_s: float = parameter(-1.0, 'Longest wait for silent streams of a moment [s]')
    method: str = parameter('', 'nms or wbf', dynamic=True)
    score_rule: str = parameter(
        '', 'Score of a box that wbf merged: max, mean or noisy_or', dynamic=True
    )
    iou_threshold: float = parameter(
        -1.0, 'Overlap above which two boxes show the same vehicle', dynamic=True
    )
    score_threshold: float = parameter(-1.0, 'Least score of a detection', dynamic=True)
    communication_range_m: float = parameter(
        -1.0, 'Distance up to which vehicles take part [m]', dynamic=True
    )
    position_noise_m: float = parameter(
        -1.0, 'Error put on positions of other vehicles, std of x, y and z [m]', dynamic=True
    )
    yaw_noise_deg: float = parameter(
        -1.0, 'Error put on headings of other vehicles, std [deg]', dynamic=True
    )
    noise_seed: int = parameter(-1, 'Seed of these errors', dynamic=True)
    marker_lifetime_s: float = parameter(
        1.0, 'After this time markers without a successor vanish [s]', minimum=0.0, dynamic=True
    )


class FusionNode(ManagedNode):
    """Decodes the results of all streams and merges them moment by moment.

    A moment is published when all streams have delivered or said that they will not, at the latest
    ``deadline_s`` after its first result. Stamps are matched exactly.

    Parameters:
        See `FusionParameters` and `CommonParameters`.

    Subscriptions:
        <fleet>/<stream>/result (FrameResult): of every stream.
        <fleet>/<stream>/camera_info (sensor_msgs/CameraInfo): under the stamp of the picture.
        <fleet>/<stream>/mount (geometry_msgs/TransformStamped): under the stamp of the picture.
        <fleet>/<vehicle>/lidar_pose (geometry_msgs/PoseStamped): under the stamp of the picture.
        <fleet>/frame_traces (FrameTrace): lost and refused frames are not waited for.

    Publishers:
        <fleet>/detections (Detections): in the LiDAR frame of the ego.
        <fleet>/detection_markers (visualization_msgs/MarkerArray): the same for RViz.
        <fleet>/vision_detections (vision_msgs/Detection3DArray): where vision_msgs is installed.
    """

    def __init__(self) -> None:
        super().__init__('fusion')
        self.parameters = declare(self, FusionParameters)
        self._held_publishers: list[Publisher] = []
        self._worker: Handback | None = None
        self._newest: FusedFrame | None = None
        self._without_ego = self._rejected = 0
        self._last_error = ''
        self._wanted = self._hearing = False

    def configure(self) -> None:
        """Read the scenario and create the publishers."""
        scenario = load_scenario(self.common.scenario)
        if scenario.file.fusion is None:
            raise ScenarioError(
                f'{scenario.path}: has no fusion section; add fusion: {{ego: NAME OF A VEHICLE}}'
            )
        model = scenario.file.model.name
        if model_spec(model).head != DETECTION:
            raise ScenarioError(
                f'{scenario.path}: model.name: {model!r} does not detect; add +{DETECTION} to it'
            )
        self._section: FusionSection = scenario.file.fusion
        self._grid = detection_grid(model)
        self._vehicles = {name: one.source for name, one in scenario.file.streams.items()}
        self._cooperation = Cooperation(
            self.parameters.ego or self._section.ego,
            self._vehicles,
            _settings(self._section, self.parameters),
            _chosen(self.parameters.deadline_s, self._section.deadline_s),
            self._section.capacity,
        )
        self._open_publishers(self.common.fleet)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.add_post_set_parameters_callback(self._on_parameters_set)
        self._worker = Handback(self, 'detections')

    def _open_publishers(self, fleet: str) -> None:
        matched = PublisherEventCallbacks(matched=lambda _: self._listen_when_heard())
        self._detections = self.create_publisher(
            Detections,
            topics.detections(fleet),
            qos.detections(),
            event_callbacks=matched,
            qos_overriding_options=qos.overridable(),
        )
        self._markers = self.create_publisher(
            MarkerArray, topics.detection_markers(fleet), qos.detections()
        )
        self._held_publishers = [self._detections, self._markers]
        self._vision_messages = conversions.vision_messages()
        if self._vision_messages is not None:
            self._vision = self.create_publisher(
                self._vision_messages.Detection3DArray,
                topics.vision_detections(fleet),
                qos.detections(),
            )
            self._held_publishers.append(self._vision)

    def activate(self) -> None:
        """Listen to results as soon as somebody listens to the detections."""
        self._wanted = True
        self.every(_DEADLINE_CHECK_S, self._deliver)
        self._listen_when_heard()

    def deactivate(self) -> None:
        """Stop listening."""
        self._wanted = self._hearing = False

    def cleanup(self) -> None:
        """Stop the worker."""
        if self._worker is not None:
            self._worker.close()
            self.remove_on_set_parameters_callback(self._on_set_parameters)
            self.remove_post_set_parameters_callback(self._on_parameters_set)
        self._worker = None
        for publisher in self._held_publishers:
            self.destroy_publisher(publisher)
        self._held_publishers = []

    def diagnose(self) -> list[Diagnosis]:
        """Who was heard, and what came late or not at all."""
        counters = self._cooperation.counters
        values = {
            'complete': str(counters.complete),
            'partial': str(counters.partial),
            'late': str(counters.late),
            'duplicate': str(counters.duplicate),
            'overflowed': str(counters.overflowed),
            'waiting': str(self._cooperation.waiting),
            'unplaced': str(self._cooperation.unplaced),
            'without_ego_pose': str(self._without_ego),
            'rejected': str(self._rejected),
        }
        if self._last_error:
            return [Diagnosis('detections', WARN, self._last_error, values)]
        if self._newest is None and self._cooperation.waiting:
            text = 'results wait for their camera_info, mount or lidar_pose'
            return [Diagnosis('detections', WARN, text, values)]
        if self._newest is None:
            return [Diagnosis('detections', STALE, 'no detections yet', values)]
        if self._newest.missing:
            text = f'missing: {", ".join(self._newest.missing)}'
            return [Diagnosis('detections', WARN, text, values)]
        return [Diagnosis('detections', OK, f'{len(self._newest.boxes)} vehicles', values)]

    def _listen_when_heard(self) -> None:
        """Devices wait for this node's subscriptions, so nothing is fused for nobody."""
        count = self._detections.get_subscription_count()
        if not self._wanted or self._hearing or count < self.parameters.listeners:
            return
        self._hearing = True
        fleet = self.common.fleet
        self._subscribe(FrameTrace, topics.frame_traces(fleet), self._on_trace, qos.traces())
        for vehicle in dict.fromkeys(self._vehicles.values()):
            heard = partial(self._on_pose, vehicle)
            self._subscribe(PoseStamped, topics.lidar_pose(fleet, vehicle), heard, qos.geometry())
        for stream in self._vehicles:
            for kind, topic, listener, profile in (
                (CameraInfo, topics.camera_info, self._on_camera_info, qos.geometry()),
                (TransformStamped, topics.mount, self._on_mount, qos.geometry()),
                (FrameResult, topics.result, self._on_result, qos.frames()),
            ):
                self._subscribe(kind, topic(fleet, stream), partial(listener, stream), profile)

    def _subscribe(
        self, kind: type, topic: str, heard: Callable[[Any], None], profile: QoSProfile
    ) -> None:
        def callback(msg: Any) -> None:
            try:
                heard(msg)
            except LapdtrError as error:
                self._refuse(f'{topic}: {error}')

        self.listen(kind, topic, callback, profile)

    def _on_pose(self, vehicle: str, msg: PoseStamped) -> None:
        stamp_ns = conversions.time_from_msg(msg.header.stamp)
        self._cooperation.hear_pose(vehicle, stamp_ns, conversions.lidar_pose_from_msg(msg))
        for view in self._cooperation.take_views(vehicle, stamp_ns):
            self._decode(view)

    def _on_camera_info(self, stream: str, msg: CameraInfo) -> None:
        stamp_ns = conversions.time_from_msg(msg.header.stamp)
        intrinsic = conversions.intrinsic_from_msg(msg, (self._grid.height, self._grid.width))
        self._cooperation.hear_intrinsic(stream, stamp_ns, intrinsic)
        self._decode_if_placed(stream, stamp_ns)

    def _on_mount(self, stream: str, msg: TransformStamped) -> None:
        stamp_ns = conversions.time_from_msg(msg.header.stamp)
        self._cooperation.hear_mount(stream, stamp_ns, conversions.extrinsic_from_msg(msg))
        self._decode_if_placed(stream, stamp_ns)

    def _on_result(self, stream: str, msg: FrameResult) -> None:
        result = conversions.result_from_msg(msg)
        values = result.packet.to_array()
        expected = (1, CHANNELS, self._grid.rows, self._grid.columns)
        if values.shape != expected:
            raise TargetError(f'frame {result.seq} has shape {values.shape}, expected {expected}')
        self._cooperation.hear_result(stream, result.stamp_ns, values[0])
        self._decode_if_placed(stream, result.stamp_ns)

    def _on_trace(self, msg: FrameTrace) -> None:
        if msg.outcome == FrameTrace.FINISHED or msg.stream not in self._vehicles:
            return
        stamp_ns = conversions.time_from_msg(msg.header.stamp)
        self._cooperation.add_absence(msg.stream, stamp_ns, time.monotonic())
        self._deliver()

    def _decode_if_placed(self, stream: str, stamp_ns: int) -> None:
        view = self._cooperation.take_view(stream, stamp_ns)
        if view is not None:
            self._decode(view)

    def _decode(self, view: View) -> None:
        assert self._worker is not None
        threshold = _chosen(self.parameters.score_threshold, self._section.score_threshold)

        def done(found: AgentDetections | None, error: Exception | None) -> None:
            if found is None:
                self._refuse(f'{view.stream}: {error}')
                return
            if not self._cooperation.add(view.stream, view.stamp_ns, found, time.monotonic()):
                self._refuse_late(view)
            self._deliver()

        self._worker.submit(lambda: view.decode(self._grid, threshold), done)

    def _refuse_late(self, view: View) -> None:
        self.get_logger().warning(
            f'{view.stream}: result of {view.stamp_ns * 1e-9:.3f} s was not taken: late, or the '
            'second one of its moment',
            throttle_duration_sec=1.0,
        )

    def _deliver(self) -> None:
        """Have the moments fused that are complete or past their deadline."""
        assert self._worker is not None
        for moment in self._cooperation.due(time.monotonic()):
            self._worker.submit(moment.fuse, self._on_fused)

    def _on_fused(self, frame: FusedFrame | None, error: Exception | None) -> None:
        if frame is None:
            self._refuse(f'detections cannot be merged: {error}')
            return
        self._newest = frame
        if frame.status == cooperation.NO_EGO_POSE:
            self._without_ego += 1
        self._detections.publish(conversions.detections_to_msg(frame))
        if self._markers.get_subscription_count():
            lifetime_s = self.parameters.marker_lifetime_s
            self._markers.publish(conversions.markers_to_msg(frame, lifetime_s))
        if self._vision_messages is not None and self._vision.get_subscription_count():
            messages = self._vision_messages
            self._vision.publish(conversions.vision_detections_to_msg(frame, messages))

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            _settings(self._section, self._with(parameters))
        except LapdtrError as error:
            return refused(str(error))
        return accepted()

    def _on_parameters_set(self, parameters: list[Parameter]) -> None:
        self.parameters = self._with(parameters)
        self._cooperation.settings = _settings(self._section, self.parameters)

    def _with(self, parameters: list[Parameter]) -> FusionParameters:
        values = {k: v for k, v in changed(parameters).items() if hasattr(self.parameters, k)}
        return dataclasses.replace(self.parameters, **values)

    def _refuse(self, reason: str) -> None:
        self._rejected += 1
        self._last_error = reason
        self.get_logger().warning(reason, throttle_duration_sec=1.0)


def _chosen(value: float, otherwise: float) -> float:
    return value if value >= 0 else otherwise


def _settings(section: FusionSection, parameters: FusionParameters) -> FusionSettings:
    """The scenario's settings with what the user changed since."""
    overlap = parameters.iou_threshold
    return FusionSettings(
        method=cast(FusionMethod, parameters.method or section.method),
        score_rule=cast(ScoreRule, parameters.score_rule or section.score_rule),
        iou_threshold=overlap if overlap >= 0 else section.iou_threshold,
        communication_range_m=_chosen(
            parameters.communication_range_m, section.communication_range_m
        ),
        noise=PoseNoise(
            _chosen(parameters.position_noise_m, section.position_noise_m),
            _chosen(parameters.yaw_noise_deg, section.yaw_noise_deg),
            int(_chosen(parameters.noise_seed, section.noise_seed)),
        ),
    )


def main(args: list[str] | None = None) -> int:
    """Entry point of ``ros2 run lapdtr_ros fusion``."""
    return run_node(FusionNode, args)


if __name__ == '__main__':
    sys.exit(main())

"""Measures the detections of a running fleet against ground truth that somebody publishes."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from geometry_msgs.msg import PoseStamped

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.datasets.opv2v import CameraModel, Pose, VehicleLabel
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.evaluation.average_precision import ApResult, EvaluationProtocol, evaluate_frames
from lapdtr_ros.evaluation.run_record import dump, encode
from lapdtr_ros.msg import Detections, ObjectArray
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.ground_truth import ground_truth
from lapdtr_ros.scenario import ScenarioError, load_scenario

from .base import OK, WARN, Diagnosis, ManagedNode, declare, parameter, run_node

_MOST_OPEN = 2000


@dataclass(frozen=True)
class EvaluatorParameters:
    """Parameters of the evaluator node."""

    out: str = parameter('', 'JSON file to write at the end; empty: only tell')


@dataclass(frozen=True)
class _View:
    """What ground truth needs of a vehicle at one moment."""

    lidar_pose: Pose
    vehicles: dict[int, VehicleLabel]
    cameras: dict[int, CameraModel] = field(default_factory=dict)


class EvaluatorNode(ManagedNode):
    """Average precision of ``/detections`` by OPV2V's protocol, over the moments that were fused.

    Ground truth is the union of what the vehicles in range list, in the LiDAR frame of the ego.
    The figures are told every second in ``/diagnostics`` and at deactivation in the log.

    Parameters:
        See `EvaluatorParameters` and `CommonParameters`.

    Subscriptions:
        <fleet>/detections (Detections)
        <fleet>/<vehicle>/objects (ObjectArray), lidar_pose (PoseStamped): of every source.
    """

    def __init__(self) -> None:
        super().__init__('evaluator')
        self.parameters = declare(self, EvaluatorParameters)

    def configure(self) -> None:
        """Read the scenario."""
        scenario = load_scenario(self.common.scenario)
        if scenario.file.fusion is None:
            raise ScenarioError(f'{scenario.path}: fusion is missing: without it nothing is fused')
        self._ego = scenario.file.fusion.ego
        self._range_m = scenario.file.fusion.communication_range_m
        self._vehicles = sorted({s.source for s in scenario.file.streams.values()})
        self._protocol = EvaluationProtocol(
            split='live', vehicles=len(self._vehicles), communication_range_m=self._range_m
        )

    def activate(self) -> None:
        """Listen."""
        self._poses: dict[int, dict[str, Pose]] = defaultdict(dict)
        self._objects: dict[int, dict[str, dict[int, VehicleLabel]]] = defaultdict(dict)
        self._found: dict[int, Boxes] = {}
        self._frames: list[tuple[Boxes, Boxes]] = []
        self._problem = ''
        fleet = self.common.fleet
        self.listen(Detections, topics.detections(fleet), self._on_detections, qos.detections())
        for vehicle in self._vehicles:
            pose, objects = topics.lidar_pose(fleet, vehicle), topics.objects(fleet, vehicle)
            self.listen(PoseStamped, pose, partial(self._on_pose, vehicle), qos.geometry())
            self.listen(ObjectArray, objects, partial(self._on_objects, vehicle), qos.geometry())

    def deactivate(self) -> None:
        """Tell and write the figures."""
        result = self._result()
        self.get_logger().info(_told(result))
        if self.parameters.out:
            path = Path(self.parameters.out).expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dump(encode(result.as_dict())), encoding='utf-8')

    def diagnose(self) -> list[Diagnosis]:
        """The figures so far."""
        if self._problem:
            return [Diagnosis('accuracy', WARN, self._problem)]
        if not self._frames:
            return [Diagnosis('accuracy', WARN, 'no moment with detections and ground truth yet')]
        return [Diagnosis('accuracy', OK, _told(self._result()))]

    def _result(self) -> ApResult:
        return evaluate_frames(self._frames, self._protocol)

    def _on_pose(self, vehicle: str, msg: PoseStamped) -> None:
        try:
            pose = conversions.lidar_pose_from_msg(msg)
        except LapdtrError as error:
            self._problem = f'{vehicle}: {error}'
            return
        self._poses[conversions.time_from_msg(msg.header.stamp)][vehicle] = pose
        self._match(conversions.time_from_msg(msg.header.stamp))

    def _on_objects(self, vehicle: str, msg: ObjectArray) -> None:
        try:
            labels = {label.id: label for label in conversions.objects_from_msg(msg)}
        except LapdtrError as error:
            self._problem = f'{vehicle}: {error}'
            return
        self._objects[conversions.time_from_msg(msg.header.stamp)][vehicle] = labels
        self._match(conversions.time_from_msg(msg.header.stamp))

    def _on_detections(self, msg: Detections) -> None:
        stamp_ns = conversions.time_from_msg(msg.header.stamp)
        self._found[stamp_ns] = conversions.detections_from_msg(msg).boxes
        self._match(stamp_ns)

    def _match(self, stamp_ns: int) -> None:
        """Score a moment as soon as detections, poses and objects of all vehicles are there."""
        everyone = set(self._vehicles)
        poses, objects = self._poses.get(stamp_ns, {}), self._objects.get(stamp_ns, {})
        if stamp_ns in self._found and everyone <= poses.keys() and everyone <= objects.keys():
            views = {name: _View(poses[name], objects[name]) for name in self._vehicles}
            truth = ground_truth(views, self._ego, self._protocol.ground_truth_rule)
            self._frames.append((self._found.pop(stamp_ns), truth))
        for book in (self._poses, self._objects, self._found):
            while len(book) > _MOST_OPEN:
                del book[min(book)]  # type: ignore[attr-defined]


def _told(result: ApResult) -> str:
    figures = ', '.join(f'AP{round(100 * t)} {ap:.3f}' for t, ap in result.ap.items())
    return f'{figures} over {result.frames} moments, {result.ground_truths} boxes'


def main(args: list[str] | None = None) -> int:
    """Entry point of ``ros2 run lapdtr_ros evaluator``."""
    return run_node(EvaluatorNode, args)


if __name__ == '__main__':
    sys.exit(main())

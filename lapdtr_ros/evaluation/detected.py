"""What the agents of a scene found, moment by moment, and what it is worth together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lapdtr_ros.datasets.opv2v import AgentFrame, time_s
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.detection_targets import Grid
from lapdtr_ros.perception.fusion import AgentDetections, FusionSettings, fuse
from lapdtr_ros.perception.ground_truth import (
    CAMERA_LABELS,
    GroundTruthRule,
    agents_in_range,
    ground_truth,
)

from .average_precision import ApResult, EvaluationProtocol, evaluate_frames

SCORE_THRESHOLD = 0.05  # AP integrates over all scores; lower ones cost time and add nothing


def detection_grid(model: str) -> Grid:
    """The cells of a detection model's output."""
    profile = profile_model(model)
    height, width, _ = profile.picture_shape
    _, rows, columns = profile.units[-1].output_shape
    return Grid(rows, columns, height, width)


@dataclass(frozen=True, eq=False)
class DetectedFrame:
    """All agents of a scenario at one timestamp, with what each of them found.

    Attributes:
        frame: agent id to what it recorded, the ego first.
        detections: agent id to one set of boxes per camera, in the frame of the agent's LiDAR.
    """

    frame: Mapping[int, AgentFrame]
    detections: Mapping[int, tuple[Boxes, ...]]

    @property
    def ego(self) -> int:
        """The agent that is evaluated."""
        return next(iter(self.frame))


def fused_boxes(detected: DetectedFrame, agents: Iterable[int], settings: FusionSettings) -> Boxes:
    """Merge what some agents found, in the frame of the ego's LiDAR."""
    ego = detected.ego
    contributions = [
        AgentDetections(str(agent), time_s(view.timestamp), view.lidar_pose, boxes)
        for agent in agents
        for view in [detected.frame[agent]]
        for boxes in detected.detections[agent]
    ]
    return fuse(contributions, str(ego), detected.frame[ego].lidar_pose, settings)


def score(
    frames: Sequence[DetectedFrame],
    protocol: EvaluationProtocol,
    settings: FusionSettings,
    *,
    alone: bool,
    own_camera_labels: bool = False,
) -> ApResult:
    """AP of one way to use the detections.

    Args:
        frames: what all agents found.
        protocol: how to measure.
        settings: how detections are merged.
        alone: whether only the ego's own cameras count; all agents in range otherwise.
        own_camera_labels: measure against the vehicles whose centre lies in a picture of the ego
            itself, instead of OpenCOOD's union of the labels of all agents in range.
    """
    rule = protocol.ground_truth_rule
    if own_camera_labels:
        rule = dataclasses.replace(rule, labels=CAMERA_LABELS)
        protocol = dataclasses.replace(protocol, label_rule=CAMERA_LABELS, vehicles=1)
    return evaluate_frames(
        (
            (
                fused_boxes(detected, _participants(detected, rule, alone), settings),
                ground_truth(
                    detected.frame,
                    detected.ego,
                    rule,
                    agents=[detected.ego] if own_camera_labels else None,
                ),
            )
            for detected in frames
        ),
        protocol,
    )


def _participants(detected: DetectedFrame, rule: GroundTruthRule, alone: bool) -> list[int]:
    if alone:
        return [detected.ego]
    poses = {agent: view.lidar_pose for agent, view in detected.frame.items()}
    return agents_in_range(poses, detected.ego, rule.communication_range_m)

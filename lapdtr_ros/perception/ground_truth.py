"""Ground truth of one cooperative frame, by the conventions of OPV2V and OpenCOOD.

A frame's ground truth is the union of what the vehicles in communication range list, keyed by
actor id, in the ego LiDAR's frame. The ego itself belongs to it when another vehicle lists it, as
in every published number.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np

from lapdtr_ros.errors import UnknownNameError

from . import geometry
from .boxes import Boxes, Limits
from .geometry import BoxVariant

AgentName = TypeVar('AgentName', bound=Hashable)  # int in a dataset, str in a fleet
LabelRule = Literal['lidar', 'camera']
LIDAR_LABELS: LabelRule = 'lidar'
CAMERA_LABELS: LabelRule = 'camera'

COMMUNICATION_RANGE_M = 70.0


class Camera(Protocol):
    """The part of a camera model that is read here (see `datasets.opv2v`)."""

    @property
    def intrinsic(self) -> np.ndarray:
        """(3, 3), pixels."""

    @property
    def extrinsic(self) -> np.ndarray:
        """(4, 4), LiDAR to camera in CARLA axes."""


class Vehicle(Protocol):
    """The part of a vehicle label that is read here."""

    @property
    def location(self) -> Sequence[float]:
        """Actor origin in the world, metres."""

    @property
    def center(self) -> Sequence[float]:
        """Origin to box centre, metres."""

    @property
    def extent(self) -> Sequence[float]:
        """Half length, width and height, metres."""

    @property
    def angle(self) -> Sequence[float]:
        """`(roll, yaw, pitch)`, degrees."""


class AgentView(Protocol):
    """What one vehicle recorded at one moment: the part of a frame that is read here."""

    @property
    def lidar_pose(self) -> Sequence[float]:
        """`(x, y, z, roll, yaw, pitch)` in the world."""

    @property
    def cameras(self) -> Mapping[int, Camera]:
        """Cameras by number."""

    @property
    def vehicles(self) -> Mapping[int, Vehicle]:
        """Labels by actor id."""


@dataclass(frozen=True)
class GroundTruthRule:
    """Which labels count; every report of an AP states these.

    Attributes:
        labels: `LIDAR_LABELS` takes all that a vehicle lists, i.e. hit by one of its LiDAR rays;
            `CAMERA_LABELS` only those of which the box centre also lies in front of and inside the
            picture of one of that same vehicle's cameras. (HEAL uses rendered visibility maps
            instead, which most copies of OPV2V lack.)
        cameras: camera numbers that count for `CAMERA_LABELS`; None for all.
        variant: how the centre offset enters the box.
        limits: region that must hold all corners of a box; None keeps all.
        communication_range_m: planar distance of LiDAR poses up to which a vehicle takes part.
    """

    labels: LabelRule = LIDAR_LABELS
    cameras: Collection[int] | None = None
    variant: BoxVariant = geometry.OPENCOOD
    limits: Limits | None = None
    communication_range_m: float = COMMUNICATION_RANGE_M

    def __post_init__(self) -> None:
        if self.labels not in (LIDAR_LABELS, CAMERA_LABELS):
            raise UnknownNameError('label rule', self.labels, (LIDAR_LABELS, CAMERA_LABELS))


def agents_in_range(
    poses: Mapping[AgentName, Sequence[float]],
    ego: AgentName,
    range_m: float = COMMUNICATION_RANGE_M,
) -> list[AgentName]:
    """Agents within `range_m` of the ego in the plane, the ego first, the others in their order.

    Raises:
        UnknownNameError: If the ego has no pose.
    """
    if ego not in poses:
        raise UnknownNameError('ego', str(ego), map(str, poses))
    near = (
        agent
        for agent, pose in poses.items()
        if agent != ego and geometry.planar_distance(pose, poses[ego]) <= range_m
    )
    return [ego, *near]


def ground_truth(
    frame: Mapping[AgentName, AgentView],
    ego: AgentName,
    rule: GroundTruthRule | None = None,
    agents: Iterable[AgentName] | None = None,
) -> Boxes:
    """Boxes of all vehicles that the agents in range list, in the ego LiDAR's frame.

    Args:
        frame: what every agent recorded at this moment, by agent name.
        ego: the agent in whose LiDAR frame the boxes are given.
        rule: which labels count; the default is OpenCOOD's LiDAR protocol without limits.
        agents: whose labels count, first come first served on an id; by default all in range now,
            the ego first. Give it to reproduce a set chosen by delayed poses.

    Returns:
        Upright boxes with the actor ids in `ids`, scores 1.

    Raises:
        UnknownNameError: If the ego or an agent is not in the frame.
    """
    rule = rule or GroundTruthRule()
    poses = {agent: view.lidar_pose for agent, view in frame.items()}
    in_range = agents_in_range(poses, ego, rule.communication_range_m)
    labels: dict[int, Vehicle] = {}
    for agent in in_range if agents is None else agents:
        if agent not in frame:
            raise UnknownNameError('agent', str(agent), map(str, frame))
        for vehicle_id, vehicle in _labels_of(frame[agent], rule).items():
            labels.setdefault(vehicle_id, vehicle)
    if not labels:
        return Boxes.empty()
    corners = _world_corners(labels.values(), rule.variant)
    to_ego = np.linalg.inv(geometry.pose_to_matrix(poses[ego]))
    vectors = geometry.corners_to_boxes(geometry.transform_points(to_ego, corners))
    boxes = Boxes.from_vectors(vectors, ids=list(labels))
    return boxes if rule.limits is None else boxes[rule.limits.contains(boxes)]


def _world_corners(vehicles: Collection[Vehicle], variant: BoxVariant) -> np.ndarray:
    return geometry.vehicle_corners(
        [vehicle.location for vehicle in vehicles],
        [vehicle.center for vehicle in vehicles],
        [vehicle.extent for vehicle in vehicles],
        [vehicle.angle for vehicle in vehicles],
        variant,
    )


def _labels_of(view: AgentView, rule: GroundTruthRule) -> dict[int, Vehicle]:
    """The labels of one agent that count."""
    labels = dict(view.vehicles)
    if rule.labels == LIDAR_LABELS or not labels:
        return labels
    centers = _world_corners(labels.values(), rule.variant).mean(axis=1)
    to_lidar = np.linalg.inv(geometry.pose_to_matrix(view.lidar_pose))
    cameras = [
        camera
        for number, camera in view.cameras.items()
        if rule.cameras is None or number in rule.cameras
    ]
    seen = visible_in_any(geometry.transform_points(to_lidar, centers), cameras)
    return {
        key: label for (key, label), visible in zip(labels.items(), seen, strict=True) if visible
    }


def visible_in_any(points: np.ndarray, cameras: Iterable[Camera]) -> np.ndarray:
    """Mask (N,) of the points of the LiDAR frame, (N, 3), inside the picture of some camera.

    The picture reaches from 0 to twice the principal point, as OPV2V's cameras are centred.
    Occlusion is not looked at.
    """
    seen = np.zeros(len(points), dtype=bool)
    for camera in cameras:
        pixels, _ = geometry.project_to_image(points, camera.extrinsic, camera.intrinsic)
        size = 2.0 * np.asarray(camera.intrinsic, dtype=np.float64)[:2, 2]
        # Points behind the camera are NaN, which compares false.
        seen |= ((pixels >= 0.0) & (pixels < size)).all(axis=-1)
    return seen

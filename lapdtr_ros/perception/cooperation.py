"""What the fusion node does, free of ROS: joins results with their geometry and fuses by moment.

A result says nothing about where its camera was. Intrinsic, mount and pose travel beside it under
the same stamp, in any order; `Cooperation` hands out a view for decoding once all four are there,
and a `FusedFrame` once all streams of a moment are decoded or its deadline has passed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from lapdtr_ros.errors import UnknownNameError

from . import geometry
from .boxes import Boxes
from .detection_targets import BoxCoding, Grid, decode
from .fusion import AgentDetections, FusionSettings, FusionWindow, WindowCounters, fuse

COMPLETE = 'complete'
PARTIAL = 'partial'
NO_EGO_POSE = 'no_ego_pose'

# Geometry is heard when a picture is sent, so it waits for frames in flight as well.
_KEPT_PER_MOMENT = 4

_Key = TypeVar('_Key', bound=Hashable)


@dataclass(frozen=True, eq=False)
class PinholeCamera:
    """A camera without distortion.

    Attributes:
        intrinsic: (3, 3), pixels of the picture that the model takes.
        extrinsic: (4, 4), from the vehicle's LiDAR to the camera, both in CARLA axes.
    """

    intrinsic: np.ndarray
    extrinsic: np.ndarray


@dataclass(frozen=True, eq=False)
class View:
    """A model's output for one picture with all that it takes to place what it says.

    Attributes:
        stream: camera stream.
        vehicle: the vehicle that carries the camera.
        stamp_ns: time of the picture, nanoseconds.
        camera: the camera at that time.
        lidar_pose: pose of the vehicle's LiDAR at that time.
        values: the model's output, (10, rows, columns).
    """

    stream: str
    vehicle: str
    stamp_ns: int
    camera: PinholeCamera
    lidar_pose: Sequence[float]
    values: np.ndarray

    def decode(
        self, grid: Grid, score_threshold: float, coding: BoxCoding | None = None
    ) -> AgentDetections:
        """The boxes in the picture, in the frame of the vehicle's LiDAR.

        Raises:
            TargetError: the output does not have the shape of the grid.
        """
        boxes = decode(self.values, self.camera, grid, coding, score_threshold)
        return AgentDetections(self.vehicle, self.stamp_ns * 1e-9, self.lidar_pose, boxes)


@dataclass(frozen=True, eq=False)
class FusedFrame:
    """Detections of all vehicles at one moment; fields as in ``Detections.msg``, but CARLA axes.

    Attributes:
        stamp_ns: time of the pictures, nanoseconds.
        ego: vehicle in whose LiDAR frame the boxes are.
        method: how duplicates were merged.
        status: `COMPLETE`, `PARTIAL`, or `NO_EGO_POSE`: then there are no boxes.
        streams: camera streams that contributed.
        missing: camera streams that were expected and did not contribute.
        out_of_range: vehicles too far from the ego to take part.
        age_s: from the first result of this moment to delivery, seconds.
        late: results since the start that came after their moment was delivered.
        boxes: by descending score; `ids` holds the index in `streams` of the camera that led.
    """

    stamp_ns: int
    ego: str
    method: str
    status: str
    streams: tuple[str, ...]
    missing: tuple[str, ...]
    out_of_range: tuple[str, ...]
    age_s: float
    late: int
    boxes: Boxes


@dataclass(frozen=True, eq=False)
class Moment:
    """All that was found at one moment, ready to be fused.

    Attributes:
        stamp_ns: time of the pictures, nanoseconds.
        ego: vehicle whose view is built.
        ego_pose: pose of its LiDAR at that time, None when it was not heard.
        found: by stream, in the order of fusion; None where a stream did not deliver.
        age_s: from the first result to delivery, seconds.
        late: results since the start that came after their moment was delivered.
        settings: how to merge.
    """

    stamp_ns: int
    ego: str
    ego_pose: Sequence[float] | None
    found: Mapping[str, AgentDetections | None]
    age_s: float
    late: int
    settings: FusionSettings

    def fuse(self) -> FusedFrame:
        """Merge everything into the ego's view."""
        found = {stream: one for stream, one in self.found.items() if one is not None}
        missing = tuple(stream for stream in self.found if stream not in found)
        status, boxes = NO_EGO_POSE, Boxes.empty()
        too_far: tuple[str, ...] = ()
        if self.ego_pose is not None:
            status = PARTIAL if missing else COMPLETE
            boxes = fuse(list(found.values()), self.ego, self.ego_pose, self.settings)
            too_far = self._too_far(found.values(), self.ego_pose)
        return FusedFrame(
            stamp_ns=self.stamp_ns,
            ego=self.ego,
            method=self.settings.method,
            status=status,
            streams=tuple(found),
            missing=missing,
            out_of_range=too_far,
            age_s=self.age_s,
            late=self.late,
            boxes=boxes,
        )

    def _too_far(
        self, found: Iterable[AgentDetections], ego_pose: Sequence[float]
    ) -> tuple[str, ...]:
        limit = self.settings.communication_range_m
        far = (
            one.agent for one in found if geometry.planar_distance(one.lidar_pose, ego_pose) > limit
        )
        return tuple(dict.fromkeys(far))


@dataclass
class _Parts:
    """What was heard of one picture so far."""

    intrinsic: np.ndarray | None = None
    extrinsic: np.ndarray | None = None
    values: np.ndarray | None = None


class Cooperation:
    """Gathers results and geometry of all camera streams and fuses them moment by moment.

    Everything that arrives is kept in bounded memory; what never becomes complete makes room for
    newer moments and is counted in `unplaced`.

    Args:
        ego: vehicle whose view is built.
        streams: camera stream to the vehicle that carries the camera; fusion takes them in this
            order, which decides between equal scores.
        settings: how to merge.
        deadline_s: how long a moment waits after its first result, seconds.
        capacity: most moments that are open at once.

    Raises:
        UnknownNameError: no stream belongs to the ego.
    """

    def __init__(
        self,
        ego: str,
        streams: Mapping[str, str],
        settings: FusionSettings,
        deadline_s: float,
        capacity: int = 32,
    ) -> None:
        if ego not in streams.values():
            raise UnknownNameError('ego', ego, set(streams.values()))
        self.settings = settings
        self.unplaced = 0
        self._ego = ego
        self._vehicles = dict(streams)
        self._window = FusionWindow[AgentDetections | None](streams, deadline_s, capacity)
        self._parts: dict[tuple[str, int], _Parts] = {}
        self._poses: dict[tuple[str, int], Sequence[float]] = {}
        # Ordered sets.
        self._taken: dict[tuple[str, int], None] = {}
        self._absent: dict[tuple[str, int], None] = {}
        self._open: dict[int, None] = {}
        self._most_kept = _KEPT_PER_MOMENT * capacity * len(self._vehicles)

    @property
    def counters(self) -> WindowCounters:
        """What became of contributions and frames."""
        return self._window.counters

    @property
    def waiting(self) -> int:
        """Results whose intrinsic, mount or pose has not been heard."""
        return sum(parts.values is not None for parts in self._parts.values())

    def hear_intrinsic(self, stream: str, stamp_ns: int, intrinsic: np.ndarray) -> None:
        """Intrinsic (3, 3) of a picture, in pixels of the picture that the model takes."""
        self._part(stream, stamp_ns).intrinsic = intrinsic

    def hear_mount(self, stream: str, stamp_ns: int, extrinsic: np.ndarray) -> None:
        """Extrinsic (4, 4) of a picture, from LiDAR to camera in CARLA axes."""
        self._part(stream, stamp_ns).extrinsic = extrinsic

    def hear_pose(self, vehicle: str, stamp_ns: int, pose: Sequence[float]) -> None:
        """Pose of a vehicle's LiDAR in the world; every camera of a vehicle may repeat it."""
        self._poses[vehicle, stamp_ns] = pose
        _forget_oldest(self._poses, self._most_kept)

    def hear_result(self, stream: str, stamp_ns: int, values: np.ndarray) -> None:
        """The model's output for a picture, (10, rows, columns); the first one counts."""
        if (stream, stamp_ns) in self._taken:
            self.counters.duplicate += 1
        else:
            self._part(stream, stamp_ns).values = values

    def take_view(self, stream: str, stamp_ns: int) -> View | None:
        """The view of a picture if all of it has arrived; it is handed out once."""
        vehicle = self._vehicles[stream]
        parts, pose = self._parts.get((stream, stamp_ns)), self._poses.get((vehicle, stamp_ns))
        if parts is None or pose is None:
            return None
        if parts.intrinsic is None or parts.extrinsic is None or parts.values is None:
            return None
        del self._parts[stream, stamp_ns]
        self._taken[stream, stamp_ns] = None
        _forget_oldest(self._taken, self._most_kept)
        camera = PinholeCamera(parts.intrinsic, parts.extrinsic)
        return View(stream, vehicle, stamp_ns, camera, pose, parts.values)

    def take_views(self, vehicle: str, stamp_ns: int) -> list[View]:
        """All views of a vehicle that wait for nothing any more, e.g. since its pose is here."""
        of_vehicle = (stream for stream, owner in self._vehicles.items() if owner == vehicle)
        views = (self.take_view(stream, stamp_ns) for stream in of_vehicle)
        return [view for view in views if view is not None]

    def add(self, stream: str, stamp_ns: int, found: AgentDetections, now: float) -> bool:
        """Take what a stream found; the first of a moment starts its deadline.

        Returns:
            Whether it was taken; if not, a counter says why.
        """
        taken = self._window.add(stream, stamp_ns, found, now)
        if taken and stamp_ns not in self._open:
            self._open[stamp_ns] = None
            _forget_oldest(self._open, self._most_kept)
            for other in self._vehicles:
                if (other, stamp_ns) in self._absent:
                    self._window.add(other, stamp_ns, None, now)
        return taken

    def add_absence(self, stream: str, stamp_ns: int, now: float) -> None:
        """A stream will not deliver at this moment, so nobody needs to wait for it."""
        self._absent[stream, stamp_ns] = None
        _forget_oldest(self._absent, self._most_kept)
        if stamp_ns in self._open:
            self._window.add(stream, stamp_ns, None, now)

    def due(self, now: float) -> list[Moment]:
        """Moments that are complete or past their deadline, oldest first."""
        frames = self._window.due(now)
        for frame in frames:
            self._open.pop(frame.key, None)
        return [
            Moment(
                stamp_ns=frame.key,
                ego=self._ego,
                ego_pose=self._poses.get((self._ego, frame.key)),
                found={stream: frame.contributions.get(stream) for stream in self._vehicles},
                age_s=frame.age_s,
                late=self.counters.late,
                settings=self.settings,
            )
            for frame in frames
        ]

    def _part(self, stream: str, stamp_ns: int) -> _Parts:
        if stream not in self._vehicles:
            raise UnknownNameError('stream', stream, self._vehicles)
        parts = self._parts.setdefault((stream, stamp_ns), _Parts())
        dropped = _forget_oldest(self._parts, self._most_kept)
        self.unplaced += sum(one.values is not None for one in dropped)
        return parts


def _forget_oldest(kept: dict[_Key, Any], most: int) -> list[Any]:
    """Drop the entries that came first until no more than ``most`` are left."""
    dropped = []
    while len(kept) > most:
        dropped.append(kept.pop(next(iter(kept))))
    return dropped

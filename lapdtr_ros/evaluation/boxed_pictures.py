"""Camera pictures with the boxes of a moment, from parts that come in any order, free of ROS."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lapdtr_ros.datasets.opv2v import CameraModel, Pose
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.cooperation import FusedFrame
from lapdtr_ros.perception.geometry import relative_transform

from .detection_pictures import SHOWN_SCORE, camera_picture
from .pictures import Picture

# Moments that are kept: pictures come long before their detections where devices are slow.
_MOST_MOMENTS = 32


@dataclass
class _Moment:
    """What belongs to one stamp, by stream or vehicle."""

    pictures: dict[str, Picture] = field(default_factory=dict)
    intrinsics: dict[str, np.ndarray] = field(default_factory=dict)
    mounts: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)
    poses: dict[str, Pose] = field(default_factory=dict)


class BoxedPictures:
    """Keeps pictures and geometry by their stamp until the detections of the moment are known."""

    def __init__(self) -> None:
        self._moments: dict[int, _Moment] = {}

    def add_picture(self, stream: str, stamp_ns: int, pixels: Picture) -> None:
        """A camera's picture."""
        self._moment(stamp_ns).pictures[stream] = pixels

    def add_intrinsic(self, stream: str, stamp_ns: int, intrinsic: np.ndarray) -> None:
        """(3, 3) of a camera; its picture's size is as the principal point implies it."""
        self._moment(stamp_ns).intrinsics[stream] = intrinsic

    def add_mount(self, stream: str, stamp_ns: int, vehicle: str, extrinsic: np.ndarray) -> None:
        """(4, 4) from the LiDAR of a vehicle to its camera."""
        self._moment(stamp_ns).mounts[stream] = vehicle, extrinsic

    def add_pose(self, vehicle: str, stamp_ns: int, pose: Pose) -> None:
        """Pose of a vehicle's LiDAR in the world."""
        self._moment(stamp_ns).poses[vehicle] = pose

    def boxed(self, frame: FusedFrame) -> dict[str, Picture]:
        """Pictures of a moment by stream, with the boxes that a detector stands for.

        Cameras whose place is not known at that moment are left out.
        """
        moment = self._moments.get(frame.stamp_ns)
        if moment is None or frame.ego not in moment.poses:
            return {}
        shown = frame.boxes[frame.boxes.scores >= SHOWN_SCORE]
        ego = moment.poses[frame.ego]
        placed = moment.pictures.keys() & moment.intrinsics.keys() & moment.mounts.keys()
        return {
            stream: self._drawn(moment, stream, shown, ego)
            for stream in sorted(placed)
            if moment.mounts[stream][0] in moment.poses
        }

    def _moment(self, stamp_ns: int) -> _Moment:
        moment = self._moments.setdefault(stamp_ns, _Moment())
        while len(self._moments) > _MOST_MOMENTS:
            del self._moments[min(self._moments)]
        return moment

    @staticmethod
    def _drawn(moment: _Moment, stream: str, boxes: Boxes, ego: Pose) -> Picture:
        vehicle, extrinsic = moment.mounts[stream]
        pose, pixels = moment.poses[vehicle], moment.pictures[stream]
        camera = CameraModel(pose, moment.intrinsics[stream], extrinsic)
        camera = camera.resized(pixels.shape[1], pixels.shape[0])
        nothing = Boxes.from_vectors(np.empty((0, 7)), [])
        found = boxes.transformed(relative_transform(ego, pose))
        return camera_picture(pixels, camera, nothing, found)

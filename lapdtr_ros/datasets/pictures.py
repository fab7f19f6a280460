"""Pictures of one camera in order, at the size a model takes."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapdtr_ros.models.preprocess import resize_picture

from .opv2v import (
    TICK_S,
    AgentFrame,
    CameraModel,
    DatasetError,
    Pose,
    agent_name,
    open_dataset,
    read_image,
    time_s,
)

_STEP_S = 2 * TICK_S  # from one timestamp of OPV2V to the next
_KEPT_PICTURES = 64


@dataclass(frozen=True)
class Picture:
    """One picture of a camera.

    Attributes:
        pixels: uint8 RGB, shape (height, width, 3).
        stamp_ns: time of the picture in nanoseconds; scene time for recorded pictures.
        frame_id: coordinate frame of the camera.
        camera: the camera with the intrinsic of ``pixels``; None where nobody knows it.
        lidar_pose: pose of the vehicle's LiDAR at that time; None where nobody knows it.
    """

    pixels: np.ndarray
    stamp_ns: int
    frame_id: str
    camera: CameraModel | None = None
    lidar_pose: Pose | None = None


class PictureSequence:
    """Resized pictures of one camera of an OPV2V scene.

    An index beyond the end starts over with the first picture, while the stamps go on: a moment
    never comes twice.

    Args:
        dataset: directory of one scene, or of a data set whose first scene is taken.
        agent: connected vehicle; None takes the scene's ego.
        camera: camera number, 0 (front) to 3 (back).
        size: (height, width) to resize to.

    Raises:
        DatasetError: no scene, no such vehicle, or no picture of that camera.
    """

    def __init__(
        self, dataset: Path, agent: int | None, camera: int, size: tuple[int, int]
    ) -> None:
        self._scenario = open_dataset(dataset)[0]
        self._agent = self._scenario.ego.id if agent is None else agent
        self._camera = camera
        self._size = size
        # A short scene that repeats is decoded once, so that the camera costs the model no time.
        self._recent: OrderedDict[int, Picture] = OrderedDict()
        known = [a.id for a in self._scenario.agents]
        if self._agent not in known:
            raise DatasetError(f'{self._scenario.path}: no agent {self._agent}; known: {known}')
        if not self._scenario.timestamps:
            raise DatasetError(f'{self._scenario.path}: the scene is empty; choose another one')

    def __len__(self) -> int:
        return len(self._scenario.timestamps)

    def stamp_ns(self, index: int) -> int:
        """Time of picture ``index``, also of one that cannot be read."""
        timestamps = self._scenario.timestamps
        lap, position = divmod(index, len(self))
        lap_s = time_s(timestamps[-1]) - time_s(timestamps[0]) + _STEP_S
        return round((time_s(timestamps[position]) + lap * lap_s) * 1e9)

    def path(self, index: int) -> Path:
        """File of picture ``index``.

        Raises:
            DatasetError: the camera has no picture at that time.
        """
        return self._path(self._frame(index))

    def __getitem__(self, index: int) -> Picture:
        position = index % len(self)
        if position not in self._recent:
            self._recent[position] = self._read(position)
            if len(self._recent) > _KEPT_PICTURES:
                self._recent.popitem(last=False)
        return dataclasses.replace(self._recent[position], stamp_ns=self.stamp_ns(index))

    def _read(self, position: int) -> Picture:
        frame = self._frame(position)
        height, width = self._size
        return Picture(
            pixels=resize_picture(read_image(self._path(frame)), self._size),
            stamp_ns=self.stamp_ns(position),
            frame_id=self._frame_id(),
            camera=frame.cameras[self._camera].resized(width, height),
            lidar_pose=frame.lidar_pose,
        )

    def _frame_id(self) -> str:
        return f'{agent_name(self._agent)}/camera{self._camera}'

    def _frame(self, index: int) -> AgentFrame:
        timestamp = self._scenario.timestamps[index % len(self)]
        return self._scenario.frame(self._agent, timestamp)

    def _path(self, frame: AgentFrame) -> Path:
        if self._camera not in frame.image_paths:
            raise DatasetError(
                f'{self._scenario.path}: agent {self._agent} has no picture of camera '
                f'{self._camera} at {frame.timestamp}'
            )
        return frame.image_paths[self._camera]

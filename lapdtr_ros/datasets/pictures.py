"""Pictures of one camera in order, at the size a model takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lapdtr_ros.models.preprocess import resize_picture

from .opv2v import DatasetError, open_dataset, read_image, time_s


@dataclass(frozen=True)
class Picture:
    """One picture of a camera.

    Attributes:
        pixels: uint8 RGB, shape (height, width, 3).
        stamp_ns: time of the picture in nanoseconds; scene time for recorded pictures.
        frame_id: coordinate frame of the camera.
    """

    pixels: np.ndarray
    stamp_ns: int
    frame_id: str


class PictureSequence:
    """Resized pictures of one camera of an OPV2V scene; index ``i`` beyond the end starts over.

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
        known = [a.id for a in self._scenario.agents]
        if self._agent not in known:
            raise DatasetError(f'{self._scenario.path}: no agent {self._agent}; known: {known}')
        if not self._scenario.timestamps:
            raise DatasetError(f'{self._scenario.path}: the scene is empty; choose another one')

    def __len__(self) -> int:
        return len(self._scenario.timestamps)

    def path(self, index: int) -> Path:
        """File of picture ``index``.

        Raises:
            DatasetError: the camera has no picture at that time.
        """
        timestamp = self._scenario.timestamps[index % len(self)]
        paths = self._scenario.frame(self._agent, timestamp).image_paths
        if self._camera not in paths:
            raise DatasetError(
                f'{self._scenario.path}: agent {self._agent} has no picture of camera '
                f'{self._camera} at {timestamp}'
            )
        return paths[self._camera]

    def __getitem__(self, index: int) -> Picture:
        timestamp = self._scenario.timestamps[index % len(self)]
        return Picture(
            resize_picture(read_image(self.path(index)), self._size),
            round(time_s(timestamp) * 1e9),
            f'cav_{self._agent}/camera{self._camera}',
        )

"""Pictures of OPV2V scenes to calibrate on, and the accuracy of what a model finds in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lapdtr_ros.datasets.opv2v import AgentFrame, CameraModel, Scenario, open_dataset, prefetch
from lapdtr_ros.evaluation.average_precision import ApResult, EvaluationProtocol
from lapdtr_ros.evaluation.detected import SCORE_THRESHOLD, DetectedFrame, detection_grid, score
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.preprocess import resize_picture
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes
from lapdtr_ros.perception.detection_targets import decode
from lapdtr_ros.perception.fusion import FusionSettings

from .errors import CalibrateError

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
Picture = np.ndarray


@dataclass(frozen=True, eq=False)
class View:
    """One camera picture.

    Attributes:
        agent: who took it.
        picture: uint8 RGB at the model's size.
        camera: where it was taken, for the picture's own size.
    """

    agent: int
    picture: Picture
    camera: CameraModel


@dataclass(frozen=True, eq=False)
class Moment:
    """One timestamp of a scene: agent id to what it recorded, the ego first, and all pictures."""

    frames: Mapping[int, AgentFrame]
    views: tuple[View, ...]


class ValidationFrames:
    """Moments of a data set, and the AP of detections in them.

    AP50 counts all vehicles in range fused, ranked over all frames, within the camera range.

    Args:
        model: name of a model with head ``detection``.
        moments: see `load_moments`.
        split: what they are, for people.
    """

    def __init__(self, model: str, moments: Sequence[Moment], split: str) -> None:
        self.moments = tuple(moments)
        self._grid = detection_grid(model)
        self._protocol = EvaluationProtocol(split, limits=CAMERA_RANGE)

    def boxes(self, values: np.ndarray, view: View) -> Boxes:
        """Decode a result [1, 10, rows, columns] of the picture of ``view``."""
        camera = view.camera.resized(self._grid.width, self._grid.height)
        return decode(values[0], camera, self._grid, score_threshold=SCORE_THRESHOLD)

    def accuracy(self, found: Sequence[Sequence[Boxes]]) -> ApResult:
        """AP of boxes by moment and view."""
        detected = []
        for moment, boxes in zip(self.moments, found, strict=True):
            by_agent: dict[int, list[Boxes]] = {agent: [] for agent in moment.frames}
            for view, boxes_of_view in zip(moment.views, boxes, strict=True):
                by_agent[view.agent].append(boxes_of_view)
            detected.append(
                DetectedFrame(moment.frames, {a: tuple(parts) for a, parts in by_agent.items()})
            )
        return score(detected, self._protocol, FusionSettings(), alone=False)


def load_moments(
    dataset: Path, model: str, count: int, seed: int, progress: Progress
) -> list[Moment]:
    """Read moments of a data set, spread over its scenes.

    Args:
        dataset: OPV2V directory.
        model: gives the size of the pictures.
        count: number of moments.
        seed: which.
        progress: wraps a loop with a title.

    Raises:
        CalibrateError: the data set has fewer.
        DatasetError: it cannot be read.
    """
    chosen = choose_moments(open_dataset(dataset), count, seed, dataset)
    size = model_spec(model).picture_shape[:2]
    return [
        _read_moment(scenario, stamp, size)
        for scenario, stamp in progress(chosen, 'reading scenes')
    ]


def choose_moments(
    scenarios: Sequence[Scenario], count: int, seed: int, dataset: Path
) -> list[tuple[Scenario, str]]:
    """Choose timestamps at random, one of every scene before a second one of any.

    Raises:
        CalibrateError: there are fewer than ``count``.
    """
    generator = np.random.default_rng(seed)
    shuffled = [
        (place, generator.random(), scenario, stamp)
        for scenario in scenarios
        for place, stamp in enumerate(generator.permutation(list(scenario.timestamps)))
    ]
    if len(shuffled) < count:
        raise CalibrateError(
            f'{dataset}: {len(shuffled)} moments, but {count} are asked for; give fewer frames or '
            f'another data set'
        )
    shuffled.sort(key=lambda entry: entry[:2])
    return [(scenario, str(stamp)) for _, _, scenario, stamp in shuffled[:count]]


def _read_moment(scenario: Scenario, stamp: str, size: tuple[int, int]) -> Moment:
    (snapshot,) = prefetch(scenario, workers=1, timestamps=[stamp])
    views = [
        View(agent, resize_picture(picture, size), decoded.frame.cameras[number])
        for agent, decoded in snapshot.agents.items()
        for number, picture in decoded.images.items()
    ]
    return Moment(
        {agent: decoded.frame for agent, decoded in snapshot.agents.items()}, tuple(views)
    )

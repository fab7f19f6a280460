"""Training samples: pictures with the vehicles that their cameras can see."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lapdtr_ros.datasets.opv2v import CameraModel, Scenario, read_image
from lapdtr_ros.models.facts import ModelSpec
from lapdtr_ros.models.preprocess import picture_to_input, resize_picture
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.detection_targets import Grid, encode_targets
from lapdtr_ros.perception.ground_truth import ground_truth, visible_in_any

from .augmentation import flip_features, flip_targets, jitter_colours
from .errors import TrainingError
from .losses import Targets, spread_targets

# Nobody evaluates farther away; such vehicles are a few pixels and would rule the loss.
FARTHEST_M = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture and its labels.

    Attributes:
        path: of the picture.
        camera: with the intrinsic of the model's picture.
        boxes: vehicles whose centre lies in the picture, in the frame of the LiDAR.
        agent: scenario, timestamp and agent; the pictures of one agent share it.
    """

    path: Path
    camera: CameraModel
    boxes: Boxes
    agent: tuple[str, str, int]


def collect_samples(
    scenarios: Iterable[Scenario], spec: ModelSpec, frame_step: int = 1
) -> list[Sample]:
    """List the pictures of all agents at every ``frame_step``-th timestamp.

    The labels of a picture are its own agent's vehicles (OPV2V's LiDAR-visible ones) whose centre
    projects into the picture, up to `FARTHEST_M`.

    Raises:
        TrainingError: If there is no picture at all.
    """
    height, width, _ = spec.picture_shape
    samples = []
    for scenario in scenarios:
        for timestamp in scenario.timestamps[::frame_step]:
            for agent in scenario.agents:
                view = scenario.frame(agent.id, timestamp)
                boxes = ground_truth({agent.id: view}, agent.id)
                boxes = boxes[np.linalg.norm(boxes.centers[:, :2], axis=1) <= FARTHEST_M]
                key = (scenario.name, timestamp, agent.id)
                for number, path in view.image_paths.items():
                    camera = view.cameras[number].resized(width, height)
                    seen = boxes[visible_in_any(boxes.centers, [camera])]
                    samples.append(Sample(path, camera, seen, key))
    if not samples:
        raise TrainingError('the dataset holds no pictures; give a directory with camera PNG files')
    _log.info('%d pictures, %d labels', len(samples), sum(len(s.boxes) for s in samples))
    return samples


def sample_input(sample: Sample, spec: ModelSpec) -> np.ndarray:
    """The normalised picture of a sample: float32 [3, H, W]."""
    picture = resize_picture(read_image(sample.path), spec.picture_shape[:2])
    return picture_to_input(picture, spec)[0]


def sample_targets(sample: Sample, grid: Grid) -> Targets:
    """What the head shall say about a sample."""
    return spread_targets(encode_targets(sample.boxes, sample.camera, grid))


class SampleDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Inputs, target values and weights of samples, for a `DataLoader`.

    What augmentation does to a sample follows from (seed, epoch, index) alone, so that a resumed
    training repeats it, whatever the number of loading processes.

    Args:
        samples: what to load.
        spec: of the model.
        grid: of its output.
        seed: of the augmentation; None leaves pictures as they are.
        features: inputs of the first trained unit, one per sample, instead of pictures.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        spec: ModelSpec,
        grid: Grid,
        seed: int | None = None,
        features: np.ndarray | None = None,
    ) -> None:
        self._samples = samples
        self._spec = spec
        self._grid = grid
        self._seed = seed
        self._features = features
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        sample = self._samples[index]
        targets = sample_targets(sample, self._grid)
        if self._features is not None:
            features = self._features[index].astype(np.float32)
        elif self._seed is None:
            features = sample_input(sample, self._spec)
        else:
            features, targets = self._augmented(sample, targets, index)
        values, weights = torch.from_numpy(targets.values), torch.from_numpy(targets.weights)
        return torch.from_numpy(features), values, weights

    def _augmented(
        self, sample: Sample, targets: Targets, index: int
    ) -> tuple[np.ndarray, Targets]:
        assert self._seed is not None
        rng = np.random.default_rng((self._seed, self.epoch, index))
        picture = resize_picture(read_image(sample.path), self._spec.picture_shape[:2])
        features = picture_to_input(jitter_colours(picture, rng), self._spec)[0]
        if rng.random() < 0.5:
            return flip_features(features), flip_targets(targets)
        return features, targets

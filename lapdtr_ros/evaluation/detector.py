"""Offline evaluation of a camera-based detector over OPV2V directories.

Every camera picture of every agent goes through the model once; the decoded boxes then serve all
comparisons: one vehicle or all, either way of merging, any protocol. Nothing travels over a
network here, see `benchmarks/accuracy.py` for what that would change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lapdtr_ros.datasets.opv2v import CameraModel, Scenario, prefetch
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.preprocess import picture_to_input, resize_picture
from lapdtr_ros.models.weights import StageModule, load_units
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes
from lapdtr_ros.perception.detection_targets import decode
from lapdtr_ros.perception.fusion import NMS, WBF, FusionSettings

from .average_precision import LOCAL_SORT, ApResult, EvaluationProtocol
from .detected import SCORE_THRESHOLD, DetectedFrame, detection_grid, score

Fusions = Mapping[str, FusionSettings]

FUSIONS: Fusions = {
    settings.name: settings
    for settings in (
        FusionSettings(NMS),
        FusionSettings(WBF, score_rule='max'),
        FusionSettings(WBF, score_rule='noisy_or'),
    )
}


class Detector:
    """A whole detection model on one device, from pictures to boxes.

    Args:
        stage: all units of a model with head `detection`, loaded.
        precision: dtype of the matrix products; `torch.float32` is what the fleet computes in.
    """

    def __init__(self, stage: StageModule, precision: torch.dtype = torch.float32) -> None:
        self.stage = stage
        self.spec = model_spec(stage.model)
        self.grid = detection_grid(stage.model)
        self.precision = precision
        self.device = next(stage.parameters()).device

    @classmethod
    def load(
        cls,
        model: str,
        weights: str,
        device: str = 'cpu',
        precision: torch.dtype = torch.float32,
    ) -> Detector:
        """Load a model by name, see `lapdtr_ros.models.weights` for identifiers of weights."""
        units = len(model_spec(model).unit_names)
        return cls(load_units(model, 0, units, weights, device), precision)

    def predict(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Raw maps of pictures of any size: float32 [B, 10, rows, columns]."""
        size = self.spec.picture_shape[:2]
        inputs = [picture_to_input(resize_picture(p, size), self.spec) for p in pictures]
        batch = torch.from_numpy(np.concatenate(inputs)).to(self.device)
        return run_units(self.stage.units, batch, self.precision).cpu().numpy()

    def detect(self, pictures: Sequence[np.ndarray], cameras: Sequence[CameraModel]) -> list[Boxes]:
        """Boxes in the frame of the LiDAR, for each picture."""
        if not pictures:
            return []
        width, height = self.grid.width, self.grid.height
        return [
            decode(
                values,
                camera.resized(width, height),
                self.grid,
                score_threshold=SCORE_THRESHOLD,
            )
            for values, camera in zip(self.predict(pictures), cameras, strict=True)
        ]


def run_units(units: Iterable[torch.nn.Module], features: Tensor, precision: torch.dtype) -> Tensor:
    """Run units without gradients; `precision` other than float32 computes in autocast."""
    mixed = precision != torch.float32
    with torch.inference_mode(), torch.autocast(features.device.type, precision, enabled=mixed):
        for unit in units:
            features = unit(features)
    return features.float()


def detect_scenarios(
    detector: Detector,
    scenarios: Iterable[Scenario],
    protocol: EvaluationProtocol,
    frame_step: int = 1,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Iterator[DetectedFrame]:
    """Run a detector over every ``frame_step``-th timestamp of all agents that may take part.

    The pictures of one agent, four as a rule, make one batch.
    """
    for scenario in progress(list(scenarios)):
        stamps = scenario.timestamps[::frame_step]
        for snapshot in prefetch(scenario, protocol.cameras, workers=1, timestamps=stamps):
            agents = list(snapshot.agents.items())[: protocol.vehicles]
            found = {}
            for agent, decoded in agents:
                numbers = list(decoded.images)
                pictures = [decoded.images[n] for n in numbers]
                cameras = [decoded.frame.cameras[n] for n in numbers]
                found[agent] = tuple(detector.detect(pictures, cameras))
            yield DetectedFrame({agent: d.frame for agent, d in agents}, found)


@dataclass(frozen=True)
class DetectorReport:
    """AP of a detector over a set of frames; every result carries its protocol.

    Attributes:
        model: name of the model.
        weights: identifier of its weights.
        single: by way of merging; only the ego's cameras, against the union of the labels of all
            agents in range (OpenCOOD's convention, the primary figure).
        fused: by way of merging; all agents in range, against the same ground truth.
        single_own_labels: by way of merging; only the ego's cameras, against what they can see.
        single_local: as `single`, detections ranked within each frame only.
        fused_local: as `fused`, detections ranked within each frame only.
    """

    model: str
    weights: str
    single: Mapping[str, ApResult]
    fused: Mapping[str, ApResult]
    single_own_labels: Mapping[str, ApResult]
    single_local: Mapping[str, ApResult]
    fused_local: Mapping[str, ApResult]

    def as_dict(self) -> dict[str, Any]:
        """Figures and protocols for JSON reports."""
        kinds = ('single', 'fused', 'single_own_labels', 'single_local', 'fused_local')
        results = {
            kind: {name: result.as_dict() for name, result in getattr(self, kind).items()}
            for kind in kinds
        }
        return {'model': self.model, 'weights': self.weights, **results}


def score_detections(
    frames: Sequence[DetectedFrame],
    protocol: EvaluationProtocol,
    model: str,
    weights: str,
    fusions: Fusions = FUSIONS,
) -> DetectorReport:
    """Compare one vehicle with all vehicles and the ways of merging on the same detections."""
    local = dataclasses.replace(protocol, sort=LOCAL_SORT)

    def compare(
        rules: EvaluationProtocol, *, alone: bool, own_camera_labels: bool = False
    ) -> dict[str, ApResult]:
        return {
            name: score(frames, rules, settings, alone=alone, own_camera_labels=own_camera_labels)
            for name, settings in fusions.items()
        }

    return DetectorReport(
        model=model,
        weights=weights,
        single=compare(protocol, alone=True),
        fused=compare(protocol, alone=False),
        single_own_labels=compare(protocol, alone=True, own_camera_labels=True),
        single_local=compare(local, alone=True),
        fused_local=compare(local, alone=False),
    )


def evaluate_detector(
    model: str,
    weights: str,
    scenarios: Iterable[Scenario],
    protocol: EvaluationProtocol | None = None,
    *,
    device: str = 'cpu',
    precision: torch.dtype = torch.float32,
    frame_step: int = 1,
    fusions: Fusions = FUSIONS,
) -> DetectorReport:
    """Evaluate a detector by the names of its model and weights.

    Args:
        model: name of a model with head `detection`.
        weights: identifier of its weights.
        scenarios: what to run it on.
        protocol: how to measure; `CAMERA_RANGE`, ranked over all frames, by default.
        device: torch device.
        precision: dtype of the matrix products.
        frame_step: every how many timestamps.
        fusions: ways of merging to compare, by name.
    """
    protocol = protocol or EvaluationProtocol('given scenarios', limits=CAMERA_RANGE)
    detector = Detector.load(model, weights, device, precision)
    frames = list(detect_scenarios(detector, scenarios, protocol, frame_step))
    return score_detections(frames, protocol, model, weights, fusions)

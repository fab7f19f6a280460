"""Average precision of boxes seen from above, as OpenCOOD measures it on OPV2V.

Not a 3D metric in spite of its usual name: the overlap that decides is that of the boxes' plan
views; z and height do not count (they only enter through range filters).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from lapdtr_ros.errors import LapdtrError, UnknownNameError
from lapdtr_ros.perception.boxes import GT_RANGE, Boxes, Limits, bev_iou, rotated_nms
from lapdtr_ros.perception.geometry import BOTTOM, OPENCOOD, BoxVariant
from lapdtr_ros.perception.ground_truth import (
    COMMUNICATION_RANGE_M,
    LIDAR_LABELS,
    GroundTruthRule,
    LabelRule,
)

SortRule = Literal['global', 'local']
GLOBAL_SORT: SortRule = 'global'
LOCAL_SORT: SortRule = 'local'


class ProtocolError(LapdtrError):
    """An evaluation protocol that makes no sense."""


@dataclass(frozen=True)
class DetectionFilter:
    """OpenCOOD's cleaning of detections before they are scored; None leaves a step out.

    Attributes:
        score_threshold: detections must score above this (OpenCOOD: 0.20 to 0.27).
        max_side_m: drop boxes whose axis-aligned plan view is longer or wider than this (OpenCOOD:
            6 m, by which a long truck seen at an angle vanishes).
        z_range: drop boxes with a corner below or above these (OpenCOOD: -3 to 1).
        nms_iou: threshold of a last rotated NMS (OpenCOOD: 0.15).
        limit: only this many best detections enter the NMS.
    """

    score_threshold: float | None = None
    max_side_m: float | None = None
    z_range: tuple[float, float] | None = None
    nms_iou: float | None = None
    limit: int | None = 1000

    def apply(self, boxes: Boxes) -> Boxes:
        """The detections that remain."""
        if self.score_threshold is not None:
            boxes = boxes[boxes.scores > self.score_threshold]
        if self.max_side_m is not None:
            sides = np.ptp(boxes.corners()[:, BOTTOM, :2], axis=1)
            boxes = boxes[(sides <= self.max_side_m).all(axis=1)]
        if self.z_range is not None:
            anywhere = (-math.inf, math.inf)
            boxes = boxes[Limits(anywhere, anywhere, self.z_range).contains(boxes)]
        if self.nms_iou is not None:
            boxes = rotated_nms(boxes, self.nms_iou, self.limit)
        return boxes


OPENCOOD_FILTER = DetectionFilter(
    score_threshold=0.2, max_side_m=6.0, z_range=(-3.0, 1.0), nms_iou=0.15
)


@dataclass(frozen=True)
class EvaluationProtocol:
    """Everything that a reported AP depends on besides the detector; every report states it.

    Attributes:
        split: data set and split, e.g. `opv2v/test` or `generated/validate`.
        vehicles: most vehicles that cooperate, the ego included; 1 is a single vehicle.
        cameras: camera numbers in use.
        limits: ground truth needs all corners inside, detections all corners in x and y.
        thresholds: IoU from which a detection counts as correct.
        sort: `GLOBAL_SORT` ranks detections by score over all frames; `LOCAL_SORT`, OpenCOOD's
            default, ranks only within each frame and depends on the frames' order.
        label_rule: which labels of a vehicle count, see `GroundTruthRule`.
        box_variant: how the centre offset enters the box.
        communication_range_m: up to which planar distance vehicles cooperate.
        detection_filter: cleaning of the detections.
    """

    split: str
    vehicles: int = 7
    cameras: tuple[int, ...] = (0, 1, 2, 3)
    limits: Limits = GT_RANGE
    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
    sort: SortRule = GLOBAL_SORT
    label_rule: LabelRule = LIDAR_LABELS
    box_variant: BoxVariant = OPENCOOD
    communication_range_m: float = COMMUNICATION_RANGE_M
    detection_filter: DetectionFilter = DetectionFilter()

    def __post_init__(self) -> None:
        if self.sort not in (GLOBAL_SORT, LOCAL_SORT):
            raise UnknownNameError('sort', self.sort, (GLOBAL_SORT, LOCAL_SORT))
        if not all(0.0 < threshold <= 1.0 for threshold in self.thresholds):
            raise ProtocolError(f'thresholds are {self.thresholds}, expected IoUs in (0, 1]')

    @property
    def ground_truth_rule(self) -> GroundTruthRule:
        """The rule that `perception.ground_truth` needs to build this protocol's ground truth."""
        return GroundTruthRule(
            labels=self.label_rule,
            cameras=self.cameras,
            variant=self.box_variant,
            limits=self.limits,
            communication_range_m=self.communication_range_m,
        )

    def as_dict(self) -> dict[str, Any]:
        """The protocol for JSON and YAML reports."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """The curve behind one AP, a point per detection in the protocol's order.

    Attributes:
        precision: share of the detections so far that are correct, (D,).
        recall: share of the ground truth found so far, (D,).
        scores: score of the detection at each point, (D,).
        total: number of ground truth boxes.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    total: int


@dataclass(frozen=True, eq=False)
class ApResult:
    """Average precision of a set of frames.

    Attributes:
        protocol: what it was measured under.
        ap: by IoU threshold; NaN when there is no ground truth at all.
        true_positives: by IoU threshold.
        curves: by IoU threshold.
        frames: number of frames.
        ground_truths: boxes of ground truth within the limits.
        detections: detections that were left after filters and limits.
    """

    protocol: EvaluationProtocol
    ap: Mapping[float, float]
    true_positives: Mapping[float, int]
    curves: Mapping[float, PrecisionRecall]
    frames: int
    ground_truths: int
    detections: int

    def at(self, threshold: float) -> float:
        """AP at one IoU threshold.

        Raises:
            UnknownNameError: If the protocol does not have this threshold.
        """
        if threshold not in self.ap:
            raise UnknownNameError('IoU threshold', str(threshold), map(str, self.ap))
        return self.ap[threshold]

    @property
    def ap30(self) -> float:
        """AP at IoU 0.3."""
        return self.at(0.3)

    @property
    def ap50(self) -> float:
        """AP at IoU 0.5."""
        return self.at(0.5)

    @property
    def ap70(self) -> float:
        """AP at IoU 0.7."""
        return self.at(0.7)

    def as_dict(self) -> dict[str, Any]:
        """Figures and protocol, without curves, for JSON and YAML reports."""
        return {
            **{f'ap{round(100 * t)}': value for t, value in self.ap.items()},
            'frames': self.frames,
            'ground_truths': self.ground_truths,
            'detections': self.detections,
            'protocol': self.protocol.as_dict(),
        }


def evaluate_frames(
    frames: Iterable[tuple[Boxes, Boxes]], protocol: EvaluationProtocol
) -> ApResult:
    """Measure the AP of detections over a set of frames.

    Args:
        frames: `(detections, ground truth)` of each frame, both in the ego LiDAR's frame.
        protocol: how to measure. Its filter and limits are applied here; that the ground truth was
            built by its `ground_truth_rule` is the caller's part.
    """
    prepared = [
        (_prepare(detections, protocol), truth[protocol.limits.contains(truth)])
        for detections, truth in frames
    ]
    overlaps = [bev_iou(detections, truth) for detections, truth in prepared]
    scores = np.concatenate([np.empty(0), *(detections.scores for detections, _ in prepared)])
    order = _emission_order(scores, protocol.sort)
    total = sum(len(truth) for _, truth in prepared)
    curves, hits = {}, {}
    for threshold in protocol.thresholds:
        flags = [match_greedily(overlap, threshold) for overlap in overlaps]
        correct = np.concatenate([np.empty(0, dtype=bool), *flags])[order]
        curves[threshold] = precision_recall(correct, scores[order], total)
        hits[threshold] = int(correct.sum())
    return ApResult(
        protocol=protocol,
        ap={threshold: average_precision(curve) for threshold, curve in curves.items()},
        true_positives=hits,
        curves=curves,
        frames=len(prepared),
        ground_truths=total,
        detections=len(scores),
    )


def _prepare(detections: Boxes, protocol: EvaluationProtocol) -> Boxes:
    """Filtered detections within the plan view of the limits, by descending score."""
    detections = protocol.detection_filter.apply(detections)
    plan = Limits(protocol.limits.x, protocol.limits.y)
    return detections[plan.contains(detections)].by_score()


def _emission_order(scores: np.ndarray, sort: SortRule) -> np.ndarray:
    if sort == GLOBAL_SORT:
        return np.argsort(-scores, kind='stable')
    return np.arange(len(scores))


def match_greedily(overlaps: np.ndarray, threshold: float) -> np.ndarray:
    """Which detections of one frame are correct.

    Args:
        overlaps: IoU of detections, by descending score, with ground truth, (D, G).
        threshold: least IoU of a correct detection.

    Returns:
        Mask (D,): each detection takes, among the ground truth that is left, the box it overlaps
        most; it is correct if that IoU reaches the threshold, and only then the box is used up.
    """
    correct = np.zeros(len(overlaps), dtype=bool)
    # Detections without any overlap that reaches the threshold cannot take part.
    left = np.where(overlaps >= threshold, overlaps, -1.0)
    for detection in np.nonzero((left >= 0.0).any(axis=1))[0]:
        best = left[detection].argmax()
        if left[detection, best] >= 0.0:
            correct[detection] = True
            left[:, best] = -1.0
    return correct


def precision_recall(correct: np.ndarray, scores: np.ndarray, total: int) -> PrecisionRecall:
    """The curve of detections in order of emission.

    Args:
        correct: whether each detection is correct, (D,).
        scores: their scores, (D,).
        total: number of ground truth boxes; 0 makes the recall NaN.
    """
    found = np.cumsum(correct)
    emitted = np.arange(1, len(correct) + 1)
    recall = found / total if total else np.full(len(correct), np.nan)
    return PrecisionRecall(found / emitted, recall, scores, total)


def average_precision(curve: PrecisionRecall) -> float:
    """Area under the precision envelope, all points (PASCAL VOC 2010).

    Returns:
        AP within [0, 1]; 0 without detections, NaN without ground truth.
    """
    if curve.total == 0:
        return math.nan
    recall = np.concatenate([[0.0], curve.recall])
    envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
    return float(np.diff(recall) @ envelope)

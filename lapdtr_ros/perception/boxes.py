"""Upright 3D boxes, their overlap seen from above, and the two ways to merge duplicates.

`Boxes` is the one representation of detections and ground truth in this package: arrays in the
frame of a LiDAR, in CARLA axes (x forward, y right, z up; yaw turns x towards y), metres and
radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lapdtr_ros.errors import LapdtrError

from . import geometry

# Pairs clipped at once: bounds the memory of `bev_iou` at a few tens of MB.
_PAIR_CHUNK = 32768

_FIELD_SHAPES: dict[str, tuple[int, ...]] = {
    'centers': (3,),
    'sizes': (3,),
    'yaw': (),
    'scores': (),
    'ids': (),
}


class BoxError(LapdtrError):
    """Arrays that do not describe boxes."""


def _absent() -> np.ndarray:
    return np.empty(0)


@dataclass(frozen=True, eq=False)
class Boxes:
    """N boxes; arrays that are left out get their default length N.

    Attributes:
        centers: box centres, (N, 3) float64, metres.
        sizes: *full* length, width and height, (N, 3) float64, metres, positive.
        yaw: heading, (N,) float64, radians.
        scores: confidence, (N,) float64; 1 by default.
        ids: (N,) int64; ground truth: actor id of the vehicle; fused detections: number of the
            contribution the box came from; -1 (the default) where unknown.

    Raises:
        BoxError: If shapes disagree, a number is not finite or a size is not positive.
    """

    centers: np.ndarray
    sizes: np.ndarray
    yaw: np.ndarray
    scores: np.ndarray = field(default_factory=_absent)
    ids: np.ndarray = field(default_factory=_absent)

    def __post_init__(self) -> None:
        count = len(self.centers)
        if len(self.scores) == 0:
            object.__setattr__(self, 'scores', np.ones(count))
        if len(self.ids) == 0:
            object.__setattr__(self, 'ids', np.full(count, -1))
        for name, shape in _FIELD_SHAPES.items():
            dtype = np.int64 if name == 'ids' else np.float64
            array = np.asarray(getattr(self, name), dtype=dtype)
            if array.shape != (count, *shape):
                raise BoxError(f'boxes: {name} has shape {array.shape}, not {(count, *shape)}')
            if not np.isfinite(array).all():
                raise BoxError(f'boxes: {name} holds NaN or infinity; drop such boxes first')
            object.__setattr__(self, name, array)
        if (self.sizes <= 0.0).any():
            raise BoxError(f'boxes: smallest size is {self.sizes.min():g} m, expected > 0')

    def __len__(self) -> int:
        return len(self.centers)

    def __getitem__(self, index: ArrayLike | slice) -> Boxes:
        """Select boxes by slice, index array or mask, in that order."""
        if not isinstance(index, slice):
            index = np.atleast_1d(np.asarray(index))
            index = index.astype(np.int64) if index.size == 0 else index
        return Boxes(
            self.centers[index],
            self.sizes[index],
            self.yaw[index],
            self.scores[index],
            self.ids[index],
        )

    @classmethod
    def empty(cls) -> Boxes:
        """No boxes."""
        return cls(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))

    @classmethod
    def from_vectors(cls, vectors: ArrayLike, scores: ArrayLike = (), ids: ArrayLike = ()) -> Boxes:
        """Boxes of 7-vectors `(x, y, z, l, w, h, yaw)`, shape (N, 7)."""
        vectors = np.asarray(vectors, dtype=np.float64).reshape(-1, 7)
        return cls(
            vectors[:, :3], vectors[:, 3:6], vectors[:, 6], np.asarray(scores), np.asarray(ids)
        )

    @classmethod
    def concatenate(cls, parts: Iterable[Boxes]) -> Boxes:
        """All boxes of several sets, in their order."""
        parts = list(parts)
        if not parts:
            return cls.empty()
        return cls(
            np.concatenate([part.centers for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.yaw for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.ids for part in parts]),
        )

    @property
    def vectors(self) -> np.ndarray:
        """7-vectors `(x, y, z, l, w, h, yaw)`, shape (N, 7)."""
        return np.column_stack([self.centers, self.sizes, self.yaw])

    def corners(self) -> np.ndarray:
        """The eight corners in OpenCOOD's order, shape (N, 8, 3)."""
        return geometry.box_corners(self.vectors)

    def bev_corners(self) -> np.ndarray:
        """The four corners seen from above, shape (N, 4, 2), yaw direction."""
        return self.corners()[:, geometry.BOTTOM, :2]

    def transformed(self, transform: np.ndarray) -> Boxes:
        """The boxes in another frame; what `transform` tilts is stood upright again.

        Args:
            transform: rigid (4, 4) transform from the present frame to the new one.
        """
        corners = geometry.transform_points(transform, self.corners())
        vectors = geometry.corners_to_boxes(corners)
        # A tilt shortens the plan view of the edges, the vehicle itself keeps its size.
        return replace(self, centers=vectors[:, :3], yaw=vectors[:, 6])

    def by_score(self, limit: int | None = None) -> Boxes:
        """The boxes by descending score, ties in their present order, at most `limit`."""
        return self[np.argsort(-self.scores, kind='stable')[:limit]]


@dataclass(frozen=True)
class Limits:
    """A cuboid region of the LiDAR frame; each limit is `(low, high)` in metres, inclusive."""

    x: tuple[float, float]
    y: tuple[float, float]
    z: tuple[float, float] = (-math.inf, math.inf)

    def contains(self, boxes: Boxes) -> np.ndarray:
        """Mask (N,) of the boxes of which all eight corners lie inside."""
        low, high = np.array([self.x, self.y, self.z]).T
        corners = boxes.corners()
        return ((corners >= low) & (corners <= high)).all(axis=(1, 2))


# OpenCOOD's evaluation range of LiDAR work; camera work by CoAlign/HEAL and by CoBEVT.
GT_RANGE = Limits((-140.0, 140.0), (-40.0, 40.0), (-3.0, 1.0))
CAMERA_RANGE = Limits((-51.2, 51.2), (-51.2, 51.2), (-3.0, 1.0))
COBEVT_RANGE = Limits((-50.0, 50.0), (-50.0, 50.0), (-3.0, 1.0))


# --- Overlap --------------------------------------------------------------------------------------


def bev_iou(first: Boxes, second: Boxes) -> np.ndarray:
    """Overlap of rotated boxes seen from above: area of intersection / area of union.

    Height and z do not count, as in OpenCOOD's evaluation.

    Returns:
        IoU within [0, 1], shape (N, M).
    """
    result = np.zeros((len(first), len(second)))
    # Only pairs whose circumscribed circles meet can overlap; most of a street does not.
    offsets = first.centers[:, None, :2] - second.centers[None, :, :2]
    reach = _half_diagonal(first)[:, None] + _half_diagonal(second)[None, :]
    near = np.einsum('nmi,nmi->nm', offsets, offsets) < reach**2
    within = first is second
    rows, columns = np.nonzero(np.triu(near, 1) if within else near)
    result[rows, columns] = _pair_iou(first, second, rows, columns)
    if within:
        result += result.T
        np.fill_diagonal(result, 1.0)
    return result


def _half_diagonal(boxes: Boxes) -> np.ndarray:
    return 0.5 * np.hypot(boxes.sizes[:, 0], boxes.sizes[:, 1])


def _pair_iou(first: Boxes, second: Boxes, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    first_area, second_area = (b.sizes[:, 0] * b.sizes[:, 1] for b in (first, second))
    first_corners, second_corners = first.bev_corners(), second.bev_corners()
    result = np.empty(len(rows))
    for start in range(0, len(rows), _PAIR_CHUNK):
        chunk = slice(start, start + _PAIR_CHUNK)
        i, j = rows[chunk], columns[chunk]
        # Coordinates relative to one of the boxes keep the areas exact far from the origin.
        origin = first.centers[i, None, :2]
        shared = _intersection_area(first_corners[i] - origin, second_corners[j] - origin)
        result[chunk] = shared / (first_area[i] + second_area[j] - shared)
    return np.clip(result, 0.0, 1.0)


def _intersection_area(subject: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """Areas (P,) shared by pairs of convex polygons (P, K, 2) and (P, 4, 2), both in yaw order."""
    polygon = subject
    for edge in range(clip.shape[1]):
        polygon = _clip_half_plane(polygon, clip[:, edge], clip[:, (edge + 1) % clip.shape[1]])
    following = np.roll(polygon, -1, axis=1)
    cross = polygon[..., 0] * following[..., 1] - polygon[..., 1] * following[..., 0]
    return 0.5 * np.abs(cross.sum(axis=1))


def _clip_half_plane(polygon: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Keep the part of each polygon (P, K, 2) on the inner side of the line start -> stop (P, 2).

    One step of Sutherland and Hodgman's algorithm on all pairs at once. Polygons with fewer corners
    than the widest repeat a corner, which leaves their area as it is; a polygon that vanishes
    becomes a single point.
    """
    direction = (stop - start)[:, None, :]
    relative = polygon - start[:, None, :]
    side = direction[..., 0] * relative[..., 1] - direction[..., 1] * relative[..., 0]
    following, following_side = np.roll(polygon, -1, axis=1), np.roll(side, -1, axis=1)
    inside, crosses = side >= 0.0, (side >= 0.0) != (following_side >= 0.0)
    step = np.where(crosses, side - following_side, 1.0)
    crossing = polygon + (side / step)[..., None] * (following - polygon)

    pairs, corners = side.shape
    candidates = np.stack([polygon, crossing], axis=2).reshape(pairs, 2 * corners, 2)
    kept = np.stack([inside, crosses], axis=2).reshape(pairs, 2 * corners)
    position = np.cumsum(kept, axis=1) - 1
    first_kept = candidates[np.arange(pairs), kept.argmax(axis=1)]
    width = max(int(kept.sum(axis=1).max(initial=0)), 1)
    result = np.repeat(first_kept[:, None, :], width, axis=1)
    row, column = np.nonzero(kept)
    result[row, position[row, column]] = candidates[row, column]
    return result


# --- Merging duplicates ---------------------------------------------------------------------------


def rotated_nms(boxes: Boxes, iou_threshold: float, limit: int | None = None) -> Boxes:
    """Keep the best of every group of overlapping boxes.

    Args:
        boxes: candidates in any order.
        iou_threshold: a box whose BEV IoU with a better kept box exceeds this is dropped.
        limit: only this many best candidates take part.

    Returns:
        The kept boxes by descending score.
    """
    boxes = boxes.by_score(limit)
    overlaps = bev_iou(boxes, boxes) > iou_threshold
    alive = np.ones(len(boxes), dtype=bool)
    for best in range(len(boxes)):
        if alive[best]:
            alive[best + 1 :] &= ~overlaps[best, best + 1 :]
    return boxes[alive]


ScoreRule = Literal['max', 'mean', 'noisy_or']

_SCORE_RULES: dict[str, Callable[[np.ndarray], float]] = {
    'max': lambda scores: float(scores.max()),
    'mean': lambda scores: float(scores.mean()),
    'noisy_or': lambda scores: float(1.0 - np.prod(1.0 - scores)),
}


def weighted_box_fusion(
    boxes: Boxes, iou_threshold: float, score_rule: ScoreRule = 'max', limit: int | None = None
) -> Boxes:
    """Average every group of overlapping boxes, weighted by score.

    The best box that is left leads a group of all remaining boxes whose BEV IoU with it exceeds the
    threshold. Centre and size are weighted means. Headings are averaged as vectors on the leader's
    axis, so that a box seen backwards does not turn the mean sideways; the weighted majority
    decides which end is the front.

    Args:
        boxes: candidates in any order; scores must not be negative.
        iou_threshold: overlap that joins a group.
        score_rule: score of a merged box. `max`: of the best member; `mean`: of all members, so a
            weak second view costs; `noisy_or`: 1 - prod(1 - score), so agreement of views, taken as
            independent, raises confidence.
        limit: only this many best candidates take part.

    Returns:
        Merged boxes by descending score, each with the id of its leader.

    Raises:
        BoxError: If a score is negative or the rule unknown.
    """
    if score_rule not in _SCORE_RULES:
        raise BoxError(f'score rule {score_rule!r}: use one of {", ".join(_SCORE_RULES)}')
    if (boxes.scores < 0.0).any():
        raise BoxError(f'score {boxes.scores.min():g} is negative; box fusion weights by score')
    boxes = boxes.by_score(limit)
    overlaps = bev_iou(boxes, boxes) > iou_threshold
    free = np.ones(len(boxes), dtype=bool)
    merged = []
    for leader in range(len(boxes)):
        if free[leader]:
            members = overlaps[leader] & free
            members[leader] = True
            free &= ~members
            merged.append(_merge(boxes[members], _SCORE_RULES[score_rule]))
    return Boxes.concatenate(merged).by_score()


def _merge(group: Boxes, score_rule: Callable[[np.ndarray], float]) -> Boxes:
    """Weighted mean of a group whose first box leads."""
    total = group.scores.sum()
    weights = group.scores / total if total > 0.0 else np.full(len(group), 1.0 / len(group))
    deviation = group.yaw - group.yaw[0]
    facing = np.where(np.cos(deviation) < 0.0, -1.0, 1.0)
    axis = np.arctan2(
        np.sum(weights * facing * np.sin(deviation)), np.sum(weights * facing * np.cos(deviation))
    )
    reversed_majority = weights @ facing < 0.0
    return Boxes(
        weights[None, :] @ group.centers,
        weights[None, :] @ group.sizes,
        np.array([group.yaw[0] + axis + (np.pi if reversed_majority else 0.0)]),
        np.array([score_rule(group.scores)]),
        group.ids[:1],
    )

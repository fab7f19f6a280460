"""Which vehicles an agent lists as ground truth.

OPV2V lists a vehicle within 120 m when at least one ray of the agent's semantic LiDAR hits it.
Generated scenes cast no rays. A vehicle counts as hit when at least one of 45 points spread over
its box can be seen from the LiDAR: the straight line to it meets no other vehicle and no building,
hedge or container. Trees and lamps hide nothing, as rays pass between leaves.
"""

from __future__ import annotations

import numpy as np

RANGE_M = 120.0

_POINTS = np.array(
    [
        [x, y, z]
        for x in (-0.9, -0.45, 0.0, 0.45, 0.9)
        for y in (-0.9, 0.0, 0.9)
        for z in (-0.3, 0.3, 0.9)
    ]
)


def visible(
    origin: np.ndarray, targets: np.ndarray, obstacles: np.ndarray, limit: float = RANGE_M
) -> np.ndarray:
    """Tell which boxes can be seen.

    Args:
        origin: (3,), position of the LiDAR in the world.
        targets: (N, 7), vehicles as `(x, y, z, length, width, height, yaw)`, metres and radians;
            they also hide each other.
        obstacles: (M, 7), what hides vehicles but is not one.
        limit: planar metres from `origin` to the middle of a box.

    Returns:
        bool of shape (N,).
    """
    boxes = np.concatenate([targets.reshape(-1, 7), obstacles.reshape(-1, 7)])
    radius = 0.5 * np.hypot(boxes[:, 3], boxes[:, 4])
    relative = boxes[:, :2] - origin[:2]
    distance = np.linalg.norm(relative, axis=1)
    seen = np.zeros(len(targets), dtype=bool)
    for index in np.flatnonzero(distance[: len(targets)] <= limit):
        way = relative[index] / max(float(distance[index]), 1e-9)
        along = relative @ way
        across = np.abs(relative[:, 0] * way[1] - relative[:, 1] * way[0])
        between = (along > -radius) & (along - radius < distance[index] + radius[index])
        between &= across < radius + radius[index]
        between[index] = False
        points = _spread(boxes[index])
        seen[index] = not _hidden(origin, points, boxes[between]).all()
    return seen


def _spread(box: np.ndarray) -> np.ndarray:
    local = _POINTS * (0.5 * box[3:6])
    cos, sin = np.cos(box[6]), np.sin(box[6])
    x = cos * local[:, 0] - sin * local[:, 1]
    y = sin * local[:, 0] + cos * local[:, 1]
    return box[:3] + np.column_stack([x, y, local[:, 2]])


def _hidden(origin: np.ndarray, points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether any of the boxes (B, 7) cuts the line to each point (P, 3): bool of shape (P,)."""
    start = _into_boxes(origin[None], boxes)
    direction = _into_boxes(points, boxes) - start
    # Slabs: the part of each line between the two planes of every axis.
    direction = np.where(np.abs(direction) < 1e-12, 1e-12, direction)
    half = 0.5 * boxes[:, None, 3:6]
    one, two = (-half - start) / direction, (half - start) / direction
    enter = np.minimum(one, two).max(axis=2)
    leave = np.maximum(one, two).min(axis=2)
    return ((enter < leave) & (leave > 0.0) & (enter < 1.0)).any(axis=0)


def _into_boxes(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Points (P, 3) in the frame of every box: (B, P, 3)."""
    relative = points[None] - boxes[:, None, :3]
    cos, sin = np.cos(boxes[:, None, 6]), np.sin(boxes[:, None, 6])
    x = cos * relative[..., 0] + sin * relative[..., 1]
    y = -sin * relative[..., 0] + cos * relative[..., 1]
    return np.stack([x, y, relative[..., 2]], axis=2)

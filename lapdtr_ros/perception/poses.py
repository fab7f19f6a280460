"""Poses and pinhole intrinsics in the convention of CARLA and OPV2V.

The world is left-handed: x forward (east), y right (south), z up; metres and degrees. A pose is
`(x, y, z, roll, yaw, pitch)`: the yaw sits in the middle, unlike in `carla.Rotation`. A positive
yaw turns x towards y (clockwise from above), a positive pitch lifts the nose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_GIMBAL_LOCK_COSINE = 1e-9


def pose_to_matrix(pose: Sequence[float]) -> np.ndarray:
    """Return the rigid transform from the frame of a pose to the world.

    Equals `carla.Transform.get_matrix()`, in double precision.

    Args:
        pose: `(x, y, z, roll, yaw, pitch)`, metres and degrees.

    Returns:
        float64 matrix of shape (4, 4).

    Raises:
        ValueError: If the pose does not hold six numbers.
    """
    if len(pose) != 6:
        raise ValueError(f'a pose is (x, y, z, roll, yaw, pitch), got {len(pose)} numbers')
    x, y, z = (float(value) for value in pose[:3])
    roll, yaw, pitch = (math.radians(value) for value in pose[3:])
    cr, sr = math.cos(roll), math.sin(roll)
    cy, sy = math.cos(yaw), math.sin(yaw)
    cp, sp = math.cos(pitch), math.sin(pitch)
    return np.array(
        [
            [cp * cy, cy * sp * sr - sy * cr, -cy * sp * cr - sy * sr, x],
            [sy * cp, sy * sp * sr + cy * cr, -sy * sp * cr + cy * sr, y],
            [sp, -cp * sr, cp * cr, z],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )


def matrix_to_pose(matrix: np.ndarray) -> tuple[float, float, float, float, float, float]:
    """Invert `pose_to_matrix`.

    Args:
        matrix: rigid transform of shape (4, 4).

    Returns:
        `(x, y, z, roll, yaw, pitch)` in metres and degrees, pitch within [-90, 90]. Looking
        straight up or down leaves roll and yaw ambiguous; the roll is then 0.
    """
    x, y, z = (float(value) for value in matrix[:3, 3])
    pitch = math.asin(min(1.0, max(-1.0, float(matrix[2, 0]))))
    if math.hypot(matrix[0, 0], matrix[1, 0]) < _GIMBAL_LOCK_COSINE:
        roll, yaw = 0.0, math.atan2(-matrix[0, 1], matrix[1, 1])
    else:
        roll = math.atan2(-matrix[2, 1], matrix[2, 2])
        yaw = math.atan2(matrix[1, 0], matrix[0, 0])
    return x, y, z, math.degrees(roll), math.degrees(yaw), math.degrees(pitch)


def camera_intrinsic(width: int, height: int, fov_deg: float) -> np.ndarray:
    """Return the matrix of a distortion-free camera with square pixels.

    Args:
        width: picture width in pixels.
        height: picture height in pixels.
        fov_deg: horizontal field of view in degrees, between 0 and 180.

    Returns:
        float64 matrix of shape (3, 3), in pixels, principal point in the middle.
    """
    focal = width / (2.0 * math.tan(math.radians(fov_deg) / 2.0))
    return np.array([[focal, 0.0, width / 2.0], [0.0, focal, height / 2.0], [0.0, 0.0, 1.0]])

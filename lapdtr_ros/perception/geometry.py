"""Box corners, frames and camera rays in the axes of CARLA and OPV2V.

All frames but those of the last section are left-handed: x forward, y right, z up, metres; a
positive yaw turns x towards y (clockwise from above). A *7-vector* is
`(x, y, z, length, width, height, yaw)` with the box centre, full sizes and the yaw in radians.

The eight corners of a box come in OpenCOOD's order: 0 to 3 are the bottom, 4 to 7 the top, each
front left, front right, rear right, rear left (left is the negative y side).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .poses import matrix_to_pose, pose_to_matrix

BoxVariant = Literal['opencood', 'exact']
OPENCOOD: BoxVariant = 'opencood'
EXACT: BoxVariant = 'exact'

CORNER_SIGNS = np.array(
    [
        [+1, -1, -1],
        [+1, +1, -1],
        [-1, +1, -1],
        [-1, -1, -1],
        [+1, -1, +1],
        [+1, +1, +1],
        [-1, +1, +1],
        [-1, -1, +1],
    ],
    dtype=np.float64,
)
BOTTOM = slice(0, 4)

# Corner pairs (from, to) of the four parallel edges along each axis of the box.
_LENGTH_EDGES = (np.array([3, 2, 7, 6]), np.array([0, 1, 4, 5]))
_WIDTH_EDGES = (np.array([0, 3, 4, 7]), np.array([1, 2, 5, 6]))
_HEIGHT_EDGES = (np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7]))

# Columns are the optical axes (right, down, forward) in CARLA's (forward, right, up).
_CARLA_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


# --- Frames ---------------------------------------------------------------------------------------


def relative_transform(source: Sequence[float], target: Sequence[float]) -> np.ndarray:
    """Return the (4, 4) transform from the frame of one pose to the frame of another.

    Args:
        source: pose `(x, y, z, roll, yaw, pitch)` whose frame the points are in.
        target: pose whose frame they shall be in.
    """
    return np.linalg.solve(pose_to_matrix(target), pose_to_matrix(source))


def transform_points(transform: np.ndarray, points: ArrayLike) -> np.ndarray:
    """Apply one rigid (4, 4) transform to points of shape (..., 3)."""
    return np.asarray(points, dtype=np.float64) @ transform[:3, :3].T + transform[:3, 3]


def planar_distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Distance of two poses in the x-y plane, metres."""
    return float(np.hypot(first[0] - second[0], first[1] - second[1]))


# --- Boxes ----------------------------------------------------------------------------------------


def vehicle_corners(
    locations: ArrayLike,
    centers: ArrayLike,
    extents: ArrayLike,
    angles: ArrayLike,
    variant: BoxVariant = OPENCOOD,
) -> np.ndarray:
    """Corners in the world of vehicles as OPV2V labels them.

    Args:
        locations: actor origins in the world, shape (N, 3).
        centers: offsets from origin to box centre in the vehicle's frame, shape (N, 3).
        extents: *half* length, width and height, shape (N, 3).
        angles: `(roll, yaw, pitch)` in degrees, shape (N, 3).
        variant: `OPENCOOD` adds the centre offset without turning it, as every published OPV2V
            number does; `EXACT` is the box that CARLA draws. They differ by up to 0.1 m.

    Returns:
        Corners of shape (N, 8, 3).

    Raises:
        ValueError: If the variant is neither of the two.
    """
    locations, centers, extents, angles = (
        np.asarray(values, dtype=np.float64).reshape(-1, 3)
        for values in (locations, centers, extents, angles)
    )
    local = CORNER_SIGNS * extents[:, None, :]
    if variant == OPENCOOD:
        origins = locations + centers
    elif variant == EXACT:
        origins = locations
        local = local + centers[:, None, :]
    else:
        raise ValueError(f'box variant {variant!r} is not {OPENCOOD!r} or {EXACT!r}')
    rotations = np.array([pose_to_matrix((0, 0, 0, *angle))[:3, :3] for angle in angles])
    return local @ rotations.reshape(-1, 3, 3).transpose(0, 2, 1) + origins[:, None, :]


def box_corners(boxes: ArrayLike) -> np.ndarray:
    """Corners of upright boxes: 7-vectors of shape (N, 7) to corners of shape (N, 8, 3)."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 7)
    local = CORNER_SIGNS * (0.5 * boxes[:, None, 3:6])
    cos, sin = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    x, y, z = np.moveaxis(local, 2, 0)
    turned = np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=2)
    return turned + boxes[:, None, :3]


def corners_to_boxes(corners: ArrayLike) -> np.ndarray:
    """Upright boxes of eight corners: shape (N, 8, 3) to 7-vectors of shape (N, 7).

    Roll and pitch are dropped as in OpenCOOD: length and width are measured in the plane, height
    along z. The yaw is that of the *summed* long edges and lies within [-pi, pi]: a mean of angles
    would break for oncoming vehicles, where the angles of the edges scatter around +-pi.
    """
    corners = np.asarray(corners, dtype=np.float64).reshape(-1, 8, 3)
    length_edges = _edges(corners, _LENGTH_EDGES)[..., :2]
    forward = length_edges.sum(axis=1)
    return np.column_stack(
        [
            corners.mean(axis=1),
            np.linalg.norm(length_edges, axis=2).mean(axis=1),
            np.linalg.norm(_edges(corners, _WIDTH_EDGES)[..., :2], axis=2).mean(axis=1),
            np.abs(_edges(corners, _HEIGHT_EDGES)[..., 2]).mean(axis=1),
            np.arctan2(forward[:, 1], forward[:, 0]),
        ]
    )


def _edges(corners: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    start, stop = pairs
    return corners[:, stop] - corners[:, start]


def wrap_angle(angle: ArrayLike) -> np.ndarray:
    """Bring angles in radians to [-pi, pi)."""
    return (np.asarray(angle, dtype=np.float64) + np.pi) % (2.0 * np.pi) - np.pi


# --- Cameras --------------------------------------------------------------------------------------


def project_to_image(
    points: ArrayLike, extrinsic: np.ndarray, intrinsic: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Project points of the LiDAR frame into a camera.

    Args:
        points: shape (..., 3), LiDAR frame.
        extrinsic: (4, 4), LiDAR to camera, both in CARLA axes (OPV2V's `extrinsic`).
        intrinsic: (3, 3), pixels.

    Returns:
        Pixels of shape (..., 2), NaN where the point is not in front of the camera, and depths of
        shape (...) along the optical axis, metres.
    """
    optical = transform_points(extrinsic, points) @ _CARLA_FROM_OPTICAL
    depth = optical[..., 2]
    in_front = np.where(depth > 0.0, depth, np.nan)
    homogeneous = optical @ np.asarray(intrinsic, dtype=np.float64).T
    return homogeneous[..., :2] / in_front[..., None], depth


def pixel_rays(
    pixels: ArrayLike, extrinsic: np.ndarray, intrinsic: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Viewing rays of pixels in the LiDAR frame; the inverse of `project_to_image`.

    Args:
        pixels: shape (..., 2).
        extrinsic: (4, 4), LiDAR to camera.
        intrinsic: (3, 3), pixels.

    Returns:
        The camera's position, shape (3,), and directions of shape (..., 3) scaled to depth 1: the
        point at depth `d` is `origin + d * direction`.
    """
    pixels = np.asarray(pixels, dtype=np.float64)
    ones = np.ones((*pixels.shape[:-1], 1))
    optical = np.concatenate([pixels, ones], axis=-1) @ np.linalg.inv(intrinsic).T
    camera_to_lidar = np.linalg.inv(extrinsic)
    directions = optical @ _CARLA_FROM_OPTICAL.T @ camera_to_lidar[:3, :3].T
    return camera_to_lidar[:3, 3], directions


def ground_depth(origin: ArrayLike, directions: ArrayLike, ground_z: float) -> np.ndarray:
    """Depth at which rays of `pixel_rays` meet the plane `z = ground_z`.

    Args:
        origin: camera position, shape (3,).
        directions: shape (..., 3), scaled to depth 1.
        ground_z: height of the plane in the LiDAR frame, metres; -1.93 for OPV2V's mount.

    Returns:
        Depths of shape (...), metres, infinite where the ray never meets the plane.
    """
    climb = np.asarray(directions, dtype=np.float64)[..., 2]
    drop = ground_z - np.asarray(origin, dtype=np.float64)[2]
    with np.errstate(divide='ignore', invalid='ignore'):
        depth = drop / climb
    return np.where(depth > 0.0, depth, np.inf)


# --- ROS ------------------------------------------------------------------------------------------


def flip_handedness(boxes: ArrayLike) -> np.ndarray:
    """Turn 7-vectors from CARLA's left-handed axes into ROS axes (y left), or back."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 7)
    return boxes * np.array([1, -1, 1, 1, 1, 1, -1])


def pose_to_ros(pose: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Position and quaternion in ROS axes of a CARLA pose.

    Args:
        pose: `(x, y, z, roll, yaw, pitch)`, left-handed, metres and degrees.

    Returns:
        Position of shape (3,) and quaternion `(x, y, z, w)` of shape (4,), right-handed.
    """
    roll, yaw, pitch = np.radians(np.asarray(pose[3:6], dtype=np.float64)) * (0.5, -0.5, -0.5)
    cr, sr = np.cos(roll), np.sin(roll)
    cp, sp = np.cos(pitch), np.sin(pitch)
    cy, sy = np.cos(yaw), np.sin(yaw)
    quaternion = np.array(
        [
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        ]
    )
    return np.array([pose[0], -pose[1], pose[2]], dtype=np.float64), quaternion


def pose_from_ros(
    position: Sequence[float], quaternion: Sequence[float]
) -> tuple[float, float, float, float, float, float]:
    """CARLA pose of a position and quaternion in ROS axes; inverts `pose_to_ros`.

    Args:
        position: shape (3,), right-handed, metres.
        quaternion: `(x, y, z, w)`, right-handed, of any length but 0.

    Returns:
        `(x, y, z, roll, yaw, pitch)`, left-handed, metres and degrees.

    Raises:
        ValueError: If a number is not finite or the quaternion is 0.
    """
    numbers = np.array([*position, *quaternion], dtype=np.float64)
    length = np.linalg.norm(numbers[3:])
    if not np.isfinite(numbers).all() or length == 0.0:
        raise ValueError(f'position {position} and quaternion {quaternion} are no pose')
    x, y, z, w = numbers[3:] / length
    matrix = np.eye(4)
    # The mirrored axis y changes the sign of every element that pairs y with x or z.
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), -2 * (x * y - z * w), 2 * (x * z + y * w)],
        [-2 * (x * y + z * w), 1 - 2 * (x * x + z * z), -2 * (y * z - x * w)],
        [2 * (x * z - y * w), -2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = numbers[0], -numbers[1], numbers[2]
    return matrix_to_pose(matrix)


def quaternion_from_yaw(yaw: ArrayLike) -> np.ndarray:
    """Quaternions `(x, y, z, w)` of shape (..., 4) that turn by `yaw` radians around z."""
    half = 0.5 * np.asarray(yaw, dtype=np.float64)
    zero = np.zeros_like(half)
    return np.stack([zero, zero, np.sin(half), np.cos(half)], axis=-1)


def yaw_from_quaternion(quaternion: ArrayLike) -> np.ndarray:
    """Yaw in radians, shape (...), of quaternions `(x, y, z, w)` of shape (..., 4)."""
    x, y, z, w = np.moveaxis(np.asarray(quaternion, dtype=np.float64), -1, 0)
    return np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))

"""What a dense monocular head learns and how its output becomes boxes.

In the manner of CenterNet and SMOKE, every cell of a feature grid says whether a vehicle's box
centre projects into it and describes that one box. All of it is one array of `CHANNELS` channels,
so that it travels between devices as any other feature map:

| channels | content |
|---|---|
| `HEAT` | probability that a box centre lies in the cell |
| `OFFSET` | pixel of the centre relative to the cell's middle, in cells (x, y), -0.5 to 0.5 |
| `DEPTH` | log of the centre's depth over the cell's prior depth |
| `SIZE` | log of length, width and height over the mean size |
| `HEADING` | sine and cosine of the yaw relative to the viewing ray's azimuth |
| `SPREAD` | log of the mean absolute error to expect of `DEPTH` |

The heading is relative to the ray because a picture shows the side that a vehicle turns to the
camera, not its yaw. `SPREAD` says how far `DEPTH` can be trusted (Kendall & Gal, 2017) and enters
the score, because depth decides whether a box overlaps its vehicle. Cameras come with the intrinsic
of the picture that the *model* sees, i.e. after resizing, and with OPV2V's LiDAR-to-camera
extrinsic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lapdtr_ros.errors import LapdtrError

from . import geometry
from .boxes import Boxes
from .ground_truth import Camera

HEAT = 0
OFFSET = slice(1, 3)
DEPTH = 3
SIZE = slice(4, 7)
HEADING = slice(7, 9)
SPREAD = 9
CHANNELS = 10

# An untrained head may say anything; e^3 times the mean size is no vehicle, but still a number.
_MAX_LOG_SIZE = 3.0

# Of `SPREAD`: what exact labels have, and e^2 times the depth, where nothing is known.
LEAST_SPREAD = -7.0
_MOST_SPREAD = 2.0

# A box shifted by this share of its length still covers half of the union with the true one.
_TOLERATED_SHIFT = 1.0 / 3.0

# A bell this narrow, in cells, is 0 in the next cell.
_LEAST_SIGMA = 1e-3


class TargetError(LapdtrError):
    """A grid, a coding or a prediction that do not fit."""


@dataclass(frozen=True)
class Grid:
    """Cells over the model's picture.

    Attributes:
        rows: cells from top to bottom.
        columns: cells from left to right.
        height: of the picture, pixels.
        width: of the picture, pixels.
    """

    rows: int
    columns: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.height, self.width) < 1:
            raise TargetError(f'{self}: rows, columns, height and width must be at least 1')

    @property
    def cell(self) -> np.ndarray:
        """Width and height of a cell in pixels, (2,)."""
        return np.array([self.width / self.columns, self.height / self.rows])

    def centers(self) -> np.ndarray:
        """Pixels (x, y) of the cells' middles, shape (rows, columns, 2)."""
        x, y = np.meshgrid(np.arange(self.columns), np.arange(self.rows))
        return (np.stack([x, y], axis=-1) + 0.5) * self.cell


@dataclass(frozen=True)
class BoxCoding:
    """Constants that encoder and decoder share; a trained head is valid for one coding only.

    Attributes:
        mean_size: length, width and height of the mean vehicle, metres.
        depth_range: nearest and farthest depth of a box centre, metres.
        prior_depth: prior of every cell where `prior_plane_z` gives none, metres.
        prior_plane_z: height in the LiDAR frame of the plane that box centres are thought to lie
            on, metres. The prior of a cell is then the depth at which the ray through its middle
            meets the plane (clipped to `depth_range`). Useful for cameras well above the plane; the
            front camera of OPV2V is only 0.3 m above it, so None (no plane) is the default.
        heat_sigma: least spread of the peaks of the heat map in cells; 0 marks single cells.
        heat_spread: spread of a peak as a share of the box's size in the picture.
    """

    mean_size: tuple[float, float, float] = (4.5, 2.0, 1.55)
    depth_range: tuple[float, float] = (1.0, 100.0)
    prior_depth: float = 15.0
    prior_plane_z: float | None = None
    heat_sigma: float = 0.5
    heat_spread: float = 1.0 / 6.0

    def __post_init__(self) -> None:
        near, far = self.depth_range
        if not (0.0 < near <= self.prior_depth <= far):
            raise TargetError(
                f'depth_range {self.depth_range} and prior_depth {self.prior_depth}: expected '
                f'0 < near <= prior <= far'
            )

    def prior(self, camera: Camera, grid: Grid) -> np.ndarray:
        """Prior depth of every cell, shape (rows, columns), metres."""
        if self.prior_plane_z is None:
            return np.full((grid.rows, grid.columns), self.prior_depth)
        origin, rays = geometry.pixel_rays(grid.centers(), camera.extrinsic, camera.intrinsic)
        return np.clip(geometry.ground_depth(origin, rays, self.prior_plane_z), *self.depth_range)


@dataclass(frozen=True, eq=False)
class DetectionTargets:
    """What the head shall say about one picture.

    Attributes:
        values: float32, (`CHANNELS`, rows, columns); all but `HEAT` is 0 where no box centre is.
        owner: int64, (rows, columns); index of the box that a cell describes, -1 for none. Losses
            on anything but `HEAT` count only where it is not negative.
    """

    values: np.ndarray
    owner: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Whether a cell describes a box, (rows, columns)."""
        return self.owner >= 0


def encode_targets(
    boxes: Boxes, camera: Camera, grid: Grid, coding: BoxCoding | None = None
) -> DetectionTargets:
    """Targets of one picture.

    Args:
        boxes: ground truth in the frame of the vehicle's LiDAR; boxes whose centre does not project
            into the picture within the depth range are skipped. Occluded ones should be left out
            by the caller.
        camera: the camera, with the intrinsic of the model's picture.
        grid: the cells of the head's output.
        coding: constants; the default ones when None.

    Returns:
        The targets. Where several centres share a cell, the nearest box owns it.
    """
    coding = coding or BoxCoding()
    values = np.zeros((CHANNELS, grid.rows, grid.columns), dtype=np.float32)
    owner = np.full((grid.rows, grid.columns), -1, dtype=np.int64)
    pixels, depths = geometry.project_to_image(boxes.centers, camera.extrinsic, camera.intrinsic)
    visible = _visible(pixels, depths, grid, coding)
    prior = coding.prior(camera, grid)
    alpha = boxes.yaw - _azimuth(boxes.centers, camera)
    sigmas = _sigmas(boxes, camera, grid, coding)
    for index in visible[np.argsort(-depths[visible], kind='stable')]:  # the nearest comes last
        position = pixels[index] / grid.cell
        column, row = position.astype(np.int64)
        values[HEAT] = np.maximum(values[HEAT], _peak(row, column, sigmas[index], grid))
        values[OFFSET, row, column] = position - (column + 0.5, row + 0.5)
        values[DEPTH, row, column] = np.log(depths[index] / prior[row, column])
        values[SIZE, row, column] = np.log(boxes.sizes[index] / coding.mean_size)
        values[HEADING, row, column] = np.sin(alpha[index]), np.cos(alpha[index])
        values[SPREAD, row, column] = LEAST_SPREAD
        owner[row, column] = index
    return DetectionTargets(values, owner)


def decode(
    prediction: ArrayLike,
    camera: Camera,
    grid: Grid,
    coding: BoxCoding | None = None,
    score_threshold: float = 0.1,
    limit: int = 50,
) -> Boxes:
    """Boxes in the LiDAR's frame of the head's output for one picture.

    Args:
        prediction: (`CHANNELS`, rows, columns), `HEAT` as probability (after the sigmoid).
        camera: the camera, with the intrinsic of the model's picture.
        grid: the cells of the head's output.
        coding: the constants that the head was trained with.
        score_threshold: peaks of the heat must be higher than this.
        limit: most boxes.

    Returns:
        A box for every cell that is the highest of its 3 x 3 neighbourhood (equal neighbours both
        stay), by descending score: the heat times the chance that the depth is good enough for an
        overlap of one half. Cells with NaN or infinity are left out. Neighbouring peaks on
        one vehicle are for `boxes.rotated_nms` to merge.

    Raises:
        TargetError: If the shape of the prediction is not that of the grid.
    """
    coding = coding or BoxCoding()
    values = np.asarray(prediction, dtype=np.float64)
    expected = (CHANNELS, grid.rows, grid.columns)
    if values.shape != expected:
        raise TargetError(f'prediction has shape {values.shape}, expected {expected}')
    row, column = _peaks(values, score_threshold, limit)
    if not len(row):
        return Boxes.empty()
    cells = values[:, row, column]
    offset = np.clip(cells[OFFSET].T, -0.5, 0.5)
    pixels = (np.column_stack([column, row]) + 0.5 + offset) * grid.cell
    log_prior = np.log(coding.prior(camera, grid)[row, column])
    depth = np.exp(np.clip(cells[DEPTH] + log_prior, *np.log(coding.depth_range)))
    origin, rays = geometry.pixel_rays(pixels, camera.extrinsic, camera.intrinsic)
    centers = origin + depth[:, None] * rays
    log_size = np.clip(cells[SIZE].T, -_MAX_LOG_SIZE, _MAX_LOG_SIZE)
    sizes = np.exp(log_size) * coding.mean_size
    alpha = np.arctan2(*cells[HEADING])
    yaw = geometry.wrap_angle(alpha + _azimuth(centers, camera))
    spread = depth * np.exp(np.clip(cells[SPREAD], LEAST_SPREAD, _MOST_SPREAD))
    scores = cells[HEAT] * _chance_of_overlap(spread, alpha, sizes)
    return _descending(Boxes(centers, sizes, yaw, scores))


def _chance_of_overlap(spread: np.ndarray, alpha: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Chance that a box overlaps its vehicle by half, were depth its only error.

    Args:
        spread: scale of the depth's Laplace distribution, metres, (N,).
        alpha: yaw relative to the ray, radians, (N,).
        sizes: of the boxes, metres, (N, 3).
    """
    length, width, _ = sizes.T
    # To first order: the share of a box that leaves its place when it moves by 1 m along the ray.
    lost = np.abs(np.cos(alpha)) / length + np.abs(np.sin(alpha)) / width
    return -np.expm1(-_TOLERATED_SHIFT / (lost * spread))


def _descending(boxes: Boxes) -> Boxes:
    return boxes[np.argsort(-boxes.scores, kind='stable')]


def _visible(pixels: np.ndarray, depths: np.ndarray, grid: Grid, coding: BoxCoding) -> np.ndarray:
    """Indices of the boxes whose centre lies in the picture and the depth range."""
    near, far = coding.depth_range
    inside = ((pixels >= 0.0) & (pixels < (grid.width, grid.height))).all(axis=1)
    return np.nonzero(inside & (depths >= near) & (depths <= far))[0]


def _azimuth(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Direction in the LiDAR's plane from the camera to points (N, 3), radians."""
    position = np.linalg.inv(camera.extrinsic)[:3, 3]
    return np.arctan2(points[:, 1] - position[1], points[:, 0] - position[0])


def _sigmas(boxes: Boxes, camera: Camera, grid: Grid, coding: BoxCoding) -> np.ndarray:
    """Spread of each box's peak in cells, (N, 2) as (x, y)."""
    pixels, depths = geometry.project_to_image(boxes.corners(), camera.extrinsic, camera.intrinsic)
    # A corner behind the camera says nothing about the size; such a box fills the picture anyway.
    pixels = np.where((depths > 0.0)[..., None], pixels, np.array([grid.width, grid.height]) / 2)
    clipped = np.clip(pixels, 0.0, (grid.width, grid.height))
    return np.maximum(np.ptp(clipped, axis=1) / grid.cell * coding.heat_spread, coding.heat_sigma)


def _peak(row: int, column: int, sigma: np.ndarray, grid: Grid) -> np.ndarray:
    """A bell of height 1 on one cell, (rows, columns)."""
    spread = 2.0 * np.maximum(sigma, _LEAST_SIGMA) ** 2
    x = (np.arange(grid.columns) - column) ** 2 / spread[0]
    y = (np.arange(grid.rows) - row) ** 2 / spread[1]
    return np.exp(-(y[:, None] + x[None, :]))


def _peaks(values: np.ndarray, threshold: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the cells that become boxes, by descending heat."""
    usable = np.isfinite(values).all(axis=0)
    heat = np.where(usable, values[HEAT], -np.inf)
    padded = np.pad(heat, 1, constant_values=-np.inf)
    highest = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).max(axis=(2, 3))
    row, column = np.nonzero((heat == highest) & (heat > threshold))
    best = np.argsort(-heat[row, column], kind='stable')[:limit]
    return row[best], column[best]

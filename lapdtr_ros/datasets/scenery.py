"""What stands beside the roads of a generated scene, and the light that falls on it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lapdtr_ros.datasets.roads import SIDEWALK_WIDTH, STEP_M, Layout, Road
from lapdtr_ros.perception.boxes import Boxes, bev_iou

Colour = tuple[float, float, float]

# Facades, houses with a roof, hedges and containers; all are boxes to the LiDAR.
STYLES = ('offices', 'flats', 'house', 'hedge', 'container')

_WALLS: dict[str, tuple[Colour, ...]] = {
    'offices': ((0.72, 0.74, 0.77), (0.58, 0.63, 0.68), (0.80, 0.76, 0.70), (0.50, 0.52, 0.56)),
    'flats': ((0.80, 0.62, 0.48), (0.74, 0.50, 0.42), (0.86, 0.80, 0.66), (0.66, 0.68, 0.62)),
    'house': ((0.90, 0.86, 0.78), (0.84, 0.74, 0.62), (0.72, 0.78, 0.80), (0.86, 0.66, 0.58)),
    'hedge': ((0.20, 0.36, 0.16), (0.24, 0.42, 0.18)),
    'container': ((0.66, 0.26, 0.18), (0.20, 0.36, 0.52), (0.30, 0.46, 0.34)),
}
# Share of each style in the three kinds of neighbourhood.
_NEIGHBOURHOODS = (
    (0.55, 0.35, 0.00, 0.06, 0.04),
    (0.05, 0.35, 0.40, 0.16, 0.04),
    (0.00, 0.08, 0.62, 0.26, 0.04),
)


@dataclass(frozen=True)
class Block:
    """A box that stands on the ground: x, y of its middle, metres; yaw in radians."""

    style: str
    x: float
    y: float
    yaw: float
    size: tuple[float, float, float]
    colour: Colour

    @property
    def vector(self) -> tuple[float, ...]:
        """7-vector (x, y, z, length, width, height, yaw) of its box."""
        return self.x, self.y, self.size[2] / 2, *self.size, self.yaw


@dataclass(frozen=True)
class Tree:
    """A tree; `conifer` decides its shape."""

    x: float
    y: float
    height: float
    radius: float
    colour: Colour
    conifer: bool


@dataclass(frozen=True)
class Lamp:
    """A street lamp whose arm points along `yaw`."""

    x: float
    y: float
    yaw: float


@dataclass(frozen=True)
class Daylight:
    """Sun and sky.

    Attributes:
        azimuth: direction towards the sun in the world, radians.
        elevation: of the sun, radians.
        sun: colour and strength of its light.
        ambient: of the light from everywhere.
        zenith: of the sky.
        horizon: of the sky, and of the haze in the distance.
        haze_m: distance at which half of the light is haze.
        clouds: share of the sky they cover, 0 to 1.
    """

    azimuth: float
    elevation: float
    sun: Colour
    ambient: Colour
    zenith: Colour
    horizon: Colour
    haze_m: float
    clouds: float


@dataclass(frozen=True, eq=False)
class Scenery:
    """Everything that does not move."""

    blocks: tuple[Block, ...]
    trees: tuple[Tree, ...]
    lamps: tuple[Lamp, ...]
    daylight: Daylight
    grass: Colour


def build_scenery(layout: Layout, rng: np.random.Generator) -> Scenery:
    """Place blocks, trees and lamps along the roads, none of them on a road or sidewalk's kerb."""
    blocks = _place_blocks(layout, rng)
    grass = _vary((0.36, 0.47, 0.24), rng)
    trees = (*_street_trees(layout, rng), *_meadow_trees(layout, blocks, rng))
    lamps = tuple(lamp for road in layout.roads for lamp in _lamps(layout, road))
    return Scenery(tuple(blocks), trees, lamps, _daylight(rng), grass)


def _daylight(rng: np.random.Generator) -> Daylight:
    azimuth = rng.uniform(-math.pi, math.pi)
    presets = (
        # elevation, sun, ambient, zenith, horizon, haze, clouds
        (52, (0.86, 0.83, 0.76), (0.44, 0.47, 0.53), (0.27, 0.49, 0.80), (0.74, 0.84, 0.93), 420),
        (38, (0.84, 0.78, 0.68), (0.42, 0.45, 0.52), (0.33, 0.53, 0.79), (0.80, 0.86, 0.91), 360),
        (21, (0.96, 0.70, 0.44), (0.38, 0.38, 0.46), (0.36, 0.48, 0.70), (0.96, 0.80, 0.62), 300),
        (48, (0.36, 0.36, 0.36), (0.60, 0.62, 0.65), (0.62, 0.67, 0.73), (0.80, 0.83, 0.86), 230),
    )
    elevation, sun, ambient, zenith, horizon, haze = presets[int(rng.integers(len(presets)))]
    return Daylight(
        azimuth=azimuth,
        elevation=math.radians(elevation + rng.uniform(-5.0, 5.0)),
        sun=_vary(sun, rng, 0.03),
        ambient=_vary(ambient, rng, 0.02),
        zenith=_vary(zenith, rng, 0.03),
        horizon=_vary(horizon, rng, 0.02),
        haze_m=haze * rng.uniform(0.85, 1.15),
        clouds=rng.uniform(0.15, 0.6),
    )


def _vary(colour: Colour, rng: np.random.Generator, spread: float = 0.04) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.normal(0.0, spread, 3), 0.0, 1.0).tolist()
    return red, green, blue


def _along(road: Road, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre line, its normals towards `side`, and the yaw along it."""
    tangent = np.gradient(road.centre, axis=0) / STEP_M
    normals = side * np.column_stack([-tangent[:, 1], tangent[:, 0]])
    return road.centre, normals, np.arctan2(tangent[:, 1], tangent[:, 0])


def _place_blocks(layout: Layout, rng: np.random.Generator) -> list[Block]:
    shares = _NEIGHBOURHOODS[int(rng.integers(len(_NEIGHBOURHOODS)))]
    blocks: list[Block] = []
    placed = Boxes.empty()
    for road in layout.roads:
        for side in (-1, 1):
            for block in _row_of_blocks(road, side, shares, rng):
                box = Boxes.from_vectors([block.vector])
                corners = np.vstack([box.bev_corners()[0], [[block.x, block.y]]])
                free = layout.clearance(corners).min() > SIDEWALK_WIDTH + 0.3
                if free and not (bev_iou(box, placed) > 0.0).any():
                    blocks.append(block)
                    placed = Boxes.concatenate([placed, box])
    return blocks


def _row_of_blocks(
    road: Road, side: int, shares: tuple[float, ...], rng: np.random.Generator
) -> Iterator[Block]:
    centre, normals, yaw = _along(road, side)
    distance = rng.uniform(0.0, 8.0)
    while True:
        style = STYLES[int(rng.choice(len(STYLES), p=shares))]
        length, depth, height, setback = _block_size(style, rng)
        index = int((distance + length / 2) / STEP_M)
        if index >= len(centre):
            return
        offset = road.half_width + SIDEWALK_WIDTH + setback + depth / 2
        x, y = (centre[index] + offset * normals[index]).tolist()
        walls = _WALLS[style]
        colour = _vary(walls[int(rng.integers(len(walls)))], rng)
        yield Block(style, x, y, float(yaw[index]), (length, depth, height), colour)
        distance += length + rng.choice([1.5, 4.0, 12.0], p=[0.5, 0.3, 0.2])


def _block_size(style: str, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Length, depth, height and distance from the sidewalk, metres."""
    ranges = {
        'offices': ((14, 30), (12, 18), (12, 33), (0.5, 4)),
        'flats': ((12, 24), (10, 14), (9, 18), (1, 5)),
        'house': ((8, 13), (8, 10), (3.2, 5.6), (3, 8)),
        'hedge': ((8, 16), (0.9, 1.3), (0.9, 1.3), (0.6, 1.5)),
        'container': ((6, 6.1), (2.4, 2.5), (2.5, 2.6), (1, 4)),
    }
    length, depth, height, setback = (float(rng.uniform(*r)) for r in ranges[style])
    return length, depth, height, setback


def _street_trees(layout: Layout, rng: np.random.Generator) -> Iterator[Tree]:
    if rng.random() < 0.25:
        return
    spacing = rng.uniform(9.0, 18.0)
    for road in layout.roads:
        for side in (-1, 1):
            centre, normals, _ = _along(road, side)
            for distance in np.arange(spacing / 2, len(centre) * STEP_M, spacing):
                index = min(int((distance + rng.uniform(-2, 2)) / STEP_M), len(centre) - 1)
                place = centre[index] + (road.half_width + 1.6) * normals[index]
                if rng.random() < 0.75 and layout.clearance(place[None])[0] > 1.2:
                    yield _tree(place, rng, conifer=False, height=rng.uniform(4.5, 7.5))


def _meadow_trees(layout: Layout, blocks: list[Block], rng: np.random.Generator) -> Iterator[Tree]:
    boxes = np.array([[block.x, block.y, max(block.size[:2])] for block in blocks]).reshape(-1, 3)
    line = np.concatenate([road.centre for road in layout.roads])
    places = line[rng.integers(len(line), size=len(line) // 4)]
    places = places + rng.uniform(-45.0, 45.0, places.shape)
    for place, clearance in zip(places, layout.clearance(places), strict=True):
        gap = np.linalg.norm(boxes[:, :2] - place, axis=1) - 0.75 * boxes[:, 2]
        if clearance > SIDEWALK_WIDTH + 2.5 and (gap > 1.5).all():
            conifer = bool(rng.random() < 0.35)
            yield _tree(place, rng, conifer, height=rng.uniform(5.0, 11.0))


def _tree(place: np.ndarray, rng: np.random.Generator, conifer: bool, height: float) -> Tree:
    base = (0.19, 0.40, 0.24) if conifer else (0.36, 0.56, 0.24)
    radius = height * (rng.uniform(0.18, 0.24) if conifer else rng.uniform(0.26, 0.36))
    return Tree(float(place[0]), float(place[1]), height, radius, _vary(base, rng), conifer)


def _lamps(layout: Layout, road: Road) -> Iterator[Lamp]:
    for side, shift in ((-1, 0.0), (1, 16.0)):
        centre, normals, _ = _along(road, side)
        for index in np.arange(int((8.0 + shift) / STEP_M), len(centre), int(32.0 / STEP_M)):
            x, y = centre[index] + (road.half_width + 0.7) * normals[index]
            if layout.clearance(np.array([[x, y]]))[0] > 0.5:
                inward = -normals[index]
                yield Lamp(float(x), float(y), math.atan2(inward[1], inward[0]))

"""Vehicles of generated scenes and how they drive: car following with signals at junctions.

Cars follow the intelligent driver model (Treiber, Hennecke, Helbing, Phys. Rev. E 62, 2000). One
arm of a junction has green at a time and the next one waits until the junction is empty, so boxes
never overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lapdtr_ros.datasets.roads import STEP_M, Layout, Route

FRAME_S = 0.1
BURN_IN_S = 8.0  # until the starting positions are forgotten

_ACCELERATION = 1.8  # m/s2
_BRAKING = 2.5
_HARD_BRAKING = 7.0
_HEADWAY_S = 1.2
_STANDSTILL_GAP = 2.0
_LOOK_AHEAD_M = 60.0
_CORRIDOR = 2.1  # lateral metres within which somebody is in the way
_GREEN_S = 9.0
_LATE_BRAKING = 4.0  # who would need more than this to stop at a signal drives on


@dataclass(frozen=True)
class VehicleKind:
    """A kind of four-wheeled vehicle.

    Attributes:
        name: of the kind.
        model: file of the SMARTS package, without ending.
        size: length, width and height, metres; the model is stretched to it. Nothing is higher
            than 2.85 m: OpenCOOD drops boxes that reach more than 1 m above the LiDAR.
        share: how often it occurs in traffic, relative to the others.
    """

    name: str
    model: str
    size: tuple[float, float, float]
    share: float


# The size of OPV2V's connected vehicles (lincoln.mkz_2017).
CONNECTED_KIND = VehicleKind('sedan', 'muscle_car', (4.90, 2.13, 1.51), 0.22)

KINDS = (
    CONNECTED_KIND,
    VehicleKind('coupe', 'muscle_car', (4.18, 1.99, 1.36), 0.10),
    VehicleKind('city_car', 'simple_car', (3.63, 1.80, 1.50), 0.16),
    VehicleKind('hatchback', 'simple_car', (4.25, 1.84, 1.52), 0.18),
    VehicleKind('suv', 'bus', (4.70, 1.96, 1.82), 0.12),
    VehicleKind('pickup', 'truck', (5.40, 2.02, 1.88), 0.08),
    VehicleKind('minibus', 'coach', (5.60, 2.06, 2.40), 0.05),
    VehicleKind('van', 'trailer', (5.55, 2.05, 2.30), 0.06),
    VehicleKind('box_van', 'moving_truck', (6.90, 2.35, 2.80), 0.03),
)

# Usual car colours, linear RGB.
PAINTS = (
    (0.86, 0.87, 0.88),
    (0.62, 0.64, 0.66),
    (0.30, 0.31, 0.33),
    (0.10, 0.10, 0.11),
    (0.62, 0.10, 0.09),
    (0.13, 0.27, 0.52),
    (0.18, 0.36, 0.25),
    (0.80, 0.62, 0.22),
    (0.72, 0.66, 0.55),
    (0.36, 0.18, 0.13),
    (0.83, 0.40, 0.12),
    (0.25, 0.50, 0.60),
)


@dataclass(frozen=True, eq=False)
class Traffic:
    """What drove and parked during a recording.

    Attributes:
        kinds: one per vehicle.
        parked: (V,), bool.
        states: (F, V, 4): x, y in metres, yaw in radians, speed in m/s.
        present: (F, V), bool, whether the vehicle is on the road drawn.
        paths: (V,) the route each vehicle follows, None when parked.
        distances: (F, V), metres along that route.
    """

    kinds: tuple[VehicleKind, ...]
    parked: np.ndarray
    states: np.ndarray
    present: np.ndarray
    paths: tuple[Route | None, ...]
    distances: np.ndarray


@dataclass
class _Driver:
    route: Route
    kind: VehicleKind
    distance: float
    speed: float
    wish: float
    lateral: float

    @property
    def half_length(self) -> float:
        return self.kind.size[0] / 2

    def state(self) -> tuple[float, float, float, float]:
        x, y, yaw = self.route.locate(self.distance)
        # A vehicle keeps its own small distance from the middle of the lane.
        x, y = x - self.lateral * math.sin(yaw), y + self.lateral * math.cos(yaw)
        return x, y, yaw, self.speed


def simulate(layout: Layout, frames: int, density: float, rng: np.random.Generator) -> Traffic:
    """Let vehicles drive through a layout.

    Args:
        layout: where.
        frames: number of recorded moments, `FRAME_S` apart.
        density: 1 is a busy road; scales the number of moving and of parked vehicles.
        rng: source of places, kinds and tempers.

    Returns:
        The recording, after `BURN_IN_S` that nobody sees.
    """
    duration = BURN_IN_S + frames * FRAME_S
    drivers = _place_drivers(layout, duration, density, rng)
    parked = _place_parked(layout, density, rng)
    signals = _Signals(layout)
    burn_in = round(BURN_IN_S / FRAME_S)
    moving = np.empty((frames, len(drivers), 4))
    distances = np.zeros((frames, len(drivers) + len(parked)))
    for step in range(-burn_in, frames):
        states = np.array([driver.state() for driver in drivers]).reshape(-1, 4)
        if step >= 0:
            moving[step] = states
            distances[step, : len(drivers)] = [driver.distance for driver in drivers]
        signals.advance(drivers)
        accelerations = [_acceleration(i, drivers, states, signals) for i in range(len(drivers))]
        for driver, acceleration in zip(drivers, accelerations, strict=True):
            _move(driver, acceleration)
    return _traffic(drivers, parked, moving, distances)


def _traffic(
    drivers: Sequence[_Driver],
    parked: Sequence[tuple[VehicleKind, np.ndarray]],
    moving: np.ndarray,
    distances: np.ndarray,
) -> Traffic:
    frames, count = moving.shape[:2]
    standing = np.array([[*place, 0.0] for _, place in parked]).reshape(-1, 4)
    standing = np.broadcast_to(standing, (frames, len(parked), 4))
    lengths = np.array([driver.route.length for driver in drivers])
    on_road = (distances[:, :count] >= 0.0) & (distances[:, :count] <= lengths)
    present = np.concatenate([on_road, np.ones((frames, len(parked)), dtype=bool)], axis=1)
    return Traffic(
        kinds=(*(driver.kind for driver in drivers), *(kind for kind, _ in parked)),
        parked=np.arange(count + len(parked)) >= count,
        states=np.concatenate([moving, standing], axis=1),
        present=present,
        paths=(*(driver.route for driver in drivers), *(None for _ in parked)),
        distances=distances,
    )


def draw_kind(rng: np.random.Generator) -> VehicleKind:
    """Draw a kind by its share."""
    shares = np.array([kind.share for kind in KINDS])
    return KINDS[int(rng.choice(len(KINDS), p=shares / shares.sum()))]


def _place_drivers(
    layout: Layout, duration: float, density: float, rng: np.random.Generator
) -> list[_Driver]:
    """Fill every lane, also before its first point: those vehicles enter during the recording."""
    drivers: list[_Driver] = []
    for routes in _lanes(layout):
        tempo = rng.uniform(8.0, 13.0)
        distance = -duration * tempo
        while distance < routes[0].length:
            route = routes[int(rng.integers(len(routes)))]
            waiting_room = route.stop_m - 8.0, route.clear_m + 8.0
            if not waiting_room[0] < distance < waiting_room[1]:
                wish = tempo * rng.uniform(0.85, 1.15)
                limit = route.speed_limit[int(min(max(distance, 0), route.length) / STEP_M)]
                speed = 0.8 * min(wish, float(limit))
                lateral = rng.uniform(-0.2, 0.2)
                drivers.append(_Driver(route, draw_kind(rng), distance, speed, wish, lateral))
            distance += 10.0 + rng.exponential(16.0) / density
    return _without_collisions(drivers)


def _lanes(layout: Layout) -> list[list[Route]]:
    """Group the routes that begin on the same lane."""
    lanes: dict[tuple[float, float], list[Route]] = {}
    for route in layout.routes:
        x, y = route.points[0]
        lanes.setdefault((round(float(x), 1), round(float(y), 1)), []).append(route)
    return list(lanes.values())


def _without_collisions(drivers: Sequence[_Driver]) -> list[_Driver]:
    """Drop vehicles that lanes merging behind a junction would place on one another."""
    kept: list[_Driver] = []
    places: list[tuple[float, float]] = []
    for driver in drivers:
        x, y, _, _ = driver.state()
        if all(
            math.hypot(x - a, y - b) > 9.0 or _beside(driver, other)
            for other, (a, b) in zip(kept, places, strict=True)
        ):
            kept.append(driver)
            places.append((x, y))
    return kept


def _beside(one: _Driver, other: _Driver) -> bool:
    x, y, yaw, _ = one.state()
    a, b, _, _ = other.state()
    return abs(-(a - x) * math.sin(yaw) + (b - y) * math.cos(yaw)) > 2.8


def _place_parked(
    layout: Layout, density: float, rng: np.random.Generator
) -> list[tuple[VehicleKind, np.ndarray]]:
    parked = []
    for slot in layout.parking_slots():
        if rng.random() < min(0.9, 0.3 * density):
            kind = draw_kind(rng)
            if kind.size[0] < 5.7:
                parked.append((kind, slot + np.array([0, 0, rng.normal(0.0, 0.02)])))
    return parked


class _Signals:
    """One green arm at a time; the next one when the junction is empty."""

    def __init__(self, layout: Layout) -> None:
        self._arms = sorted({route.arm for route in layout.routes if route.arm is not None})
        self._current = 0
        self._left_s = _GREEN_S

    def is_green(self, arm: int) -> bool:
        return self._left_s > 0.0 and self._arms[self._current] == arm

    def advance(self, drivers: Sequence[_Driver]) -> None:
        if not self._arms:
            return
        self._left_s -= FRAME_S
        if self._left_s <= 0.0 and not any(_in_junction(driver) for driver in drivers):
            self._current = (self._current + 1) % len(self._arms)
            self._left_s = _GREEN_S


def _in_junction(driver: _Driver) -> bool:
    front = driver.distance + driver.half_length
    return driver.route.stop_m < front and driver.distance < (
        driver.route.clear_m + driver.half_length
    )


def _acceleration(
    index: int, drivers: Sequence[_Driver], states: np.ndarray, signals: _Signals
) -> float:
    driver = drivers[index]
    place = int(min(max(driver.distance, 0.0), driver.route.length) / STEP_M)
    wish = min(driver.wish, float(driver.route.speed_limit[place]))
    gap, lead_speed = _leader(index, drivers, states)
    line = _line_gap(driver, signals)
    if line < gap:
        gap, lead_speed = line + _STANDSTILL_GAP - 0.5, 0.0
    speed = driver.speed
    closing = speed * (speed - lead_speed) / (2 * math.sqrt(_ACCELERATION * _BRAKING))
    wanted = _STANDSTILL_GAP + max(0.0, speed * _HEADWAY_S + closing)
    free = 1.0 - (speed / max(wish, 0.1)) ** 4
    value = _ACCELERATION * (free - (wanted / max(gap, 0.1)) ** 2)
    return min(max(value, -_HARD_BRAKING), _ACCELERATION)


def _leader(index: int, drivers: Sequence[_Driver], states: np.ndarray) -> tuple[float, float]:
    """Free metres before the next vehicle in the way, and its speed along the own path."""
    driver = drivers[index]
    relative = states[:, :2] - states[index, :2]
    near = np.flatnonzero((relative**2).sum(axis=1) < (_LOOK_AHEAD_M + 10.0) ** 2)
    near = near[near != index]
    path = _path_ahead(driver)
    if not len(near):
        return math.inf, 0.0
    offsets = states[near, None, :2] - path[None, :, :2]
    squared = (offsets**2).sum(axis=2)
    closest = squared.argmin(axis=1)
    row = np.arange(len(near))
    yaw = path[closest, 2]
    offset = offsets[row, closest]
    along = offset[:, 0] * np.cos(yaw) + offset[:, 1] * np.sin(yaw)
    lateral = -offset[:, 0] * np.sin(yaw) + offset[:, 1] * np.cos(yaw)
    ahead = closest * 1.0 + along
    blocking = (np.abs(lateral) < _CORRIDOR) & (ahead > 0.2) & (np.abs(along) < 1.5)
    if not blocking.any():
        return math.inf, 0.0
    other = int(near[blocking][ahead[blocking].argmin()])
    first = int(np.flatnonzero(blocking)[ahead[blocking].argmin()])
    gap = float(ahead[first]) - driver.half_length - drivers[other].half_length
    speed = drivers[other].speed * math.cos(states[other, 2] - float(yaw[first]))
    return gap, max(0.0, speed)


def _path_ahead(driver: _Driver) -> np.ndarray:
    """Points (M, 3) of x, y, yaw, one metre apart, from the vehicle on."""
    distance = driver.distance + np.arange(0.0, _LOOK_AHEAD_M)
    inside = np.clip(distance, 0.0, driver.route.length)
    index = (inside / STEP_M).astype(int)
    share = (inside / STEP_M - index)[:, None]
    following = np.minimum(index + 1, len(driver.route.points) - 1)
    points = (1 - share) * driver.route.points[index] + share * driver.route.points[following]
    yaw = driver.route.yaw[index]
    beyond = (distance - inside)[:, None]
    return np.column_stack([points + beyond * np.column_stack([np.cos(yaw), np.sin(yaw)]), yaw])


def _line_gap(driver: _Driver, signals: _Signals) -> float:
    """Metres to a stop line that must be kept, infinite without one."""
    route = driver.route
    gap = route.stop_m - driver.distance - driver.half_length
    if route.arm is None or gap < 0.0 or signals.is_green(route.arm):
        return math.inf
    # Too late to stop: the junction is not given to others before this vehicle has left it.
    late = gap < driver.speed**2 / (2 * _LATE_BRAKING)
    return math.inf if late else gap


def _move(driver: _Driver, acceleration: float) -> None:
    speed = max(0.0, driver.speed + acceleration * FRAME_S)
    driver.distance += 0.5 * (driver.speed + speed) * FRAME_S
    driver.speed = speed

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
_LOOK_AHEAD_M = 50.0
_PATH_STEP_M = 2.0
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


@dataclass(frozen=True)
class _Driver:
    """Where a vehicle starts and how it likes to drive."""

    route: Route
    kind: VehicleKind
    distance: float
    speed: float
    wish: float
    lateral: float


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
    flow = _Flow(layout, drivers)
    burn_in = round(BURN_IN_S / FRAME_S)
    moving = np.empty((frames, len(drivers), 4))
    distances = np.zeros((frames, len(drivers) + len(parked)))
    for step in range(-burn_in, frames):
        states = flow.states()
        if step >= 0:
            moving[step] = states
            distances[step, : len(drivers)] = flow.distance
        flow.advance(states)
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
    places = np.empty((0, 2))
    for driver in drivers:
        x, y, yaw = driver.route.locate(driver.distance)
        offset = places - (x, y)
        lateral = np.abs(-offset[:, 0] * math.sin(yaw) + offset[:, 1] * math.cos(yaw))
        if ((np.linalg.norm(offset, axis=1) > 9.0) | (lateral > 2.8)).all():
            kept.append(driver)
            places = np.vstack([places, (x, y)])
    return kept


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


class _Flow:
    """All moving vehicles, as arrays of shape (V,)."""

    def __init__(self, layout: Layout, drivers: Sequence[_Driver]) -> None:
        routes = list(layout.routes)
        self.distance = np.array([driver.distance for driver in drivers])
        self._speed = np.array([driver.speed for driver in drivers])
        self._wish = np.array([driver.wish for driver in drivers])
        self._lateral = np.array([driver.lateral for driver in drivers])
        self._half_length = np.array([driver.kind.size[0] / 2 for driver in drivers])
        self._route = np.array([routes.index(driver.route) for driver in drivers], dtype=int)
        self._paths = _Paths(routes, -float(self.distance.min(initial=0.0)))
        self._stop = np.array([driver.route.stop_m for driver in drivers])
        self._clear = np.array([driver.route.clear_m for driver in drivers])
        self._arm = np.array([-1 if d.route.arm is None else d.route.arm for d in drivers])
        self._arms = sorted({route.arm for route in routes if route.arm is not None})
        self._green = 0
        self._green_left_s = _GREEN_S

    def states(self) -> np.ndarray:
        """Return (V, 4): x, y, yaw, speed."""
        x, y, yaw, _ = self._paths.at(self._route, self.distance).T
        # A vehicle keeps its own small distance from the middle of the lane.
        x, y = x - self._lateral * np.sin(yaw), y + self._lateral * np.cos(yaw)
        return np.column_stack([x, y, yaw, self._speed])

    def advance(self, states: np.ndarray) -> None:
        """Drive for `FRAME_S`."""
        self._switch_signals()
        speed = np.maximum(0.0, self._speed + self._accelerations(states) * FRAME_S)
        self.distance = self.distance + 0.5 * (self._speed + speed) * FRAME_S
        self._speed = speed

    def _switch_signals(self) -> None:
        """One arm at a time has green; the next one when the junction is empty."""
        self._green_left_s -= FRAME_S
        front = self.distance + self._half_length
        inside = (front > self._stop) & (self.distance < self._clear + self._half_length)
        if self._arms and self._green_left_s <= 0.0 and not inside.any():
            self._green = (self._green + 1) % len(self._arms)
            self._green_left_s = _GREEN_S

    def _accelerations(self, states: np.ndarray) -> np.ndarray:
        limit = self._paths.at(self._route, self.distance)[:, 3]
        wish = np.minimum(self._wish, limit)
        gap, lead_speed = self._leaders(states)
        line = self._line_gaps() + _STANDSTILL_GAP - 0.5
        lead_speed = np.where(line < gap, 0.0, lead_speed)
        gap = np.maximum(np.minimum(gap, line), 0.1)
        speed = self._speed
        closing = speed * (speed - lead_speed) / (2 * math.sqrt(_ACCELERATION * _BRAKING))
        wanted = _STANDSTILL_GAP + np.maximum(0.0, speed * _HEADWAY_S + closing)
        value = _ACCELERATION * (1.0 - (speed / wish) ** 4 - (wanted / gap) ** 2)
        return np.clip(value, -_HARD_BRAKING, _ACCELERATION)

    def _line_gaps(self) -> np.ndarray:
        """Metres to the stop lines that must be kept, infinite without one."""
        gap = self._stop - self.distance - self._half_length
        green = self._arms[self._green] if self._arms and self._green_left_s > 0.0 else None
        # Too late to stop: the junction is not given to others before this vehicle has left it.
        late = gap < self._speed**2 / (2 * _LATE_BRAKING)
        free = late | (gap < 0.0) | (self._arm < 0)
        if green is not None:
            free |= self._arm == green
        return np.where(free, math.inf, gap)

    def _leaders(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Free metres before the next vehicle in the way, and its speed along the own path."""
        relative = states[None, :, :2] - states[:, None, :2]
        forward = np.column_stack([np.cos(states[:, 2]), np.sin(states[:, 2])])
        ahead = np.einsum('ijk,ik->ij', relative, forward)
        near = ((relative**2).sum(axis=2) < _LOOK_AHEAD_M**2) & (ahead > 0.0)
        own, other = np.nonzero(near)
        path = self._paths.ahead(self._route, self.distance)[own]
        offsets = states[other, None, :2] - path[..., :2]
        closest = (offsets**2).sum(axis=2).argmin(axis=1)
        row = np.arange(len(own))
        offset, yaw = offsets[row, closest], path[row, closest, 2]
        along = offset[:, 0] * np.cos(yaw) + offset[:, 1] * np.sin(yaw)
        lateral = -offset[:, 0] * np.sin(yaw) + offset[:, 1] * np.cos(yaw)
        gap = closest * _PATH_STEP_M + along - self._half_length[own] - self._half_length[other]
        blocking = (np.abs(lateral) < _CORRIDOR) & (np.abs(along) < 1.5 * _PATH_STEP_M)
        gaps = np.full(len(states), math.inf)
        speeds = np.zeros(len(states))
        # Farthest first, so that the nearest one is what stays.
        for pair in np.flatnonzero(blocking)[np.argsort(-gap[blocking], kind='stable')]:
            gaps[own[pair]] = gap[pair]
            along_path = math.cos(states[other[pair], 2] - yaw[pair])
            speeds[own[pair]] = max(0.0, states[other[pair], 3] * along_path)
        return gaps, speeds


class _Paths:
    """Routes as one table, prolonged straight at both ends so that no look-up leaves it."""

    def __init__(self, routes: Sequence[Route], before: float) -> None:
        self._before = math.ceil((before + 1.0) / STEP_M)
        after = math.ceil((_LOOK_AHEAD_M + 40.0) / STEP_M)
        size = max(len(route.points) for route in routes) + self._before + after
        # x, y, yaw and speed limit
        self._table = np.stack([self._prolonged(route, size) for route in routes])

    def _prolonged(self, route: Route, size: int) -> np.ndarray:
        steps = np.arange(size) - self._before
        inside = np.clip(steps, 0, len(route.points) - 1)
        yaw = route.yaw[inside]
        beyond = ((steps - inside) * STEP_M)[:, None]
        points = route.points[inside] + beyond * np.column_stack([np.cos(yaw), np.sin(yaw)])
        return np.column_stack([points, yaw, route.speed_limit[inside]])

    def at(self, route: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Look up (V, 4) x, y, yaw and speed limit."""
        place = np.clip(distance / STEP_M + self._before, 0.0, self._table.shape[1] - 2.0)
        index = place.astype(int)
        share = (place - index)[:, None]
        return (1 - share) * self._table[route, index] + share * self._table[route, index + 1]

    def ahead(self, route: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Look up (V, M, 4) the path that lies before each vehicle, `_PATH_STEP_M` apart."""
        steps = np.arange(0.0, _LOOK_AHEAD_M + 1.0, _PATH_STEP_M)
        places = (distance[:, None] + steps).ravel()
        return self.at(np.repeat(route, len(steps)), places).reshape(len(route), len(steps), 4)

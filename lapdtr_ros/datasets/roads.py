"""Road layouts of generated scenes: centre lines, the routes of vehicles, and painted surfaces.

Everything lies in the plane `z = 0` of CARLA's left-handed world (x east, y south, metres);
traffic keeps to the right. A road runs along its centre line; offsets from it are positive to the
right. Surfaces are quadrilaterals of shape (N, 4, 2) that are painted in the order of the fields
of `Surfaces`, so later ones cover what junctions would otherwise show twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROADS = ('straight', 'curve', 's_curve', 'crossing', 't_junction')

LANE_WIDTH = 3.5
PARKING_WIDTH = 2.4
SIDEWALK_WIDTH = 3.0
STEP_M = 0.5  # spacing of the points of centre lines and routes

_EDGE_WIDTH = 0.4  # asphalt beyond the outer line
_KERB_WIDTH = 0.25
_LINE_WIDTH = 0.15
_DASH_M = 3.0
_CYCLE_M = 9.0
_SLOT_M = 6.5
_FILLET_RADIUS = 6.0
_JUNCTION_MARGIN = 6.0  # room for zebra crossing and stop line
_COMFORT_ACCELERATION = 2.0  # m/s2, sideways in bends


@dataclass(frozen=True, eq=False)
class Route:
    """Path of a vehicle along one lane, and through a junction where there is one.

    Attributes:
        points: (N, 2), `STEP_M` apart.
        yaw: (N,), radians, continuous.
        speed_limit: (N,), m/s, what bends allow, with room to slow down before them.
        arm: number of the signal that the route obeys, None without a junction.
        stop_m: distance along the route of the stop line.
        clear_m: distance at which the junction is left.
    """

    points: np.ndarray
    yaw: np.ndarray
    speed_limit: np.ndarray
    arm: int | None = None
    stop_m: float = math.inf
    clear_m: float = -math.inf

    @property
    def length(self) -> float:
        """Metres from the first to the last point."""
        return (len(self.points) - 1) * STEP_M

    def locate(self, distance: float) -> tuple[float, float, float]:
        """Return x, y in metres and yaw in radians; straight on beyond both ends."""
        inside = min(max(distance, 0.0), self.length)
        index = min(int(inside / STEP_M), len(self.points) - 2)
        share = inside / STEP_M - index
        x, y = (1 - share) * self.points[index] + share * self.points[index + 1]
        yaw = float((1 - share) * self.yaw[index] + share * self.yaw[index + 1])
        beyond = distance - inside
        return float(x) + beyond * math.cos(yaw), float(y) + beyond * math.sin(yaw), yaw


@dataclass(frozen=True, eq=False)
class Road:
    """A two-way road; at a junction, one arm that leads outwards.

    Attributes:
        centre: (N, 2), centre line, `STEP_M` apart.
        lanes: per direction.
        parking: whether both sides have a strip for parked vehicles.
        marked_from: distance along the centre line where its markings begin.
    """

    centre: np.ndarray
    lanes: int
    parking: bool
    marked_from: float = 0.0

    @property
    def lanes_width(self) -> float:
        """From the centre line to the outer edge of the driving lanes."""
        return self.lanes * LANE_WIDTH

    @property
    def half_width(self) -> float:
        """From the centre line to the kerb."""
        return self.lanes_width + (PARKING_WIDTH if self.parking else 0.0) + _EDGE_WIDTH


@dataclass(frozen=True, eq=False)
class Surfaces:
    """What is painted on the ground, in this order; each of shape (N, 4, 2)."""

    sidewalk: np.ndarray
    kerb: np.ndarray
    asphalt: np.ndarray
    white: np.ndarray
    yellow: np.ndarray


@dataclass(frozen=True, eq=False)
class Layout:
    """Roads with their routes.

    Attributes:
        kind: one of `ROADS`.
        roads: at a junction its arms, by growing direction.
        routes: every way through.
        focus: (2,), the place that connected vehicles should be near.
    """

    kind: str
    roads: tuple[Road, ...]
    routes: tuple[Route, ...]
    focus: np.ndarray

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Distance in metres of points (N, 2) to the nearest kerb, negative on the road.

        The rounded corners of a junction count as a disc around it.
        """
        to_roads = [_distance(points, r.centre) - r.half_width for r in self.roads]
        to_focus = np.linalg.norm(points - self.focus, axis=1)
        return np.min([*to_roads, to_focus - self.roads[0].marked_from], axis=0)

    def parking_slots(self) -> np.ndarray:
        """Middle and heading of every parking slot: (N, 3), metres and radians."""
        slots = [_slots_of(road) for road in self.roads if road.parking]
        return np.concatenate(slots) if slots else np.empty((0, 3))

    def surfaces(self) -> Surfaces:
        """Return what to paint."""
        junction = len(self.roads) > 1
        fillets = _fillets(self.roads) if junction else []
        sidewalk, kerb, asphalt, white, yellow = [], [], [], [], []
        for road in self.roads:
            edge = road.half_width
            outer = edge + SIDEWALK_WIDTH
            sidewalk.append(_strip(road.centre, -outer, outer))
            kerb.append(_strip(road.centre, -edge - _KERB_WIDTH, edge + _KERB_WIDTH))
            asphalt.append(_strip(road.centre, -edge, edge))
            white.extend(_white_lines(road))
            yellow.extend(_yellow_lines(road))
            if junction:
                white.extend(_stop_marks(road))
        for fillet in fillets:
            sidewalk.append(fillet.fan(SIDEWALK_WIDTH))
            kerb.append(fillet.fan(_KERB_WIDTH))
            asphalt.append(fillet.fan(0.0))
        return Surfaces(*(np.concatenate(q) for q in (sidewalk, kerb, asphalt, white, yellow)))


def build_layout(kind: str, reach: float, rng: np.random.Generator) -> Layout:
    """Draw a layout.

    Args:
        kind: one of `ROADS`.
        reach: metres of road from the focus to each end.
        rng: source of directions, radii, lane numbers and parking strips.

    Returns:
        The layout, turned and shifted at random.
    """
    origin = rng.uniform(-150.0, 150.0, 2)
    heading = rng.uniform(-math.pi, math.pi)
    if kind in ('crossing', 't_junction'):
        return _junction(kind, reach, origin, heading, rng)
    shape = _CURVATURES[kind](rng)
    return _through_road(kind, shape, reach, origin, heading, rng)


# Roads without a junction


def _straight(rng: np.random.Generator) -> list[tuple[float, float]]:
    return []


def _curve(rng: np.random.Generator) -> list[tuple[float, float]]:
    radius = rng.uniform(35.0, 90.0) * rng.choice([-1.0, 1.0])
    return [(abs(radius) * rng.uniform(0.8, 1.5), radius)]


def _s_curve(rng: np.random.Generator) -> list[tuple[float, float]]:
    first = rng.uniform(50.0, 100.0) * rng.choice([-1.0, 1.0])
    second = -math.copysign(rng.uniform(50.0, 100.0), first)
    angle = rng.uniform(0.5, 0.9)
    return [(abs(first) * angle, first), (abs(second) * angle, second)]


_CURVATURES = {'straight': _straight, 'curve': _curve, 's_curve': _s_curve}


def _through_road(
    kind: str,
    bends: Sequence[tuple[float, float]],
    reach: float,
    origin: np.ndarray,
    heading: float,
    rng: np.random.Generator,
) -> Layout:
    """Build one road whose `bends`, (length, signed radius), lie around its middle."""
    count = 2 * round(reach / STEP_M) + 1
    distance = (np.arange(count) - count // 2) * STEP_M
    curvature = np.zeros(count)
    start = -sum(length for length, _ in bends) / 2
    for length, radius in bends:
        curvature[(distance >= start) & (distance < start + length)] = 1.0 / radius
        start += length
    # Real bends begin softly; the window is the length of the transition.
    window = np.ones(31) / 31
    curvature = np.convolve(np.pad(curvature, 15), window, mode='valid')
    yaw = heading + np.cumsum(curvature) * STEP_M
    steps = np.column_stack([np.cos(yaw), np.sin(yaw)]) * STEP_M
    centre = np.cumsum(steps, axis=0)
    centre += origin - centre[count // 2]
    lanes = int(rng.integers(1, 4)) if kind == 'straight' else int(rng.integers(1, 3))
    road = Road(centre, lanes, parking=bool(rng.random() < 0.75))
    ways = [centre, centre[::-1]]
    routes = tuple(
        _route(_offset(way, (lane + 0.5) * LANE_WIDTH)) for way in ways for lane in range(lanes)
    )
    return Layout(kind, (road,), routes, origin)


# Junctions


def _junction(
    kind: str, reach: float, origin: np.ndarray, heading: float, rng: np.random.Generator
) -> Layout:
    skew = rng.uniform(-0.25, 0.25)
    angles = [0.0, math.pi / 2 + skew, math.pi, 1.5 * math.pi + skew]
    if kind == 't_junction':
        angles.pop(int(rng.choice([1, 3])))
    lanes = {angle: int(rng.integers(1, 3)) for angle in (0, 1)}
    parking = {angle: bool(rng.random() < 0.7) for angle in (0, 1)}
    groups = [0 if angle in (0.0, math.pi) else 1 for angle in angles]
    widths = [_arm(origin, 0.0, reach, lanes[g], parking[g], 0.0).half_width for g in groups]
    inner = max(widths) / math.cos(skew) + _JUNCTION_MARGIN
    arms = tuple(
        _arm(origin, heading + angle, reach, lanes[group], parking[group], inner)
        for angle, group in zip(angles, groups, strict=True)
    )
    routes = tuple(
        route
        for start in range(len(arms))
        for stop in range(len(arms))
        if start != stop
        for route in _turns(arms, start, stop, inner)
    )
    return Layout(kind, arms, routes, origin)


def _arm(
    origin: np.ndarray, heading: float, reach: float, lanes: int, parking: bool, inner: float
) -> Road:
    distance = np.arange(0.0, reach + STEP_M, STEP_M)
    direction = np.array([math.cos(heading), math.sin(heading)])
    return Road(origin + distance[:, None] * direction, lanes, parking, marked_from=inner)


def _turns(arms: Sequence[Road], start: int, stop: int, inner: float) -> list[Route]:
    """Routes from one arm into another: all lanes straight on, the outer one to the right, ..."""
    into, out = arms[start], arms[stop]
    inbound = -_direction(into)
    outbound = _direction(out)
    turn = inbound[0] * outbound[1] - inbound[1] * outbound[0]  # > 0: to the right
    straight = abs(turn) < 0.5
    if straight:
        pairs = [(lane, min(lane, out.lanes - 1)) for lane in range(into.lanes)]
    else:
        pairs = [(into.lanes - 1, out.lanes - 1)] if turn > 0 else [(0, 0)]
    routes = []
    for lane_in, lane_out in pairs:
        first = int(inner / STEP_M)
        way_in = _offset(into.centre[first:][::-1], (lane_in + 0.5) * LANE_WIDTH)
        way_out = _offset(out.centre[first:], (lane_out + 0.5) * LANE_WIDTH)
        bend = _bezier(way_in[-1], inbound, way_out[0], outbound)
        stop_m = (len(way_in) - 1) * STEP_M - 0.5
        points = _resample(np.concatenate([way_in, bend, way_out]))
        clear_m = (len(points) - 1) * STEP_M - (len(way_out) - 1) * STEP_M + 3.0
        routes.append(_route(points, arm=start, stop_m=stop_m, clear_m=clear_m))
    return routes


def _direction(arm: Road) -> np.ndarray:
    delta = arm.centre[-1] - arm.centre[0]
    return delta / np.linalg.norm(delta)


def _bezier(
    start: np.ndarray, start_direction: np.ndarray, stop: np.ndarray, stop_direction: np.ndarray
) -> np.ndarray:
    """Inner points of a cubic curve that keeps the directions at its ends."""
    handle = 0.45 * np.linalg.norm(stop - start)
    a, b = start + handle * start_direction, stop - handle * stop_direction
    t = np.linspace(0.0, 1.0, 60)[1:-1, None]
    return (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * a + 3 * (1 - t) * t**2 * b + t**3 * stop


@dataclass(frozen=True, eq=False)
class _Fillet:
    """The rounded kerb between two neighbouring arms."""

    corner: np.ndarray
    curve: np.ndarray
    centre: np.ndarray

    def fan(self, inset: float) -> np.ndarray:
        """Quadrilaterals (N, 4, 2) from behind the corner to the kerb, `inset` beyond it."""
        spokes = self.centre - self.curve
        reach = np.linalg.norm(spokes, axis=1, keepdims=True)
        curve = self.curve + spokes * np.minimum(1.0, inset / reach)
        apex = np.broadcast_to(self.corner, curve[:-1].shape)
        return np.stack([apex, curve[:-1], curve[1:], apex], axis=1)


def _fillets(arms: Sequence[Road]) -> list[_Fillet]:
    fillets = []
    for arm, following in zip(arms, [*arms[1:], arms[0]], strict=True):
        one, two = _direction(arm), _direction(following)
        if one[0] * two[1] - one[1] * two[0] < 0.2:  # the straight side of a T-junction
            continue
        start = arm.centre[0] + arm.half_width * np.array([-one[1], one[0]])
        other = following.centre[0] - following.half_width * np.array([-two[1], two[0]])
        along, _ = np.linalg.solve(np.column_stack([one, -two]), other - start)
        corner = start + along * one
        half_angle = 0.5 * math.acos(float(one @ two))
        tangent = _FILLET_RADIUS / math.tan(half_angle)
        bisector = (one + two) / np.linalg.norm(one + two)
        t = np.linspace(0.0, 1.0, 13)[:, None]
        ends = corner + tangent * one, corner + tangent * two
        curve = (1 - t) ** 2 * ends[0] + 2 * (1 - t) * t * corner + t**2 * ends[1]
        # The apex lies inside the junction, so the fan covers the kerbs of both arms.
        apex = corner - 2.0 * bisector
        fillets.append(_Fillet(apex, curve, corner + bisector * _FILLET_RADIUS * 1.5))
    return fillets


# Curves


def _route(
    points: np.ndarray,
    arm: int | None = None,
    stop_m: float = math.inf,
    clear_m: float = -math.inf,
) -> Route:
    points = _resample(points)
    tangent = np.gradient(points, axis=0)
    yaw = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
    curvature = np.abs(np.gradient(yaw)) / STEP_M
    limit = np.sqrt(_COMFORT_ACCELERATION / np.maximum(curvature, 1e-4))
    for i in range(len(limit) - 2, -1, -1):  # brake in time
        limit[i] = min(limit[i], math.sqrt(limit[i + 1] ** 2 + 2 * 1.5 * STEP_M))
    return Route(points, yaw, limit, arm, stop_m, clear_m)


def _resample(points: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    distance = np.concatenate([[0.0], np.cumsum(lengths)])
    wanted = np.arange(0.0, distance[-1] + 1e-9, STEP_M)
    return np.column_stack([np.interp(wanted, distance, points[:, axis]) for axis in (0, 1)])


def _normals(points: np.ndarray) -> np.ndarray:
    """Unit vectors to the right of a line (N, 2)."""
    tangent = np.gradient(points, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    return np.column_stack([-tangent[:, 1], tangent[:, 0]])


def _offset(points: np.ndarray, distance: float) -> np.ndarray:
    return points + distance * _normals(points)


def _distance(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    coarse = line[::4]
    return np.linalg.norm(points[:, None] - coarse[None], axis=2).min(axis=1)


# Paint


def _strip(line: np.ndarray, left: float, right: float) -> np.ndarray:
    """Quadrilaterals between two offsets of a line, as long as its bends allow."""
    bends = np.ptp(_normals(line), axis=0).max() > 1e-6
    step = (2.0 if bends else 12.0) / STEP_M
    keep = np.linspace(0, len(line) - 1, 2 + int((len(line) - 2) / step)).astype(int)
    a, b = _offset(line, left)[keep], _offset(line, right)[keep]
    return np.stack([a[:-1], b[:-1], b[1:], a[1:]], axis=1)


def _line(road: Road, offset: float, dashed: bool = False) -> np.ndarray:
    line = road.centre[int(road.marked_from / STEP_M) :]
    pieces = [line]
    if dashed:
        cycle, dash = int(_CYCLE_M / STEP_M), int(_DASH_M / STEP_M)
        pieces = [line[i : i + dash + 1] for i in range(0, len(line) - dash, cycle)]
    left, right = offset - _LINE_WIDTH / 2, offset + _LINE_WIDTH / 2
    return np.concatenate([_strip(piece, left, right) for piece in pieces])


def _white_lines(road: Road) -> list[np.ndarray]:
    inner = [
        _line(road, side * lane * LANE_WIDTH, dashed=True)
        for side in (-1, 1)
        for lane in range(1, road.lanes)
    ]
    outer = [_line(road, side * road.lanes_width, dashed=road.parking) for side in (-1, 1)]
    return inner + outer


def _yellow_lines(road: Road) -> list[np.ndarray]:
    if road.lanes == 1:
        return [_line(road, 0.0, dashed=True)]
    return [_line(road, -0.15), _line(road, 0.15)]


def _stop_marks(arm: Road) -> list[np.ndarray]:
    """The stop line of the inbound half and a zebra crossing, both within the junction margin."""
    first = int(arm.marked_from / STEP_M)
    stop_line = _strip(arm.centre[first : first + 2], -arm.lanes_width, -0.2)
    zebra = arm.centre[first - 7 : first - 1]
    stripes = np.arange(-arm.half_width + 0.5, arm.half_width - 0.5, 1.1)
    return [stop_line, *(_strip(zebra, offset, offset + 0.55) for offset in stripes)]


def _slots_of(road: Road) -> np.ndarray:
    """Parking slots of both sides; vehicles face the way of the traffic next to them."""
    first = road.marked_from + (12.0 if road.marked_from else _SLOT_M)
    centre = road.centre[int(first / STEP_M) :]
    sides = []
    for side in (1, -1):
        # Spaced along their own line, which is the shorter one inside a bend.
        line = _resample(_offset(centre, side * (road.lanes_width + PARKING_WIDTH / 2)))
        tangent = np.gradient(line, axis=0) * side
        index = np.arange(0, len(line) - _SLOT_M / STEP_M, _SLOT_M / STEP_M).astype(int)
        yaw = np.arctan2(tangent[index, 1], tangent[index, 0])
        sides.append(np.column_stack([line[index], yaw]))
    return np.concatenate(sides)

"""A generated scene: everything about it except its pictures.

`build_scene` is a function of its configuration alone, and `Scene.agent_frame` gives the metadata
and labels that OPV2V stores. Heights are exact: the ground is flat and every box stands on it.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lapdtr_ros.datasets.opv2v import TICK_S, AgentFrame, CameraModel, Pose, VehicleLabel
from lapdtr_ros.datasets.roads import ROADS, Layout, build_layout
from lapdtr_ros.datasets.scenery import Colour, Scenery, build_scenery
from lapdtr_ros.datasets.traffic import CONNECTED_KIND, FRAME_S, PAINTS, Traffic, simulate
from lapdtr_ros.datasets.visibility import RANGE_M, visible
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.perception.poses import camera_intrinsic, pose_to_matrix

FIELD_OF_VIEW_DEG = 100.0
# Mounts of OPV2V in the frame of the vehicle, (x, y, z, roll, yaw, pitch).
CAMERA_MOUNTS: tuple[Pose, ...] = (
    (2.5, 0.0, 1.0, 0.0, 0.0, 0.0),
    (0.0, 0.3, 1.8, 0.0, 100.0, 0.0),
    (0.0, -0.3, 1.8, 0.0, -100.0, 0.0),
    (-2.0, 0.0, 1.5, 0.0, 180.0, 0.0),
)
LIDAR_MOUNT: Pose = (-0.5, 0.0, 1.9, 0.0, 0.0, 0.0)

_FIRST_FRAME = 69
_TICKS_PER_FRAME = round(FRAME_S / TICK_S)
_REACH_M = 170.0
_FASTEST = 13.0  # m/s
_COOPERATION_M = 45.0
_CONNECTED_PAINT: Colour = (0.10, 0.26, 0.60)
_ID_SPACING = 9
_KEEP_M = 160.0
_MAX_VEHICLES = 7


class GeneratorError(LapdtrError):
    """A scene that cannot be generated as asked."""


@dataclass(frozen=True)
class SceneConfig:
    """What a generated scene shall be; the same configuration gives the same scene.

    Attributes:
        seed: of everything random.
        road: one of `lapdtr_ros.datasets.roads.ROADS`.
        frames: number of timestamps, 0.1 s apart.
        vehicles: number of connected vehicles, 1 to 7.
        width: of the pictures, pixels.
        height: of the pictures, pixels.
        density: of the traffic; 1 is a busy road.
    """

    seed: int
    road: str = 'crossing'
    frames: int = 40
    vehicles: int = 3
    width: int = 800
    height: int = 600
    density: float = 1.0

    def __post_init__(self) -> None:
        if self.road not in ROADS:
            raise GeneratorError(f'road {self.road!r} is unknown; use one of {", ".join(ROADS)}')
        if not 1 <= self.vehicles <= _MAX_VEHICLES:
            raise GeneratorError(f'vehicles is {self.vehicles}; use 1 to {_MAX_VEHICLES}')
        for name, low, high in (
            ('seed', 0, 10**9),
            ('frames', 1, 3000),
            ('width', 16, 4096),
            ('height', 16, 4096),
            ('density', 0.05, 2.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise GeneratorError(f'{name} is {value}; use {low} to {high}')

    @property
    def name(self) -> str:
        """Name of the scenario, a time of recording as in OPV2V; one per seed."""
        start = datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=self.seed)
        return start.strftime('%Y_%m_%d_%H_%M_%S')


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene with the motion of all its vehicles.

    Attributes:
        config: what it was made from.
        layout: its roads.
        scenery: what stands beside them.
        traffic: the recording; vehicles are counted in its order.
        ids: (V,) number of each vehicle in the files.
        paints: (V,) colour of each body.
        connected: places in `ids` of the connected vehicles, the ego first.
    """

    config: SceneConfig
    layout: Layout
    scenery: Scenery
    traffic: Traffic
    ids: tuple[int, ...]
    paints: tuple[Colour, ...]
    connected: tuple[int, ...]

    def timestamp(self, frame: int) -> str:
        """Name of a frame, counted from 0."""
        return f'{_FIRST_FRAME + _TICKS_PER_FRAME * frame:06d}'

    def boxes(self, frame: int) -> np.ndarray:
        """Exact boxes of all vehicles in the world: (V, 7), yaw in radians."""
        states = self.traffic.states[frame]
        sizes = np.array([kind.size for kind in self.traffic.kinds])
        return np.column_stack([states[:, :2], sizes[:, 2] / 2, sizes, states[:, 2]])

    def vehicle_pose(self, frame: int, vehicle: int) -> Pose:
        """Pose of the origin of a vehicle, on the ground below its middle."""
        x, y, yaw, _ = self.traffic.states[frame, vehicle].tolist()
        return x, y, 0.0, 0.0, _degrees(yaw), 0.0

    def agent_frame(self, frame: int, vehicle: int) -> AgentFrame:
        """Metadata and labels of one connected vehicle."""
        own = self.vehicle_pose(frame, vehicle)
        lidar = mounted(own, LIDAR_MOUNT)
        # Every agent and frame has its own noise, whatever else was asked before.
        noise = np.random.default_rng((self.config.seed, frame, vehicle)).normal(size=4)
        dx, dy, dyaw, dspeed = (noise * (0.08, 0.08, 0.1, 0.2)).tolist()
        speed = 3.6 * float(self.traffic.states[frame, vehicle, 3])
        cameras = {n: self._camera(own, lidar, mount) for n, mount in enumerate(CAMERA_MOUNTS)}
        return AgentFrame(
            timestamp=self.timestamp(frame),
            lidar_pose=lidar,
            true_ego_pos=own,
            predicted_ego_pos=(own[0] + dx, own[1] + dy, own[2], 0.0, own[4] + dyaw, 0.0),
            ego_speed=speed + dspeed,
            plan_trajectory=self._plan(frame, vehicle),
            cameras=cameras,
            vehicles=self._seen_labels(frame, vehicle, np.array(lidar[:3])),
        )

    def protocol(self) -> dict[str, Any]:
        """Content of `data_protocol.yaml`."""
        config = self.config
        sensing = {
            'perception': {
                'activate': False,
                'camera_num': len(CAMERA_MOUNTS),
                'camera_visualize': 0,
                'lidar': {'range': RANGE_M, 'upper_fov': 2.0, 'lower_fov': -25.0},
            },
            'localization': {'activate': True, 'dt': TICK_S},
        }
        vehicles = [
            {
                'name': f'cav_{self.ids[vehicle]}',
                'spawn_position': list(self.vehicle_pose(0, vehicle)),
                'destination': list(self.vehicle_pose(config.frames - 1, vehicle)[:3]),
                'behavior': {'max_speed': 3.6 * _FASTEST},
                'v2x': {'enabled': True, 'communication_range': _COOPERATION_M},
            }
            for vehicle in self.connected
        ]
        return {
            'description': 'Scene rendered by lapdtr_ros.datasets.generator, cameras only.',
            'current_time': config.name,
            'generator': dataclasses.asdict(config),
            'world': {
                'sync_mode': True,
                'fixed_delta_seconds': TICK_S,
                'seed': config.seed,
                'weather': {
                    'sun_altitude_angle': math.degrees(self.scenery.daylight.elevation),
                    'cloudiness': 100.0 * self.scenery.daylight.clouds,
                },
            },
            'vehicle_base': {'sensing': sensing},
            'carla_traffic_manager': {'sync_mode': True, 'random': True, 'vehicle_list': []},
            'scenario': {'single_cav_list': vehicles},
        }

    def _camera(self, own: Pose, lidar: Pose, mount: Pose) -> CameraModel:
        pose = mounted(own, mount)
        config = self.config
        return CameraModel(
            pose=pose,
            intrinsic=camera_intrinsic(config.width, config.height, FIELD_OF_VIEW_DEG),
            extrinsic=np.linalg.inv(pose_to_matrix(pose)) @ pose_to_matrix(lidar),
        )

    def _plan(self, frame: int, vehicle: int) -> tuple[tuple[float, float, float], ...]:
        """The next ten places on the route, half a second apart at the wished speed."""
        route = self.traffic.paths[vehicle]
        if route is None:
            return ()
        speed = max(2.0, float(self.traffic.states[frame, vehicle, 3]))
        start = float(self.traffic.distances[frame, vehicle])
        places = [route.locate(start + 0.5 * speed * step)[:2] for step in range(1, 11)]
        return tuple((x, y, 3.6 * speed) for x, y in places)

    def present_labels(self, frame: int, own: int) -> dict[int, VehicleLabel]:
        """Labels of all vehicles on the road but `own`, seen by it or not, in order of their id."""
        others = [int(vehicle) for vehicle in np.flatnonzero(self.traffic.present[frame])]
        labels = [self._label(frame, vehicle) for vehicle in others if vehicle != own]
        return {label.id: label for label in sorted(labels, key=lambda label: label.id)}

    def _seen_labels(self, frame: int, own: int, lidar: np.ndarray) -> dict[int, VehicleLabel]:
        others = np.flatnonzero(self.traffic.present[frame])
        others = others[others != own]
        blocks = np.array([block.vector for block in self.scenery.blocks]).reshape(-1, 7)
        mask = visible(lidar, self.boxes(frame)[others], blocks)
        seen = {self.ids[vehicle] for vehicle in others[mask]}
        labels = self.present_labels(frame, own)
        return {number: label for number, label in labels.items() if number in seen}

    def _label(self, frame: int, vehicle: int) -> VehicleLabel:
        x, y, z, roll, yaw, pitch = self.vehicle_pose(frame, vehicle)
        length, width, height = self.traffic.kinds[vehicle].size
        return VehicleLabel(
            id=self.ids[vehicle],
            location=(x, y, z),
            center=(0.0, 0.0, height / 2),
            extent=(length / 2, width / 2, height / 2),
            angle=(roll, yaw, pitch),
            speed=3.6 * float(self.traffic.states[frame, vehicle, 3]),
        )


def mounted(vehicle: Pose, mount: Pose) -> Pose:
    """World pose of a sensor on a level vehicle; angles stay exact where matrices would round."""
    x, y, z = (pose_to_matrix(vehicle) @ (*mount[:3], 1.0))[:3].tolist()
    return x, y, z, 0.0, _degrees(math.radians(vehicle[4] + mount[4])), 0.0


def build_scene(config: SceneConfig) -> Scene:
    """Build a scene.

    Raises:
        GeneratorError: If too few vehicles stay on the road to connect as many as asked.
    """
    rng = np.random.default_rng(config.seed)
    reach = _REACH_M + 0.5 * _FASTEST * FRAME_S * config.frames
    layout = build_layout(config.road, reach, rng)
    scenery = build_scenery(layout, rng)
    traffic = simulate(layout, config.frames, config.density, rng)
    connected = _choose_connected(config, layout, traffic, rng)
    traffic, connected = _keep_near(traffic, connected)
    first = int(rng.integers(20, 93)) * 10 + 1  # three digits: string order is order
    cav_ids = [first + _ID_SPACING * place for place in range(len(connected))]
    ids = [first + 100 + 3 * vehicle for vehicle in range(len(traffic.kinds))]
    paints = [PAINTS[int(i)] for i in rng.integers(len(PAINTS), size=len(traffic.kinds))]
    kinds = list(traffic.kinds)
    for cav_id, vehicle in zip(cav_ids, connected, strict=True):
        ids[vehicle], paints[vehicle], kinds[vehicle] = cav_id, _CONNECTED_PAINT, CONNECTED_KIND
    traffic = dataclasses.replace(traffic, kinds=tuple(kinds))
    return Scene(config, layout, scenery, traffic, tuple(ids), tuple(paints), tuple(connected))


def _degrees(angle: float) -> float:
    """Degrees within (-180, 180]."""
    return math.degrees(math.atan2(math.sin(angle), math.cos(angle)))


def _choose_connected(
    config: SceneConfig, layout: Layout, traffic: Traffic, rng: np.random.Generator
) -> list[int]:
    """Vehicles that drive all the time, near the focus and near each other in mid-recording."""
    staying = np.flatnonzero(traffic.present.all(axis=0) & ~traffic.parked)
    if len(staying) < config.vehicles:
        raise GeneratorError(
            f'seed {config.seed}: only {len(staying)} vehicles stay on the {config.road} road for '
            f'{config.frames} frames, {config.vehicles} are needed; raise the density or use '
            'another seed'
        )
    middle = traffic.states[config.frames // 2, staying, :2]
    ego = int(np.linalg.norm(middle - layout.focus, axis=1).argmin())
    from_ego = np.linalg.norm(middle - middle[ego], axis=1)
    order = np.argsort(from_ego, kind='stable')[1:]
    near = order[: max(config.vehicles - 1, int((from_ego[order] < _COOPERATION_M).sum()))]
    others = rng.permutation(near)[: config.vehicles - 1]
    return [int(staying[ego]), *(int(staying[i]) for i in others)]


def _keep_near(traffic: Traffic, connected: list[int]) -> tuple[Traffic, list[int]]:
    """Forget vehicles that no connected one ever comes near."""
    places = traffic.states[:, :, :2]
    near = np.zeros(len(traffic.kinds), dtype=bool)
    for vehicle in connected:
        distance = np.linalg.norm(places - places[:, vehicle : vehicle + 1], axis=2)
        near |= ((distance < _KEEP_M) & traffic.present).any(axis=0)
    kept = np.flatnonzero(near)
    reduced = Traffic(
        kinds=tuple(traffic.kinds[i] for i in kept),
        parked=traffic.parked[kept],
        states=traffic.states[:, kept],
        present=traffic.present[:, kept],
        paths=tuple(traffic.paths[i] for i in kept),
        distances=traffic.distances[:, kept],
    )
    return reduced, [int(np.searchsorted(kept, vehicle)) for vehicle in connected]

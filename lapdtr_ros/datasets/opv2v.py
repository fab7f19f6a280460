"""Reader of OPV2V directories (Xu et al., "OPV2V", ICRA 2022) and of their relatives.

A dataset root holds splits, a split holds scenarios, a scenario one folder per agent, an agent
folder one YAML file and four pictures per timestamp. Poses are `(x, y, z, roll, yaw, pitch)` in
metres and degrees in CARLA's left-handed world, see `lapdtr_ros.perception.poses`. LiDAR files
and bird's-eye-view labels are ignored: this project works on cameras.

Defects that real archives have do not stop the reader where the rest of a frame is sound: they are
logged and listed in `Scenario.defects`. What would give wrong numbers raises `DatasetError`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from lapdtr_ros.errors import LapdtrError

CAMERAS = (0, 1, 2, 3)  # front, right, left, back
SPLITS = ('train', 'validate', 'test', 'test_culver_city')
TICK_S = 0.05
PROTOCOL_NAME = 'data_protocol.yaml'

Pose = tuple[float, float, float, float, float, float]
Vector = tuple[float, float, float]

_CULVER_CITY = ('test_culver_city', 'test_culvercity')
_LAYOUT = '<root>/<split>/<scenario>/<agent id>/<timestamp>.yaml'
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_ASPECT_TOLERANCE = 0.01

_log = logging.getLogger(__name__)


class DatasetError(LapdtrError):
    """A directory or file of a dataset cannot be read, or does not mean what it should."""


@dataclass(frozen=True, eq=False)
class CameraModel:
    """A pinhole camera at one moment.

    Attributes:
        pose: of the camera in the world (the file spells it `cords`).
        intrinsic: (3, 3), pixels.
        extrinsic: (4, 4), from the LiDAR to the camera, both in CARLA axes (x forward, y right,
            z up). The optical axes are `(y, -z, x)` of the result.
    """

    pose: Pose
    intrinsic: np.ndarray
    extrinsic: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the principal point implies them."""
        return round(2 * float(self.intrinsic[0, 2])), round(2 * float(self.intrinsic[1, 2]))

    def resized(self, width: int, height: int) -> CameraModel:
        """Return the camera whose picture was stretched to `width` x `height` pixels."""
        own_width, own_height = self.size
        scale = np.diag([width / own_width, height / own_height, 1.0])
        return dataclasses.replace(self, intrinsic=scale @ self.intrinsic)


@dataclass(frozen=True)
class VehicleLabel:
    """Ground truth of one vehicle.

    Attributes:
        id: number of the vehicle in the simulation.
        location: of its origin (on the ground) in the world, metres.
        center: of its box relative to the origin, metres.
        extent: half length, half width and half height, metres.
        angle: roll, yaw and pitch in the world, degrees.
        speed: km/h.
    """

    id: int
    location: Vector
    center: Vector
    extent: Vector
    angle: Vector
    speed: float

    @property
    def pose(self) -> Pose:
        """Pose of the box centre in the world.

        Like OpenCOOD, whose numbers are the published ones, this adds `center` without rotating
        it; real files differ from the exact place by at most 0.1 m.
        """
        x, y, z = (a + b for a, b in zip(self.location, self.center, strict=True))
        return x, y, z, *self.angle


@dataclass(frozen=True, eq=False)
class AgentFrame:
    """What one agent knew at one timestamp.

    Attributes:
        timestamp: name of the frame, six digits; `time_s` gives seconds.
        lidar_pose: of the LiDAR in the world, the frame of all evaluation.
        true_ego_pos: of the vehicle, origin on the ground.
        predicted_ego_pos: estimate of the vehicle's own localisation.
        ego_speed: estimate, km/h, may be negative.
        plan_trajectory: planned `(x, y, speed in km/h)` in the world; may be empty.
        cameras: camera number to its model; a camera without a picture is absent.
        vehicles: id to label, without the agent itself.
        image_paths: camera number to its PNG file, same keys as `cameras`.
    """

    timestamp: str
    lidar_pose: Pose
    true_ego_pos: Pose
    predicted_ego_pos: Pose
    ego_speed: float
    plan_trajectory: tuple[Vector, ...]
    cameras: Mapping[int, CameraModel]
    vehicles: Mapping[int, VehicleLabel]
    image_paths: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Agent:
    """A connected vehicle, or with a negative id a roadside unit, of a scenario."""

    id: int
    path: Path

    @property
    def is_roadside_unit(self) -> bool:
        """Whether this agent stands at the roadside."""
        return self.id < 0

    @cached_property
    def timestamps(self) -> tuple[str, ...]:
        """Names of the frames of this agent, in order of time."""
        names = (path.stem for path in self.path.glob('*.yaml'))
        return tuple(sorted(name for name in names if 'additional' not in name))


class Scenario:
    """One recording of several agents.

    Attributes:
        path: its directory.
        agents: the ego first. The ego is the first name in string order, as in OpenCOOD (`1007`
            comes before `962`); a roadside unit never leads.
        defects: what is known to be missing or odd, in the order in which it was met.
    """

    def __init__(self, path: Path) -> None:
        """Open a scenario directory.

        Raises:
            DatasetError: If it holds no agents or no timestamp that all agents share.
        """
        self.path = path
        self.defects: list[str] = []
        folders = sorted((p for p in path.iterdir() if _is_agent(p)), key=lambda p: p.name)
        if not folders:
            raise DatasetError(
                f'{path} holds no agents: expected folders named by integers with YAML files '
                f'({_LAYOUT}); extract the archive again or delete the scenario'
            )
        agents = [Agent(int(folder.name), folder) for folder in folders]
        self.agents = tuple(sorted(agents, key=lambda agent: agent.is_roadside_unit))
        self._by_id = {agent.id: agent for agent in self.agents}
        self.timestamps = self._shared_timestamps()

    @property
    def name(self) -> str:
        """Name of the directory, the time of the recording."""
        return self.path.name

    @property
    def ego(self) -> Agent:
        """The agent that benchmarks evaluate."""
        return self.agents[0]

    def frame(self, agent_id: int, timestamp: str) -> AgentFrame:
        """Read the metadata and labels of one agent at one timestamp; pictures stay on disk.

        Raises:
            DatasetError: If agent or file are missing, or the file is not what it should be.
        """
        if agent_id not in self._by_id:
            known = ', '.join(str(agent.id) for agent in self.agents)
            raise DatasetError(f'{self.path} has no agent {agent_id}; its agents are {known}')
        path = self._by_id[agent_id].path / f'{timestamp}.yaml'
        frame = _parse_frame(path, _load_yaml(path))
        return self._with_pictures(path, frame)

    def protocol(self) -> Mapping[str, Any]:
        """Read the simulation set-up (`data_protocol.yaml`).

        Raises:
            DatasetError: If the file is missing or unreadable.
        """
        path = self.path / PROTOCOL_NAME
        return _mapping(path, PROTOCOL_NAME, _load_yaml(path))

    def _shared_timestamps(self) -> tuple[str, ...]:
        sets = [set(agent.timestamps) for agent in self.agents]
        shared = sorted(set.intersection(*sets))
        if not shared:
            raise DatasetError(
                f'{self.path}: the agents share no timestamp; extract the archive again or '
                'delete the scenario'
            )
        missing = len(set.union(*sets)) - len(shared)
        if missing:
            self._record(f'{self.path}: {missing} timestamps are not there for all agents, skipped')
        return tuple(shared)

    def _with_pictures(self, path: Path, frame: AgentFrame) -> AgentFrame:
        """Keep the cameras that have a usable picture, at the size of that picture."""
        cameras: dict[int, CameraModel] = {}
        image_paths: dict[int, Path] = {}
        for number, camera in frame.cameras.items():
            image = path.with_name(f'{path.stem}_camera{number}.png')
            if not image.is_file():
                self._record(f'{image}: picture is missing, camera {number} left out')
                continue
            fitted = self._fit_to_picture(image, camera)
            if fitted is not None:
                cameras[number] = fitted
                image_paths[number] = image
        return dataclasses.replace(frame, cameras=cameras, image_paths=image_paths)

    def _fit_to_picture(self, image: Path, camera: CameraModel) -> CameraModel | None:
        size = _png_size(image)
        if size is None or size == camera.size:  # read_image tells what is wrong with no PNG
            return camera
        told = f'{image}: picture is {size[0]}x{size[1]}, intrinsic is for {camera.size}'
        ratio = (size[0] * camera.size[1]) / (size[1] * camera.size[0])
        if abs(ratio - 1) > _ASPECT_TOLERANCE:
            self._record(f'{told}, another aspect ratio: camera left out')
            return None
        self._record(f'{told}: intrinsic scaled to the picture')
        return camera.resized(*size)

    def _record(self, defect: str) -> None:
        if defect not in self.defects:
            self.defects.append(defect)
            _log.warning(defect)


def open_dataset(root: str | Path, split: str | None = None) -> list[Scenario]:
    """Find the scenarios of a dataset.

    Args:
        root: a dataset root with split folders, one split, or one scenario.
        split: `train`, `validate`, `test` or `test_culver_city`; all that are there when None.

    Returns:
        The scenarios in order of split and name.

    Raises:
        DatasetError: If there are none, with what was expected.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f'{root} is not a directory; give the folder of an OPV2V dataset')
    if _is_scenario(root):
        return [Scenario(root)]
    if split is not None and split not in (*SPLITS, *_CULVER_CITY):
        raise DatasetError(f'split {split!r} is unknown; use one of {", ".join(SPLITS)}')
    folders = [folder for name in SPLITS for folder in _split_folders(root, name)]
    wanted = [f for f in folders if split is None or f in _split_folders(root, split)]
    if folders and not wanted:
        there = ', '.join(folder.name for folder in folders)
        raise DatasetError(f'{root} has no split {split!r}; it has {there}')
    scenarios = [Scenario(path) for folder in wanted or [root] for path in _scenarios_of(folder)]
    if not scenarios:
        raise DatasetError(
            f'{root} is not an OPV2V directory (expected {_LAYOUT}); give the dataset root, one '
            'split or one scenario, or make a dataset with lapdtr_ros.datasets.generator'
        )
    return scenarios


def agent_name(agent_id: int) -> str:
    """Name of an agent in ROS: ``cav_641``, or ``rsu_1`` for the roadside unit -1."""
    return f'cav_{agent_id}' if agent_id >= 0 else f'rsu_{-agent_id}'


def agent_id(name: str) -> int:
    """Number of the agent that `agent_name` gave the name.

    Raises:
        DatasetError: another kind of name.
    """
    match = re.fullmatch(r'(cav|rsu)_(\d+)', name)
    if match is None:
        raise DatasetError(f'{name!r} is no agent: names are cav_<number> or rsu_<number>')
    number = int(match.group(2))
    return number if match.group(1) == 'cav' else -number


def time_s(timestamp: str) -> float:
    """Return the simulation time of a frame in seconds: its name counts ticks of 50 ms."""
    return int(timestamp) * TICK_S


def read_image(path: str | Path) -> np.ndarray:
    """Decode a picture.

    Returns:
        uint8 RGB of shape (height, width, 3).

    Raises:
        DatasetError: If the file is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert('RGB'))
    except FileNotFoundError:
        raise DatasetError(f'{path} does not exist; extract the archive again') from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(
            f'{path} is truncated or not a picture ({error}); extract the archive again'
        ) from error


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """An `AgentFrame` with its decoded pictures, camera number to uint8 (height, width, 3)."""

    frame: AgentFrame
    images: Mapping[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All agents of a scenario at one timestamp, agent id to `DecodedFrame`, the ego first."""

    timestamp: str
    agents: Mapping[int, DecodedFrame]


def prefetch(
    scenario: Scenario,
    cameras: Sequence[int] = CAMERAS,
    *,
    workers: int = 4,
    ahead: int = 4,
    timestamps: Sequence[str] | None = None,
) -> Iterator[Snapshot]:
    """Iterate over a scenario while background threads read and decode what comes next.

    Args:
        scenario: what to read.
        cameras: numbers of the cameras to decode.
        workers: number of threads; decoding releases the interpreter lock.
        ahead: how many timestamps may wait decoded.
        timestamps: which, in this order; all when None.

    Yields:
        One `Snapshot` per timestamp, in order.

    Raises:
        DatasetError: At the timestamp that cannot be read.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix='opv2v')
    names = iter(scenario.timestamps if timestamps is None else timestamps)
    waiting: deque[tuple[str, dict[int, Future[DecodedFrame]]]] = deque()

    def submit_next() -> None:
        for name in names:
            futures = {
                agent.id: pool.submit(_decode, scenario, agent.id, name, cameras)
                for agent in scenario.agents
            }
            waiting.append((name, futures))
            return

    try:
        for _ in range(max(1, ahead)):
            submit_next()
        while waiting:
            name, futures = waiting.popleft()
            yield Snapshot(name, {key: future.result() for key, future in futures.items()})
            submit_next()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(
    scenario: Scenario, agent_id: int, timestamp: str, cameras: Sequence[int]
) -> DecodedFrame:
    frame = scenario.frame(agent_id, timestamp)
    paths = frame.image_paths
    return DecodedFrame(frame, {n: read_image(paths[n]) for n in cameras if n in paths})


# Directories


def _is_agent(path: Path) -> bool:
    return bool(re.fullmatch(r'-?\d+', path.name)) and path.is_dir()


def _is_scenario(path: Path) -> bool:
    return (path / PROTOCOL_NAME).is_file() or any(_is_agent(child) for child in path.iterdir())


def _split_folders(root: Path, split: str) -> list[Path]:
    names = _CULVER_CITY if split in _CULVER_CITY else (split,)
    return [root / name for name in names if (root / name).is_dir()]


def _scenarios_of(split: Path) -> list[Path]:
    """List the scenario folders; a leading dot marks one that is still being written."""
    children = (path for path in split.iterdir() if not path.name.startswith('.'))
    return sorted(path for path in children if path.is_dir() and _is_scenario(path))


def _png_size(path: Path) -> tuple[int, int] | None:
    with path.open('rb') as file:
        head = file.read(24)
    if len(head) < 24 or not head.startswith(_PNG_SIGNATURE):
        return None
    width, height = struct.unpack('>II', head[16:])
    return width, height


# YAML


class _Loader(yaml.CSafeLoader):
    """The C loader, with floats such as `2e-6` that YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float',
    re.compile(r'[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+'),
    list('-+0123456789.'),
)


def _load_yaml(path: Path) -> Any:
    try:
        with path.open('rb') as file:
            return yaml.load(file, Loader=_Loader)
    except FileNotFoundError:
        raise DatasetError(f'{path} does not exist; extract the archive again') from None
    except yaml.YAMLError as error:
        text = ' '.join(str(error).split())
        raise DatasetError(
            f'{path} is damaged or half written ({text}); extract the archive again'
        ) from error


def _parse_frame(path: Path, content: Any) -> AgentFrame:
    data = _mapping(path, 'content', content)
    vehicles = _mapping(path, 'vehicles', data.get('vehicles') or {})
    labels = [_parse_vehicle(path, key, value) for key, value in vehicles.items()]
    plan = data.get('plan_trajectory') or []
    return AgentFrame(
        timestamp=path.stem,
        lidar_pose=_pose(path, data, 'lidar_pose'),
        true_ego_pos=_pose(path, data, 'true_ego_pos'),
        predicted_ego_pos=_pose(path, data, 'predicted_ego_pos'),
        ego_speed=float(_array(path, data, 'ego_speed', ())),
        plan_trajectory=tuple(
            _vector(path, {f'plan_trajectory[{i}]': point}, f'plan_trajectory[{i}]')
            for i, point in enumerate(plan)
        ),
        cameras={n: _parse_camera(path, data, n) for n in CAMERAS if f'camera{n}' in data},
        vehicles={label.id: label for label in labels},
    )


def _parse_camera(path: Path, data: Mapping[str, Any], number: int) -> CameraModel:
    name = f'camera{number}'
    camera = _mapping(path, name, data[name])
    return CameraModel(
        pose=_pose(path, camera, 'cords', f'{name}.'),
        intrinsic=_array(path, camera, 'intrinsic', (3, 3), f'{name}.'),
        extrinsic=_array(path, camera, 'extrinsic', (4, 4), f'{name}.'),
    )


def _parse_vehicle(path: Path, key: Any, value: Any) -> VehicleLabel:
    prefix = f'vehicles[{key}]'
    vehicle = _mapping(path, prefix, value)
    try:
        number = int(key)
    except (TypeError, ValueError):
        raise DatasetError(f'{path}: {prefix}: the id must be an integer') from None
    return VehicleLabel(
        id=number,
        location=_vector(path, vehicle, 'location', f'{prefix}.'),
        center=_vector(path, vehicle, 'center', f'{prefix}.'),
        extent=_vector(path, vehicle, 'extent', f'{prefix}.'),
        angle=_vector(path, vehicle, 'angle', f'{prefix}.'),
        speed=float(_array(path, vehicle, 'speed', (), f'{prefix}.')),
    )


def _mapping(path: Path, name: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise DatasetError(
            f'{path}: {name} must be a mapping, got {type(value).__name__}; the file is damaged '
            'or half written, extract the archive again'
        )
    return value


def _array(
    path: Path, data: Mapping[str, Any], key: str, shape: tuple[int, ...], prefix: str = ''
) -> np.ndarray:
    if key not in data:
        raise DatasetError(f'{path}: {prefix}{key} is missing; extract the archive again')
    try:
        array = np.array(data[key], dtype=np.float64)
    except (TypeError, ValueError):
        raise DatasetError(f'{path}: {prefix}{key} holds no numbers: {data[key]!r}') from None
    if array.shape != shape:
        raise DatasetError(f'{path}: {prefix}{key} has shape {array.shape}, expected {shape}')
    if not all(map(math.isfinite, array.flat)):
        raise DatasetError(
            f'{path}: {prefix}{key} is not finite: {data[key]!r}; delete this timestamp'
        )
    return array


def _pose(path: Path, data: Mapping[str, Any], key: str, prefix: str = '') -> Pose:
    x, y, z, roll, yaw, pitch = _array(path, data, key, (6,), prefix).tolist()
    return x, y, z, roll, yaw, pitch


def _vector(path: Path, data: Mapping[str, Any], key: str, prefix: str = '') -> Vector:
    x, y, z = _array(path, data, key, (3,), prefix).tolist()
    return x, y, z

"""A CARLA world that this process ticks: connected vehicles, their cameras, exact surroundings.

CARLA's Python API raises `RuntimeError` for everything; here each becomes a `CosimulationError`
that says what to do. Only actors that this process spawned are destroyed, and the server's
settings are put back, however the simulation ends.
"""

from __future__ import annotations

import queue
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from lapdtr_ros.datasets.opv2v import AgentFrame, CameraModel, Pose, VehicleLabel
from lapdtr_ros.datasets.scene import CAMERA_MOUNTS, FIELD_OF_VIEW_DEG, LIDAR_MOUNT
from lapdtr_ros.datasets.visibility import RANGE_M, visible
from lapdtr_ros.perception.poses import camera_intrinsic, matrix_to_pose, pose_to_matrix

from .config import CosimulationConfig, CosimulationError, VehicleSection

# carla.Client or, in tests, something with its signatures.
ClientFactory = Callable[[str, int], Any]

_KMH = 3.6
_MIN_EXTENT_M = 0.05  # the server reports no width for some two-wheelers
_TWO_WHEELS = '2'
_CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Observation:
    """What one connected vehicle has at one moment.

    Attributes:
        frame: poses, cameras and labels as OPV2V stores them; labels are by actor id.
        images: camera number to uint8 RGB (height, width, 3).
        speed: metres per second.
    """

    frame: AgentFrame
    images: Mapping[int, np.ndarray]
    speed: float


@dataclass(frozen=True)
class Moment:
    """One tick.

    Attributes:
        number: frame number of the server.
        stamp_ns: simulation time.
        vehicles: observation by vehicle name; empty on ticks without pictures.
    """

    number: int
    stamp_ns: int
    vehicles: Mapping[str, Observation]


class Simulation:
    """Connected vehicles in a CARLA world; a context manager.

    Args:
        config: what to simulate.
        client: makes the client; ``carla.Client`` when None.

    Raises:
        CosimulationError: carla is not installed, there is no server, its version or a blueprint
            does not fit, or a vehicle finds no place.
    """

    def __init__(self, config: CosimulationConfig, client: ClientFactory | None = None) -> None:
        self.config = config
        self._cleanup = ExitStack()
        self._actors: dict[str, Any] = {}
        self._queues: dict[str, dict[int, queue.SimpleQueue[Any]]] = {}
        self._spawned: list[int] = []
        self._gone = False
        self._client: Any = None
        self._carla = import_carla()
        try:
            with _translated(config):
                self._open(client or self._carla.Client)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Destroy what was spawned and give the server back as it was; works without a server."""
        if self._client is not None:
            self._client.set_timeout(min(_CLOSE_TIMEOUT_S, self.config.timeout_s))
        self._cleanup.close()

    @property
    def actor_ids(self) -> Mapping[str, int]:
        """Actor id of each connected vehicle."""
        return {name: actor.id for name, actor in self._actors.items()}

    def tick(self) -> Moment:
        """Let the world take one step.

        Raises:
            CosimulationError: the server is gone, or a camera gave no picture.
        """
        with _translated(self.config):
            number = self._world.tick(self.config.timeout_s)
            snapshot = self._world.get_snapshot()
            stamp_ns = round(snapshot.timestamp.elapsed_seconds * 1e9)
            self._ticks += 1
            if self._ticks % self.config.ticks_per_picture:
                return Moment(number, stamp_ns, {})
            world = self._all_vehicles(snapshot)
            observed = {name: self._observe(name, number, snapshot, world) for name in self._actors}
            return Moment(number, stamp_ns, observed)

    def _open(self, client: ClientFactory) -> None:
        self._client = client(self.config.host, self.config.port)
        self._client.set_timeout(self.config.timeout_s)
        self._on_close(self._destroy)
        _check_version(self._client)
        self._world = (
            self._client.load_world(self.config.town)
            if self.config.town
            else self._client.get_world()
        )
        self._ticks = 0
        self._synchronise()
        places = self._world.get_map().get_spawn_points()
        self._random = random.Random(self.config.seed)
        self._random.shuffle(places)
        for name, section in self.config.vehicles.items():
            self._spawn_connected(name, section, places)
        self._spawn_traffic(places)
        self._world.tick(self.config.timeout_s)  # what was spawned is there only after a tick

    def _synchronise(self) -> None:
        before = self._world.get_settings()
        settings = self._world.get_settings()
        settings.synchronous_mode = True
        settings.fixed_delta_seconds = self.config.step_s
        # Left synchronous, the server would wait for a tick for ever.
        self._on_close(lambda: self._world.apply_settings(before))
        self._world.apply_settings(settings)
        self._traffic = self._client.get_trafficmanager(self.config.traffic_manager_port)
        self._on_close(lambda: self._traffic.set_synchronous_mode(False))
        self._traffic.set_synchronous_mode(True)
        self._traffic.set_random_device_seed(self.config.seed)

    def _spawn_connected(self, name: str, section: VehicleSection, places: list[Any]) -> None:
        blueprint = self._blueprint(section.blueprint)
        if blueprint.has_attribute('role_name'):
            blueprint.set_attribute('role_name', name)
        actor = self._place(name, blueprint, section, places)
        self._actors[name] = actor
        actor.set_autopilot(True, self._traffic.get_port())
        self._queues[name] = {
            number: self._camera(actor, mount) for number, mount in enumerate(CAMERA_MOUNTS)
        }

    def _place(self, name: str, blueprint: Any, section: VehicleSection, places: list[Any]) -> Any:
        if section.spawn is not None:
            actor = self._spawn(blueprint, self._transform(section.spawn))
            if actor is None:
                raise CosimulationError(
                    f'vehicle {name} cannot be spawned at {section.spawn}: the place is taken or '
                    f'off the map; change vehicles.{name}.spawn'
                )
            return actor
        while places:
            actor = self._spawn(blueprint, places.pop())
            if actor is not None:
                return actor
        raise CosimulationError(f'no free spawn point is left for vehicle {name}; use fewer')

    def _spawn_traffic(self, places: list[Any]) -> None:
        blueprints = [
            b
            for b in self._world.get_blueprint_library().filter('vehicle.*')
            if not _has_two_wheels(b)
        ]
        for place in places[: self.config.traffic]:
            actor = self._spawn(self._random.choice(blueprints), place)
            if actor is not None:
                actor.set_autopilot(True, self._traffic.get_port())

    def _blueprint(self, name: str) -> Any:
        library = self._world.get_blueprint_library()
        try:
            return library.find(name)
        except (IndexError, RuntimeError):
            close = ', '.join(sorted(b.id for b in library.filter('vehicle.*'))[:8])
            raise CosimulationError(
                f'blueprint {name!r} is unknown; for example: {close}'
            ) from None

    def _spawn(self, blueprint: Any, place: Any, parent: Any = None) -> Any:
        """Spawn an actor that goes when the simulation closes; None where it does not fit."""
        if parent is None:
            actor = self._world.try_spawn_actor(blueprint, place)
        else:
            actor = self._world.spawn_actor(blueprint, place, attach_to=parent)
        if actor is not None:
            self._spawned.append(actor.id)
        return actor

    def _camera(self, vehicle: Any, mount: Pose) -> queue.SimpleQueue[Any]:
        blueprint = self._blueprint('sensor.camera.rgb')
        blueprint.set_attribute('image_size_x', str(self.config.width))
        blueprint.set_attribute('image_size_y', str(self.config.height))
        blueprint.set_attribute('fov', str(FIELD_OF_VIEW_DEG))
        sensor = self._spawn(blueprint, self._transform(mount), parent=vehicle)
        images: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._on_close(sensor.stop)
        sensor.listen(images.put)
        return images

    def _on_close(self, step: Callable[[], object]) -> None:
        """Register a step of cleaning up; steps run last first.

        Each asks the server. When one fails the server is gone, and the others would only wait.
        """

        def quietly() -> None:
            if not self._gone:
                try:
                    step()
                except RuntimeError:
                    self._gone = True

        self._cleanup.callback(quietly)

    def _destroy(self) -> None:
        # Sensors come after their vehicles in the list and go before them.
        batch = [self._carla.command.DestroyActor(actor) for actor in reversed(self._spawned)]
        if batch:
            self._client.apply_batch_sync(batch, False)

    def _transform(self, pose: Pose) -> Any:
        x, y, z, roll, yaw, pitch = pose
        return self._carla.Transform(
            self._carla.Location(x=x, y=y, z=z),
            self._carla.Rotation(roll=roll, yaw=yaw, pitch=pitch),
        )

    def _all_vehicles(self, snapshot: Any) -> dict[int, VehicleLabel]:
        """Every four-wheeled vehicle of the world, also those of other clients."""
        labels = {}
        for actor in self._world.get_actors().filter('vehicle.*'):
            state = snapshot.find(actor.id)
            box = actor.bounding_box
            if state is None or min(box.extent.x, box.extent.y, box.extent.z) < _MIN_EXTENT_M:
                continue
            if actor.attributes.get('number_of_wheels') == _TWO_WHEELS:
                continue
            pose = _pose(state.get_transform())
            labels[actor.id] = VehicleLabel(
                id=actor.id,
                location=pose[:3],
                center=(box.location.x, box.location.y, box.location.z),
                extent=(box.extent.x, box.extent.y, box.extent.z),
                angle=(pose[3], pose[4], pose[5]),
                speed=_KMH * _speed(state),
            )
        return labels

    def _observe(
        self, name: str, number: int, snapshot: Any, world: Mapping[int, VehicleLabel]
    ) -> Observation:
        actor = self._actors[name]
        state = snapshot.find(actor.id)
        if state is None:
            raise CosimulationError(f'vehicle {name} is gone: another client destroyed it')
        own = _pose(state.get_transform())
        body = pose_to_matrix(own)
        lidar = body @ pose_to_matrix(LIDAR_MOUNT)
        intrinsic = camera_intrinsic(self.config.width, self.config.height, FIELD_OF_VIEW_DEG)
        cameras, images = {}, {}
        for camera, mount in enumerate(CAMERA_MOUNTS):
            place = body @ pose_to_matrix(mount)
            extrinsic = np.linalg.inv(place) @ lidar
            cameras[camera] = CameraModel(matrix_to_pose(place), intrinsic, extrinsic)
            images[camera] = self._picture(name, camera, number)
        speed = _speed(state)
        others = {key: label for key, label in world.items() if key != actor.id}
        frame = AgentFrame(
            timestamp=f'{number:06d}',
            lidar_pose=matrix_to_pose(lidar),
            true_ego_pos=own,
            predicted_ego_pos=own,
            ego_speed=_KMH * speed,
            plan_trajectory=(),
            cameras=cameras,
            vehicles=_visible(lidar[:3, 3], others),
        )
        return Observation(frame, images, speed)

    def _picture(self, name: str, camera: int, number: int) -> np.ndarray:
        """The picture of this tick; older ones, left by ticks that nobody looked at, go."""
        while True:
            try:
                image = self._queues[name][camera].get(timeout=self.config.timeout_s)
            except queue.Empty:
                raise CosimulationError(
                    f'camera {camera} of {name} gave no picture for tick {number} within '
                    f'{self.config.timeout_s:g} s; raise timeout_s or use smaller pictures'
                ) from None
            if image.frame == number:
                raw = np.frombuffer(image.raw_data, np.uint8)
                # Blue, green, red, alpha; the buffer dies with the message, hence the copy.
                return np.ascontiguousarray(raw.reshape(image.height, image.width, 4)[:, :, 2::-1])
            if image.frame > number:
                raise CosimulationError(
                    f'camera {camera} of {name} is at tick {image.frame}, expected {number}: '
                    f'another client ticks this server too; stop it'
                )


def import_carla() -> Any:
    """The ``carla`` package.

    Raises:
        CosimulationError: it is not installed.
    """
    try:
        import carla
    except ImportError as error:
        raise CosimulationError(
            f'the CARLA client is not installed ({error}): pip install carla==VERSION, with the '
            f'version of your server; there is none for Python 3.13'
        ) from None
    return carla


def _check_version(client: Any) -> None:
    ours, theirs = client.get_client_version(), client.get_server_version()
    if ours != theirs:
        raise CosimulationError(
            f'the CARLA client is version {ours}, the server {theirs}: '
            f'pip install carla=={theirs}, or start a server {ours}'
        )


@contextmanager
def _translated(config: CosimulationConfig) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        server = f'{config.host}:{config.port}'
        if 'time-out' in text:
            raise CosimulationError(
                f'the CARLA server at {server} did not answer within {config.timeout_s:g} s: '
                f'is it running, is the port right, is it loading a town?'
            ) from error
        if 'Host not found' in text:
            raise CosimulationError(f'host {config.host!r} is unknown; check host') from error
        raise CosimulationError(f'the CARLA server at {server} failed: {text}') from error


def _has_two_wheels(blueprint: Any) -> bool:
    if not blueprint.has_attribute('number_of_wheels'):
        return False
    return bool(str(blueprint.get_attribute('number_of_wheels').as_int()) == _TWO_WHEELS)


def _pose(transform: Any) -> Pose:
    # Copied at once: parts of a transform are live references.
    at, turn = transform.location, transform.rotation
    return at.x, at.y, at.z, turn.roll, turn.yaw, turn.pitch


def _speed(state: Any) -> float:
    velocity = state.get_velocity()
    return float(np.linalg.norm([velocity.x, velocity.y, velocity.z]))


def _visible(origin: np.ndarray, labels: Mapping[int, VehicleLabel]) -> dict[int, VehicleLabel]:
    """Labels that the vehicle's LiDAR would hit; other vehicles hide, buildings are not known."""
    if not labels:
        return {}
    boxes = np.array(
        [
            [*label.pose[:3], *(2 * half for half in label.extent), np.radians(label.angle[1])]
            for label in labels.values()
        ]
    )
    seen = visible(origin, boxes, np.empty((0, 7)), RANGE_M)
    return {key: label for (key, label), hit in zip(labels.items(), seen, strict=True) if hit}

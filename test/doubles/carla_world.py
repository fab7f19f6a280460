"""A CARLA server that plays a recorded scene: the calls of the genuine API, none of its physics.

Only what `lapdtr_ros.cosimulation` uses is there, with the names and parameters of the genuine
classes (`test_cosimulation` checks them against the stubs of the wheel). Transforms, boxes and
settings are the genuine ones.
"""

from __future__ import annotations

import fnmatch
from types import SimpleNamespace

import carla
import numpy as np

from lapdtr_ros.datasets.opv2v import Scenario, read_image
from lapdtr_ros.datasets.scene import CAMERA_MOUNTS, Scene

STEP_S = 0.05
TICKS_PER_FRAME = 2
FIRST_TICK = 69
VERSION = '0.9.16'
BLUEPRINTS = ('vehicle.lincoln.mkz_2020', 'vehicle.audi.tt', 'vehicle.yamaha.yzf')


class Server:
    """What stays when a client goes.

    Args:
        scene: motion of all vehicles.
        pictures: the same scene, rendered.
        version: what the server says it is.
    """

    def __init__(self, scene: Scene, pictures: Scenario, version: str = VERSION) -> None:
        self.scene, self.pictures, self.version = scene, pictures, version
        self.settings = carla.WorldSettings()
        self.settings.synchronous_mode = False
        self.settings.fixed_delta_seconds = STEP_S
        self.traffic_synchronous = False
        self.seed = None
        self.frame = FIRST_TICK - 1
        self.silent_from = None
        self.actors = {}
        free = [v for v in range(len(scene.ids)) if v not in scene.connected]
        for vehicle in free:
            self.add(Vehicle(self, scene.ids[vehicle], 'vehicle.audi.tt', vehicle))
        self.foreign = set(self.actors)

    def connect(self, host, port):
        return Client(self)

    def add(self, actor):
        self.actors[actor.id] = actor
        return actor

    def check(self):
        """As the genuine client does when nobody answers."""
        if self.silent_from is not None and self.frame >= self.silent_from:
            raise RuntimeError('time-out of 1000ms while waiting for the simulator, make sure ...')

    @property
    def moment(self):
        """Frame of the recording that this tick shows."""
        return min((self.frame - FIRST_TICK) // TICKS_PER_FRAME, len(self.pictures.timestamps) - 1)

    def state(self, vehicle):
        x, y, yaw, speed = self.scene.traffic.states[max(self.moment, 0), vehicle].tolist()
        degrees = (np.degrees(yaw) + 180.0) % 360.0 - 180.0
        transform = carla.Transform(
            carla.Location(x=x, y=y, z=0.0), carla.Rotation(yaw=float(degrees))
        )
        velocity = carla.Vector3D(x=speed * np.cos(yaw), y=speed * np.sin(yaw), z=0.0)
        return transform, velocity


class Client:
    def __init__(self, server):
        self._server = server
        self.timeout_s = None

    def set_timeout(self, second):
        self.timeout_s = second

    def get_client_version(self):
        return VERSION

    def get_server_version(self):
        self._server.check()
        return self._server.version

    def get_world(self):
        self._server.check()
        return World(self._server)

    def load_world(self, map_name):
        if map_name != 'Town05':
            raise RuntimeError(f'map {map_name!r} not found')
        return World(self._server)

    def get_trafficmanager(self, client_connection=8000):
        return TrafficManager(self._server, client_connection)

    def apply_batch_sync(self, commands, do_tick=False):
        self._server.check()
        for command in commands:
            self._server.actors.pop(command.actor_id, None)


class TrafficManager:
    def __init__(self, server, port):
        self._server, self._port = server, port

    def get_port(self):
        return self._port

    def set_synchronous_mode(self, mode_switch=True):
        self._server.check()
        self._server.traffic_synchronous = mode_switch

    def set_random_device_seed(self, value):
        self._server.seed = value


class World:
    def __init__(self, server):
        self._server = server

    def get_settings(self):
        settings = carla.WorldSettings()
        settings.synchronous_mode = self._server.settings.synchronous_mode
        settings.fixed_delta_seconds = self._server.settings.fixed_delta_seconds
        return settings

    def apply_settings(self, world_settings):
        self._server.check()
        self._server.settings = world_settings
        return self._server.frame

    def get_map(self):
        places = [carla.Transform(carla.Location(x=10.0 * n)) for n in range(20)]
        return SimpleNamespace(get_spawn_points=lambda: places)

    def get_blueprint_library(self):
        return BlueprintLibrary([*BLUEPRINTS, 'sensor.camera.rgb'])

    def try_spawn_actor(self, blueprint, transform, attach_to=None):
        if transform.location.x < 0:  # a wall
            return None
        scene = self._server.scene
        mine = [a for a in self._server.actors.values() if a.id not in self._server.foreign]
        taken = sum(isinstance(actor, Vehicle) for actor in mine)
        if blueprint.get('role_name') is None or taken >= len(scene.connected):
            return None
        vehicle = scene.connected[taken]
        return self._server.add(Vehicle(self._server, scene.ids[vehicle], blueprint.id, vehicle))

    def spawn_actor(self, blueprint, transform, attach_to=None):
        number = 100_000 + len(self._server.actors)
        return self._server.add(Camera(self._server, number, blueprint, transform, attach_to))

    def get_actors(self, actor_ids=None):
        return ActorList(self._server.actors.values())

    def get_snapshot(self):
        return WorldSnapshot(self._server)

    def tick(self, seconds=10.0):
        self._server.check()
        self._server.frame += 1
        for actor in list(self._server.actors.values()):
            if isinstance(actor, Camera):
                actor.shoot()
        return self._server.frame


class WorldSnapshot:
    def __init__(self, server):
        self._server = server
        self.frame = server.frame
        self.timestamp = SimpleNamespace(elapsed_seconds=server.frame * STEP_S)

    def find(self, actor_id):
        actor = self._server.actors.get(actor_id)
        return None if actor is None else ActorSnapshot(actor)


class ActorSnapshot:
    def __init__(self, actor):
        self._transform, self._velocity = actor.state()

    def get_transform(self):
        return self._transform

    def get_velocity(self):
        return self._velocity


class ActorList:
    def __init__(self, actors):
        self._actors = list(actors)

    def filter(self, wildcard_pattern):
        return [a for a in self._actors if fnmatch.fnmatch(a.type_id, wildcard_pattern)]


class BlueprintLibrary:
    def __init__(self, names):
        self._names = names

    def find(self, id):
        if id not in self._names:
            raise IndexError(f"blueprint '{id}' not found")
        return ActorBlueprint(id)

    def filter(self, wildcard_pattern):
        return [ActorBlueprint(n) for n in self._names if fnmatch.fnmatch(n, wildcard_pattern)]


class ActorBlueprint:
    def __init__(self, id):
        self.id = id
        self._values = {}

    def has_attribute(self, id):
        return id in ('role_name', 'number_of_wheels')

    def get_attribute(self, id):
        wheels = 2 if 'yamaha' in self.id else 4
        return SimpleNamespace(as_int=lambda: wheels)

    def set_attribute(self, id, value):
        assert isinstance(value, str), 'the genuine blueprint takes text only'
        self._values[id] = value

    def get(self, id):
        """Not in the genuine class: for this double alone."""
        return self._values.get(id)


class Vehicle:
    def __init__(self, server, id, type_id, vehicle):
        self._server, self._vehicle = server, vehicle
        self.id, self.type_id = id, type_id
        self.attributes = {'number_of_wheels': '4'}
        length, width, height = server.scene.traffic.kinds[vehicle].size
        self.bounding_box = carla.BoundingBox(
            carla.Location(z=height / 2), carla.Vector3D(length / 2, width / 2, height / 2)
        )

    @property
    def number(self):
        return self._vehicle

    def state(self):
        return self._server.state(self._vehicle)

    def set_autopilot(self, enabled=True, port=8000):
        assert self._server.settings.synchronous_mode, 'traffic starts before the settings'


class Camera:
    def __init__(self, server, id, blueprint, transform, vehicle):
        self._server, self._vehicle, self._callback = server, vehicle, None
        self.id, self.type_id = id, blueprint.id
        self._size = int(blueprint.get('image_size_y')), int(blueprint.get('image_size_x'))
        yaw = round(transform.rotation.yaw)
        self._camera = next(n for n, m in enumerate(CAMERA_MOUNTS) if (m[4] - yaw) % 360 == 0)

    def state(self):
        return self._vehicle.state()

    def listen(self, callback):
        self._callback = callback

    def stop(self):
        self._callback = None

    def shoot(self):
        if self._callback is None:
            return
        pictures = self._server.pictures
        timestamp = pictures.timestamps[max(self._server.moment, 0)]
        frame = pictures.frame(self._vehicle.id, timestamp)
        rgb = read_image(frame.image_paths[self._camera])
        assert rgb.shape[:2] == self._size, 'record the scene in the size of the cameras'
        bgra = np.dstack([rgb[:, :, ::-1], np.full(rgb.shape[:2], 255, np.uint8)])
        self._callback(
            SimpleNamespace(
                frame=self._server.frame,
                height=rgb.shape[0],
                width=rgb.shape[1],
                raw_data=bgra.tobytes(),
            )
        )

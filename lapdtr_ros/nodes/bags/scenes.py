"""OPV2V scenes as recordings and back.

A scene's topics are those that a fleet with live cameras uses: per vehicle ``odometry``,
``lidar_pose`` and ``objects`` (ground truth), per camera ``camera_info``, ``mount`` and the
pictures. Everything of one moment carries the same stamp, which is also its time in the bag.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rosgraph_msgs.msg import Clock

from lapdtr_ros import camera_messages, conversions, qos, topics
from lapdtr_ros.datasets.opv2v import (
    TICK_S,
    AgentFrame,
    CameraModel,
    Scenario,
    VehicleLabel,
    agent_id,
    agent_name,
    time_s,
)
from lapdtr_ros.datasets.opv2v_writer import write_agent_frame, write_data_protocol
from lapdtr_ros.perception.poses import matrix_to_pose, pose_to_matrix

from .files import BagError, BagReader, BagWriter

CLOCK = '/clock'
COMPRESSED = '/compressed'

_KMH = 3.6
_TICK_NS = round(TICK_S * 1e9)
_MOST_TICKS = 10**6  # names of moments have six digits

Progress = Callable[[int, int], None]


def scene_to_bag(
    scenario: Scenario, path: Path, *, fleet: str = '', progress: Progress | None = None
) -> None:
    """Write a scene as a recording, with pictures as PNG (nothing is lost).

    Args:
        scenario: the scene.
        path: directory to make.
        fleet: namespace of the topics.
        progress: told moments done and moments in all.

    Raises:
        BagError: the directory exists.
        DatasetError: a file of the scene cannot be read.
    """
    with BagWriter(path) as bag:
        for done, timestamp in enumerate(scenario.timestamps, start=1):
            stamp_ns = round(time_s(timestamp) * 1e9)
            bag.write(CLOCK, Clock(clock=conversions.time_to_msg(stamp_ns)), stamp_ns)
            for agent in scenario.agents:
                frame = scenario.frame(agent.id, timestamp)
                _write_agent(bag, fleet, agent_name(agent.id), frame, stamp_ns)
            if progress is not None:
                progress(done, len(scenario.timestamps))


def _write_agent(
    bag: BagWriter, fleet: str, vehicle: str, frame: AgentFrame, stamp_ns: int
) -> None:
    speed = frame.ego_speed / _KMH
    odometry = conversions.odometry_to_msg(frame.true_ego_pos, speed, stamp_ns, vehicle)
    bag.write(topics.odometry(fleet, vehicle), odometry, stamp_ns)
    pose = conversions.lidar_pose_to_msg(frame.lidar_pose, stamp_ns)
    bag.write(topics.lidar_pose(fleet, vehicle), pose, stamp_ns, qos.geometry())
    objects = conversions.objects_to_msg(frame.vehicles.values(), stamp_ns, vehicle)
    bag.write(topics.objects(fleet, vehicle), objects, stamp_ns)
    for number, camera in frame.cameras.items():
        stream = f'{vehicle}/camera{number}'
        width, height = camera.size
        info = conversions.camera_info_to_msg(camera.intrinsic, (height, width), stamp_ns, stream)
        bag.write(topics.camera_info(fleet, stream), info, stamp_ns, qos.geometry())
        lidar = conversions.lidar_frame(vehicle)
        mount = conversions.mount_to_msg(camera.extrinsic, stamp_ns, lidar, stream)
        bag.write(topics.mount(fleet, stream), mount, stamp_ns, qos.geometry())
        data = frame.image_paths[number].read_bytes()
        picture = camera_messages.compressed_picture_to_msg(data, 'png', stamp_ns, stream)
        bag.write(topics.image(fleet, stream) + COMPRESSED, picture, stamp_ns)


@dataclass(frozen=True)
class Imported:
    """What became of a recording.

    Attributes:
        path: directory of the scene.
        moments: moments that are complete for all vehicles.
        incomplete: moments left out because a message of a vehicle is missing.
    """

    path: Path
    moments: int
    incomplete: int


def bag_to_scene(bag: Path, out: Path, *, progress: Progress | None = None) -> Imported:
    """Write the moments of a recording as an OPV2V scene.

    Every vehicle needs ``lidar_pose``, and every camera of it ``camera_info``, ``mount`` and
    pictures (raw or compressed) under exactly the same stamp. ``objects`` and ``odometry`` are
    optional: without the first there is nothing to evaluate against.

    Args:
        bag: the recording.
        out: directory of the scene; files that are there are replaced.
        progress: told messages read and messages in all.

    Raises:
        BagError: damaged, not played by this project's conventions, topics missing, time that
            jumps back, or no complete moment.
        GeometryError, ImageError: a message that makes no sense.
    """
    with BagReader(bag) as reader:
        layout = find_layout(reader)
        moments = _Moments(layout, out, bag)
        names = layout.names
        total = sum(reader.topics[name].count for name in names)
        for done, (topic, _, msg) in enumerate(reader.messages(names), start=1):
            moments.take(topic, msg)
            if progress is not None:
                progress(done, total)
    return moments.finish()


@dataclass(frozen=True)
class Layout:
    """Which topics of a bag make up the vehicles.

    Attributes:
        cameras: picture topic per vehicle and camera number.
        roles: (vehicle, role, camera number or -1) per topic.
    """

    cameras: dict[str, dict[int, str]]
    roles: dict[str, tuple[str, str, int]]

    @property
    def names(self) -> tuple[str, ...]:
        """All topics that are read."""
        return tuple(self.roles)


def find_layout(reader: BagReader) -> Layout:
    """Find vehicles and cameras among the topics, in any namespace.

    Raises:
        BagError: no picture topic, or a topic that a camera or vehicle needs is missing.
    """
    pattern = re.compile(r'(?P<fleet>.*)/(?P<vehicle>(cav|rsu)_\d+)/camera(?P<number>\d)/image.*')
    cameras: dict[str, dict[int, str]] = defaultdict(dict)
    roles: dict[str, tuple[str, str, int]] = {}
    for name in sorted(reader.topics):
        match = pattern.fullmatch(name)
        if match is None or match['number'] in cameras[match['vehicle']]:
            continue
        fleet, vehicle, number = match['fleet'], match['vehicle'], int(match['number'])
        stream = f'{vehicle}/camera{number}'
        cameras[vehicle][number] = name
        roles[name] = vehicle, 'picture', number
        roles[topics.camera_info(fleet, stream)] = vehicle, 'info', number
        roles[topics.mount(fleet, stream)] = vehicle, 'mount', number
        roles[topics.lidar_pose(fleet, vehicle)] = vehicle, 'pose', -1
        for optional, role in ((topics.objects, 'objects'), (topics.odometry, 'odometry')):
            if optional(fleet, vehicle) in reader.topics:
                roles[optional(fleet, vehicle)] = vehicle, role, -1
    if not roles:
        there = ', '.join(sorted(reader.topics)) or 'no topic at all'
        raise BagError(
            f'{reader.path} has no picture topic named <vehicle>/camera<number>/image (vehicles '
            f'are cav_<number> or rsu_<number>); it has {there}. Remap the topics and record again'
        )
    reader.require(roles)
    return Layout({k: v for k, v in cameras.items() if v}, roles)


@dataclass
class _Partial:
    """Messages of one vehicle at one moment that are there so far."""

    single: dict[str, Any] = field(default_factory=dict)
    cameras: dict[int, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))


class _Moments:
    """Collects messages by stamp and writes every vehicle's moment as soon as it is complete."""

    def __init__(self, layout: Layout, out: Path, bag: Path) -> None:
        self._layout = layout
        self._out = out
        self._bag = bag
        self._open: dict[tuple[int, str], _Partial] = defaultdict(_Partial)
        self._written: dict[int, set[str]] = defaultdict(set)
        self._last: dict[str, int] = {}
        self._first_ns: int | None = None

    def take(self, topic: str, msg: Any) -> None:
        vehicle, role, number = self._layout.roles[topic]
        stamp_ns = conversions.time_from_msg(msg.header.stamp)
        self._check_order(topic, stamp_ns)
        if self._first_ns is None:
            self._first_ns = stamp_ns
        partial = self._open[stamp_ns, vehicle]
        if number < 0:
            partial.single[role] = msg
        else:
            partial.cameras[number][role] = msg
        if self._complete(vehicle, partial):
            self._write(stamp_ns, vehicle, self._open.pop((stamp_ns, vehicle)))

    def finish(self) -> Imported:
        vehicles = set(self._layout.cameras)
        complete = sum(done == vehicles for done in self._written.values())
        stamps = {stamp for stamp, _ in self._open} | set(self._written)
        if not complete:
            raise BagError(
                f'{self._bag} has no moment with everything of {", ".join(sorted(vehicles))} under '
                f'one stamp; pictures, camera_info, mount and lidar_pose of a moment need the '
                f'same stamp'
            )
        write_data_protocol(self._out, {'description': f'from the recording {self._bag.name}'})
        return Imported(self._out, complete, len(stamps) - complete)

    def _check_order(self, topic: str, stamp_ns: int) -> None:
        if stamp_ns < self._last.get(topic, stamp_ns):
            raise BagError(
                f'{self._bag}: stamps of {topic} jump back from {self._last[topic] * 1e-9:.3f} to '
                f'{stamp_ns * 1e-9:.3f} s: it was recorded while a bag was looping or the '
                f'simulation was restarted; record one pass'
            )
        self._last[topic] = stamp_ns

    def _complete(self, vehicle: str, partial: _Partial) -> bool:
        wanted = {
            role
            for name, role, number in self._layout.roles.values()
            if name == vehicle and number < 0
        }
        return wanted <= partial.single.keys() and all(
            len(partial.cameras[number]) == 3 for number in self._layout.cameras[vehicle]
        )

    def _write(self, stamp_ns: int, vehicle: str, partial: _Partial) -> None:
        cameras, images = {}, {}
        pose = conversions.lidar_pose_from_msg(partial.single['pose'])
        for number, messages in partial.cameras.items():
            images[number] = camera_messages.any_picture_from_msg(messages['picture'])
            cameras[number] = _camera(messages, images[number], pose)
        own, speed = pose, 0.0
        if 'odometry' in partial.single:
            own, speed = conversions.odometry_from_msg(partial.single['odometry'])
        frame = AgentFrame(
            timestamp=self._name(stamp_ns),
            lidar_pose=pose,
            true_ego_pos=own,
            predicted_ego_pos=own,
            ego_speed=speed * _KMH,
            plan_trajectory=(),
            cameras=cameras,
            vehicles={label.id: label for label in _labels(partial)},
        )
        write_agent_frame(self._out / str(agent_id(vehicle)), frame, images)
        self._written[stamp_ns].add(vehicle)

    def _name(self, stamp_ns: int) -> str:
        """Ticks of 50 ms, as OPV2V counts; recordings of real time count from their first."""
        ticks = round(stamp_ns / _TICK_NS)
        if ticks >= _MOST_TICKS:
            assert self._first_ns is not None
            ticks = round((stamp_ns - self._first_ns) / _TICK_NS)
        return f'{ticks:06d}'


def _labels(partial: _Partial) -> Iterator[VehicleLabel]:
    if 'objects' in partial.single:
        yield from conversions.objects_from_msg(partial.single['objects'])


def _camera(messages: dict[str, Any], image: np.ndarray, pose: tuple[float, ...]) -> CameraModel:
    extrinsic = conversions.extrinsic_from_msg(messages['mount'])
    size = image.shape[0], image.shape[1]
    return CameraModel(
        pose=matrix_to_pose(pose_to_matrix(pose) @ np.linalg.inv(extrinsic)),
        intrinsic=conversions.intrinsic_from_msg(messages['info'], size),
        extrinsic=extrinsic,
    )

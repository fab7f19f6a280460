"""Listens to a running fleet and keeps an overview of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import rclpy
from geometry_msgs.msg import PoseStamped, TransformStamped
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rich.console import Console, RenderableType
from rich.live import Live
from sensor_msgs.msg import CameraInfo, Image

from lapdtr_ros import camera_messages, conversions, qos, topics
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.evaluation.boxed_pictures import BoxedPictures
from lapdtr_ros.evaluation.live_view import LiveView
from lapdtr_ros.evaluation.overview import DeviceState, FleetOverview
from lapdtr_ros.msg import Detections, DeviceTelemetry, FrameTrace, PartitionPlan

from .base import end_with_parent

_TELEMETRY = 'lapdtr_ros/msg/DeviceTelemetry'
_IMAGE = 'sensor_msgs/msg/Image'
_LOOK_FOR_TOPICS_S = 1.0
_PICTURE_PERIOD_S = 0.5
# A camera whose pictures come with boxes shows no others unless the boxes stay away.
_BOXED_PATIENCE_S = 10.0
_REFRESH_S = 0.25
_LEVELS = {
    DeviceTelemetry.MEASURED: 'measured',
    DeviceTelemetry.MODELLED: 'modelled',
    DeviceTelemetry.EMULATED: 'emulated',
}


def watch(fleet: str, view: LiveView | None, seconds: float) -> None:
    """Show a fleet in the terminal, and in a view if there is one, for so long or until Ctrl-C."""
    end_with_parent()
    with (
        _listening(fleet, view) as (node, executor),
        Live(console=Console(), auto_refresh=False, screen=False) as live,
    ):
        end_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < end_s:
            _spin(executor, min(end_s, now_s + _REFRESH_S))
            live.update(node.overview.render(node.now_s), refresh=True)


def overview_after(fleet: str, seconds: float) -> RenderableType:
    """What `watch` shows after so long."""
    with _listening(fleet, None) as (node, executor):
        _spin(executor, time.monotonic() + seconds)
        return node.overview.render(node.now_s)


@contextmanager
def _listening(
    fleet: str, view: LiveView | None
) -> Iterator[tuple[WatchNode, SingleThreadedExecutor]]:
    rclpy.init()
    node = WatchNode(fleet, view)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        yield node, executor
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _spin(executor: SingleThreadedExecutor, end_s: float) -> None:
    while (left_s := end_s - time.monotonic()) > 0:
        executor.spin_once(timeout_sec=left_s)


class WatchNode(Node):
    """A listener that disturbs nobody: it has no parameters, and nobody waits for it.

    Args:
        fleet: namespace of the fleet.
        view: also gets everything, and pictures and detections besides; None for none.

    Subscriptions:
        <fleet>/plan (PartitionPlan), <fleet>/frame_traces (FrameTrace)
        <fleet>/<device>/telemetry (DeviceTelemetry): of every device that is there or comes.
        <fleet>/detections (Detections), <fleet>/<stream>/image (sensor_msgs/Image): for a view.
        <fleet>/<stream>/camera_info, mount, <fleet>/<vehicle>/lidar_pose: for the boxes in its
            pictures, once there are detections; sources wait for their first listener, which must
            be the fusion.
    """

    def __init__(self, fleet: str, view: LiveView | None = None) -> None:
        super().__init__('watch', namespace=topics.namespace(fleet))
        self._prefix = topics.namespace(fleet)
        self._joined: set[str] = set()
        self._began_s = time.monotonic()
        self._shown: dict[str, float] = {}
        self._pictures = BoxedPictures()
        self._detects = False
        self._boxed: set[str] = set()
        self._view = view
        self.overview = FleetOverview(0.0)
        self._watchers: tuple[FleetOverview | LiveView, ...] = (
            (self.overview,) if view is None else (self.overview, view)
        )
        self.create_subscription(
            PartitionPlan, topics.plan(fleet), self._on_plan, qos.plan(qos.PLANS_WAITING)
        )
        traces = topics.frame_traces(fleet)
        self.create_subscription(FrameTrace, traces, self._on_trace, qos.traces())
        if view is not None:
            detections = topics.detections(fleet)
            self.create_subscription(Detections, detections, self._on_detections, qos.detections())
        self.create_timer(_LOOK_FOR_TOPICS_S, self._join)
        self._join()

    @property
    def now_s(self) -> float:
        """Seconds since watching began."""
        return time.monotonic() - self._began_s

    def _join(self) -> None:
        """Listen to devices and cameras that have appeared."""
        for name, kinds in self.get_topic_names_and_types():
            if not name.startswith(self._prefix) or name in self._joined:
                continue
            if _TELEMETRY in kinds:
                self._joined.add(name)
                self.create_subscription(DeviceTelemetry, name, self._on_telemetry, qos.telemetry())
            elif self._view is not None and _IMAGE in kinds and name.endswith('/image'):
                self._joined.add(name)
                stream = name.removeprefix(self._prefix).strip('/').removesuffix('/image')
                show = self._guarded(partial(self._on_picture, self._view), stream)
                self.create_subscription(Image, name, show, qos.camera())
            elif self._detects:
                self._join_geometry(name, kinds)

    def _join_geometry(self, name: str, kinds: list[str]) -> None:
        for kind, ending, heard in (
            (CameraInfo, '/camera_info', self._on_camera_info),
            (TransformStamped, '/mount', self._on_mount),
            (PoseStamped, '/lidar_pose', self._on_pose),
        ):
            if name.endswith(ending) and any(k.endswith(f'/{kind.__name__}') for k in kinds):
                owner = name.removeprefix(self._prefix).strip('/').removesuffix(ending)
                self._joined.add(name)
                self.create_subscription(kind, name, self._guarded(heard, owner), qos.geometry())

    def _guarded(self, heard: Callable[[str, Any], None], owner: str) -> Callable[[Any], None]:
        """A listener that says what it cannot use and lives on."""

        def callback(msg: Any) -> None:
            try:
                heard(owner, msg)
            except LapdtrError as error:
                self.get_logger().warning(f'{owner}: {error}', throttle_duration_sec=5.0)

        return callback

    def _on_camera_info(self, stream: str, msg: CameraInfo) -> None:
        intrinsic = conversions.intrinsic_from_msg(msg, (msg.height, msg.width))
        self._pictures.add_intrinsic(stream, _stamp_ns(msg), intrinsic)

    def _on_mount(self, stream: str, msg: TransformStamped) -> None:
        vehicle = msg.header.frame_id.removesuffix(conversions.lidar_frame(''))
        extrinsic = conversions.extrinsic_from_msg(msg)
        self._pictures.add_mount(stream, _stamp_ns(msg), vehicle, extrinsic)

    def _on_pose(self, vehicle: str, msg: PoseStamped) -> None:
        self._pictures.add_pose(vehicle, _stamp_ns(msg), conversions.lidar_pose_from_msg(msg))

    def _on_plan(self, msg: PartitionPlan) -> None:
        try:
            plan = conversions.fleet_plan_from_msg(msg)
        except LapdtrError as error:
            self.get_logger().warning(f'plan {msg.epoch}: {error}')
            return
        for watcher in self._watchers:
            watcher.add_plan(plan, msg.cause, self.now_s)

    def _on_trace(self, msg: FrameTrace) -> None:
        outcome = conversions.outcome_from_msg(msg)
        for watcher in self._watchers:
            watcher.add_outcome(outcome, self.now_s)

    def _on_detections(self, msg: Detections) -> None:
        assert self._view is not None
        try:
            frame = conversions.detections_from_msg(msg)
        except LapdtrError as error:
            self.get_logger().warning(f'detections: {error}', throttle_duration_sec=5.0)
            return
        self._detects = True
        self._view.add_fused(frame, self.now_s)
        for stream, pixels in self._pictures.boxed(frame).items():
            self._boxed.add(stream)
            self._shown[stream] = self.now_s
            self._view.add_picture(stream, pixels, self.now_s)

    def _on_picture(self, view: LiveView, stream: str, msg: Image) -> None:
        """Show a picture at once; where detections come, they bring it with their boxes."""
        pixels = camera_messages.picture_from_msg(msg)
        self._pictures.add_picture(stream, _stamp_ns(msg), pixels)
        now_s = self.now_s
        period_s = _BOXED_PATIENCE_S if stream in self._boxed else _PICTURE_PERIOD_S
        if now_s - self._shown.get(stream, -period_s) >= period_s:
            self._shown[stream] = now_s
            view.add_picture(stream, pixels, now_s)

    def _on_telemetry(self, msg: DeviceTelemetry) -> None:
        state = DeviceState(
            name=msg.device,
            device_class=msg.device_class,
            energy_level=_LEVELS.get(msg.energy_source, 'unknown'),
            soc=msg.soc,
            on_mains=msg.battery_j == float('inf'),
            power_w=msg.power_w,
            load=msg.load,
            queue=msg.queue,
            epoch=msg.epoch,
            note=msg.last_error,
        )
        for watcher in self._watchers:
            watcher.add_device(state, self.now_s)


def _stamp_ns(msg: Any) -> int:
    return conversions.time_from_msg(msg.header.stamp)

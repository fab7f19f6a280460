"""Listens to a running fleet and keeps an overview of it."""

from __future__ import annotations

import time

from rclpy.node import Node

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.evaluation.overview import DeviceState, FleetOverview
from lapdtr_ros.msg import DeviceTelemetry, FrameTrace, PartitionPlan

_TELEMETRY = 'lapdtr_ros/msg/DeviceTelemetry'
_LOOK_FOR_DEVICES_S = 1.0
_LEVELS = {
    DeviceTelemetry.MEASURED: 'measured',
    DeviceTelemetry.MODELLED: 'modelled',
    DeviceTelemetry.EMULATED: 'emulated',
}


class WatchNode(Node):
    """A listener that disturbs nobody: it has no parameters, and nobody waits for it.

    Args:
        fleet: namespace of the fleet.

    Subscriptions:
        <fleet>/plan (PartitionPlan), <fleet>/frame_traces (FrameTrace)
        <fleet>/<device>/telemetry (DeviceTelemetry): of every device that is there or comes.
    """

    def __init__(self, fleet: str) -> None:
        super().__init__('watch', namespace=topics.namespace(fleet))
        self._prefix = topics.namespace(fleet)
        self._devices: set[str] = set()
        self.overview = FleetOverview(time.monotonic())
        self.create_subscription(PartitionPlan, topics.plan(fleet), self._on_plan, qos.plan())
        traces = topics.frame_traces(fleet)
        self.create_subscription(FrameTrace, traces, self._on_trace, qos.traces())
        self.create_timer(_LOOK_FOR_DEVICES_S, self._join_devices)
        self._join_devices()

    def _join_devices(self) -> None:
        for name, kinds in self.get_topic_names_and_types():
            if _TELEMETRY in kinds and name.startswith(self._prefix) and name not in self._devices:
                self._devices.add(name)
                self.create_subscription(DeviceTelemetry, name, self._on_telemetry, qos.telemetry())

    def _on_plan(self, msg: PartitionPlan) -> None:
        try:
            plan = conversions.fleet_plan_from_msg(msg)
        except LapdtrError as error:
            self.get_logger().warning(f'plan {msg.epoch}: {error}')
            return
        self.overview.add_plan(plan, msg.cause, time.monotonic())

    def _on_trace(self, msg: FrameTrace) -> None:
        self.overview.add_outcome(conversions.outcome_from_msg(msg), time.monotonic())

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
        self.overview.add_device(state, time.monotonic())

"""The device node: runs the stages that plans give to one device."""

from __future__ import annotations

import math
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from rclpy.event_handler import PublisherEventCallbacks
from rclpy.publisher import Publisher

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.errors import LapdtrError, UnknownNameError
from lapdtr_ros.execution.device import (
    DeviceCore,
    DuplicateFrameError,
    Job,
    StageKey,
    run_job,
)
from lapdtr_ros.execution.frames import Feature, Result
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.models.profiling import profile_model
from lapdtr_ros.msg import DeviceTelemetry, FeatureMap, FrameResult, PartitionPlan, StreamStatus
from lapdtr_ros.planning.cost import evaluate
from lapdtr_ros.planning.plan import FleetPlan
from lapdtr_ros.scenario import Scenario, load_scenario

from .base import ERROR, OK, WARN, Diagnosis, ManagedNode, declare, parameter, run_node
from .handback import Handback
from .inlet import Inlet


@dataclass(frozen=True)
class DeviceParameters:
    """Parameters of the device node."""

    device: str = parameter('', 'Name of this device in the scenario')
    telemetry_hz: float = parameter(2.0, 'Rate of the telemetry [Hz]', minimum=0.1, maximum=100.0)
    result_listeners: int = parameter(
        1, 'Subscribers a result topic needs before its plan is ready: the source, sinks', minimum=1
    )


class DeviceNode(ManagedNode):
    """Runs the stages that plans give to this device and passes features on.

    Parameters:
        See `DeviceParameters` and `CommonParameters`.

    Subscriptions:
        <fleet>/plan (PartitionPlan): what to load and run.
        <fleet>/<device>/features (FeatureMap): inputs of this device's stages.
        <fleet>/stream_status (StreamStatus): tells which epochs are done.

    Publishers:
        <fleet>/<device>/telemetry (DeviceTelemetry): state, at a fixed rate and when it changes.
        <fleet>/<next device>/features (FeatureMap): outputs for the next stage.
        <fleet>/<stream>/result (FrameResult): outputs of the last unit.
    """

    def __init__(self) -> None:
        super().__init__('device')
        self.parameters = declare(self, DeviceParameters)
        self._feature_publishers: dict[str, Publisher] = {}
        self._result_publishers: dict[str, Publisher] = {}
        self._inlet: Inlet | None = None
        self._counting = threading.Lock()
        self._busy_s = 0.0
        self._backlog = 0
        self._loader: Handback | None = None
        self._loading: set[StageKey] = set()
        self._reported_ready: tuple[int, ...] = ()
        self._frames = self._rejected = self._duplicates = 0
        self._energy_j = 0.0
        self._last_error = ''
        self._last_reading: tuple[float, float, float] | None = None

    def configure(self) -> None:
        """Read the scenario, create topics and start the threads."""
        name = self.parameters.device
        self._scenario: Scenario = load_scenario(self.common.scenario)
        if name not in self._scenario.fleet.devices:
            raise UnknownNameError('device', name, self._scenario.fleet.devices)
        self._device = self._scenario.fleet.devices[name]
        self._core = DeviceCore(name, profile_model, self._energy_per_frame)
        fleet = self.common.fleet
        self._telemetry = self.create_publisher(
            DeviceTelemetry,
            topics.telemetry(fleet, name),
            qos.telemetry(),
            qos_overriding_options=qos.overridable(),
        )
        self._loader = Handback(self, 'loader')

    def activate(self) -> None:
        """Listen to plans and frames."""
        fleet, name = self.common.fleet, self.parameters.device
        status = topics.stream_status(fleet)
        self.listen(StreamStatus, status, self._on_stream_status, qos.stream_status())
        self.listen(PartitionPlan, topics.plan(fleet), self._on_plan, qos.plan())
        self.every(1.0 / self.parameters.telemetry_hz, self._publish_telemetry)
        self._inlet = Inlet(self.get_namespace(), topics.features(fleet, name), self._on_feature)

    def deactivate(self) -> None:
        """Stop the inference thread; frames in its queue are dropped."""
        if self._inlet is not None:
            self._inlet.close()
        self._inlet = None

    def cleanup(self) -> None:
        """Stop the loader and free the stages."""
        if self._loader is not None:
            self._loader.close()
        self._loader = None
        for publisher in (*self._feature_publishers.values(), *self._result_publishers.values()):
            self.destroy_publisher(publisher)
        self._feature_publishers, self._result_publishers = {}, {}

    def diagnose(self) -> list[Diagnosis]:
        """State of the stages and of what comes in."""
        failures = self._core.failures()
        stages = Diagnosis(
            'stages',
            ERROR if failures else OK,
            '; '.join(failures.values()) or f'{len(self._core.loaded)} stages loaded',
            {'ready_epochs': ' '.join(str(n) for n in self._reported_ready)},
        )
        frames = Diagnosis(
            'frames',
            WARN if self._rejected else OK,
            self._last_error or 'all frames accepted',
            {
                'frames': str(self._frames),
                'rejected': str(self._rejected),
                'duplicates': str(self._duplicates),
            },
        )
        return [stages, frames]

    def _energy_per_frame(self, plan: FleetPlan, stream: str) -> float:
        """Modelled joules that this device spends on one frame of a stream."""
        decision = plan.streams[stream].plan
        cost = evaluate(
            decision,
            profile_model(decision.model),
            self._scenario.fleet,
            self._scenario.requirements,
        )
        return cost.devices[self.parameters.device].energy_j

    def _on_plan(self, msg: PartitionPlan) -> None:
        try:
            plan = conversions.fleet_plan_from_msg(msg)
            missing = self._core.apply(plan)
        except LapdtrError as error:
            self._refuse(f'plan {msg.epoch}: {error}')
            return
        self.get_logger().info(f'plan {plan.epoch}: {plan.reason}')
        self._open_publishers(plan)
        for key in missing:
            if key not in self._loading:
                self._load(key)
        self._report_new_ready()

    def _open_publishers(self, plan: FleetPlan) -> None:
        fleet = self.common.fleet
        for stream, target in self._core.targets(plan.epoch).items():
            if target is None and stream not in self._result_publishers:
                topic = topics.result(fleet, stream)
                self._result_publishers[stream] = self._open(FrameResult, topic)
            elif target is not None and target not in self._feature_publishers:
                topic = topics.features(fleet, target)
                self._feature_publishers[target] = self._open(FeatureMap, topic)

    def _open(self, kind: type, topic: str) -> Publisher:
        """A publisher that reports a plan as ready as soon as its listeners are there."""
        matched = PublisherEventCallbacks(matched=lambda _: self._report_new_ready())
        return self.create_publisher(kind, topic, qos.frames(), event_callbacks=matched)

    def _load(self, key: StageKey) -> None:
        assert self._loader is not None
        self._loading.add(key)
        execution = self._scenario.file.execution

        def work() -> StageRunner:
            runner = StageRunner(
                key.model,
                key.weights,
                key.start,
                key.stop,
                backend=execution.backend,
                threads=execution.threads,
            )
            runner.warm_up()
            return runner

        def done(runner: StageRunner | None, error: Exception | None) -> None:
            self._loading.discard(key)
            what = f'{key.model} units {key.start} to {key.stop - 1}'
            if runner is None:
                self._core.failed_stage(key, f'{what} cannot be loaded: {error}')
                self.get_logger().error(f'{what} cannot be loaded: {error}')
                return
            self._core.loaded_stage(key, runner)
            self.get_logger().info(f'loaded {what}')
            self._report_new_ready()

        self._loader.submit(work, done)

    def _on_feature(self, msg: FeatureMap, info: dict[str, Any]) -> None:
        """In the inference thread: check a frame, run it and pass it on."""
        began = time.monotonic()
        waited_s = max(0.0, (time.time_ns() - info['received_timestamp']) * 1e-9)
        try:
            job = self._core.accept(conversions.feature_from_msg(msg), began - waited_s)
            self._send(job, run_job(self.parameters.device, job))
        except DuplicateFrameError:
            self._duplicates += 1
        except Exception as error:  # a frame must never end the thread that runs all others
            self._refuse(str(error))
        took_s = time.monotonic() - began
        self._busy_s += took_s
        self._backlog = int(waited_s / took_s)

    def _send(self, job: Job, output: Feature | Result) -> None:
        if isinstance(output, Result):
            self._result_publishers[output.stream].publish(conversions.result_to_msg(output))
        else:
            assert job.target is not None
            self._feature_publishers[job.target].publish(conversions.feature_to_msg(output))
        self._frames += 1
        self._energy_j += job.energy_j

    def _on_stream_status(self, msg: StreamStatus) -> None:
        self._core.retire(msg.stream, msg.oldest_epoch)

    def _refuse(self, reason: str) -> None:
        with self._counting:
            self._rejected += 1
            self._last_error = reason
        self.get_logger().warning(reason, throttle_duration_sec=1.0)

    def _ready_epochs(self) -> tuple[int, ...]:
        """Epochs that are loaded and whose next hop is there to receive."""
        return tuple(n for n in self._core.ready_epochs() if self._outputs_matched(n))

    def _outputs_matched(self, epoch: int) -> bool:
        for stream, target in self._core.targets(epoch).items():
            if target is None:
                count = self._result_publishers[stream].get_subscription_count()
                if count < self.parameters.result_listeners:
                    return False
            elif self._feature_publishers[target].get_subscription_count() == 0:
                return False
        return True

    def _report_new_ready(self) -> None:
        if self._ready_epochs() != self._reported_ready:
            self._publish_telemetry()

    def _publish_telemetry(self) -> None:
        self._reported_ready = self._ready_epochs()
        power, load = self._since_last_reading(self._busy_s)
        battery = self._device.battery_j
        used = self._energy_j / battery if math.isfinite(battery) else 0.0
        msg = DeviceTelemetry(
            device=self.parameters.device,
            device_class=self._device.device_class,
            energy_source=DeviceTelemetry.MODELLED,
            soc=float(max(0.0, self._device.soc - used)),
            battery_j=float(battery),
            energy_j=float(self._energy_j),
            power_w=float(power),
            load=float(load),
            queue=self._backlog,
            memory_bytes=sum(
                getattr(runner, 'parameter_bytes', 0) for runner in self._core.loaded.values()
            ),
            ready_epochs=list(self._reported_ready),
            frames=self._frames,
            rejected=self._rejected,
            duplicates=self._duplicates,
            last_error=self._last_error,
        )
        msg.header.stamp = self.get_clock().now().to_msg()
        self._telemetry.publish(msg)

    def _since_last_reading(self, busy_s: float) -> tuple[float, float]:
        """Mean modelled watts and busy share since the last telemetry."""
        now = time.monotonic()
        last, self._last_reading = self._last_reading, (now, self._energy_j, busy_s)
        if last is None or now <= last[0]:
            return math.nan, 0.0
        span = now - last[0]
        return (self._energy_j - last[1]) / span, min(1.0, (busy_s - last[2]) / span)


def main(args: list[str] | None = None) -> int:
    """Entry point of ``ros2 run lapdtr_ros device``."""
    return run_node(DeviceNode, args)


if __name__ == '__main__':
    sys.exit(main())

"""The device node: runs the stages that plans give to one device."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rclpy.event_handler import QoSLivelinessChangedInfo, SubscriptionEventCallbacks

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.errors import LapdtrError, UnknownNameError
from lapdtr_ros.execution.device import (
    Delivery,
    DeviceCore,
    DuplicateFrameError,
    Job,
    StageKey,
    Step,
    run_job,
)
from lapdtr_ros.execution.planners import PlannerWatch
from lapdtr_ros.execution.sessions import Elder, Session
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.msg import (
    CacheReport,
    DeviceTelemetry,
    FeatureMap,
    PartitionPlan,
    ResumeRequest,
    StreamStatus,
)
from lapdtr_ros.planning.plan import FleetPlan
from lapdtr_ros.scenario import Scenario, load_scenario

from .base import (
    ERROR,
    MOST_PLAN_BYTES,
    MOST_REPORT_BYTES,
    OK,
    WARN,
    Diagnosis,
    ManagedNode,
    declare,
    parameter,
    run_node,
)
from .handback import Handback
from .inlet import Inlet, Input
from .outputs import Outputs
from .telemetry import Gauge


@dataclass(frozen=True)
class DeviceParameters:
    """Parameters of the device node; those of energy and emulation are in `telemetry`."""

    device: str = parameter('', 'Name of this device in the scenario')
    device_class: str = parameter(
        '', 'Hardware class of this device; empty: as the scenario says. The planner follows it'
    )
    telemetry_hz: float = parameter(2.0, 'Rate of the telemetry [Hz]', minimum=0.1, maximum=100.0)
    result_listeners: int = parameter(
        1, 'Subscribers a result topic needs before its plan is ready: the source, sinks', minimum=1
    )


class DeviceNode(ManagedNode):
    """Runs the stages that plans give to this device and passes features on.

    Parameters:
        See `DeviceParameters`, `GaugeParameters`, `LinkParameters` and `CommonParameters`.

    Subscriptions:
        <fleet>/plan (PartitionPlan): what to load and run.
        <fleet>/active_plan (PartitionPlan): the same from the sources, while no planner is there.
        <fleet>/<device>/features (FeatureMap): inputs of this device's stages.
        <fleet>/stream_status (StreamStatus): tells which epochs and frames are done.
        <fleet>/resume_requests (ResumeRequest): who goes on with a frame after a loss.
        <fleet>/<device>/telemetry (DeviceTelemetry): finds another process of the same name.
        <fleet>/frame_traces (FrameTrace): while links are emulated or energy is measured.
        battery_topic (sensor_msgs/BatteryState): when one is given.

    Publishers:
        <fleet>/<device>/telemetry (DeviceTelemetry): state, at a fixed rate and when it changes.
        <fleet>/<other device>/features (FeatureMap): outputs for the next stage.
        <fleet>/<stream>/result (FrameResult): outputs of the last unit.
        <fleet>/cache_reports (CacheReport): what this device holds of frames after a loss.
    """

    def __init__(self) -> None:
        super().__init__('device')
        self.parameters = declare(self, DeviceParameters)
        self._session = Session.new()
        self._elder = Elder(self._session)
        self._planners = PlannerWatch()
        self._outputs: Outputs | None = None
        self._inlet: Inlet | None = None
        self._jobs: deque[Job] = deque()
        self._questions: dict[str, ResumeRequest] = {}
        self._counting = threading.Lock()
        self._busy_s = 0.0
        self._backlog = 0
        self._loader: Handback | None = None
        self._loading: set[StageKey] = set()
        self._reported_ready: tuple[int, ...] = ()
        self._frames = self._units = self._resent = self._duplicates = 0
        self._gauge: Gauge | None = None
        self._last_busy: tuple[float, float] | None = None

    def configure(self) -> None:
        """Read the scenario, create topics and start the threads."""
        name = self.parameters.device
        self._scenario: Scenario = load_scenario(self.common.scenario)
        if name not in self._scenario.fleet.devices:
            raise UnknownNameError('device', name, self._scenario.fleet.devices)
        if self.parameters.device_class:
            self._scenario = self._scenario.with_device_class(name, self.parameters.device_class)
        self._gauge = Gauge(self, self._scenario, name)
        self._core = DeviceCore(name, profile_model, self._gauge.cost_of)
        fleet = self.common.fleet
        self._telemetry = self.create_publisher(
            DeviceTelemetry,
            topics.telemetry(fleet, name),
            qos.telemetry(),
            qos_overriding_options=qos.overridable(),
        )
        self._reports = self.create_publisher(
            CacheReport, topics.cache_reports(fleet), qos.recovery()
        )
        self._outputs = Outputs(self, fleet, self._report_new_ready)
        self._loader = Handback(self, 'loader')

    def activate(self) -> None:
        """Listen to plans and frames."""
        fleet, name = self.common.fleet, self.parameters.device
        own, streams = topics.telemetry(fleet, name), len(self._scenario.file.streams)
        small = MOST_REPORT_BYTES
        self.listen(
            StreamStatus,
            topics.stream_status(fleet),
            self._on_stream_status,
            qos.stream_status(streams),
            small,
        )
        self.listen(
            PartitionPlan,
            topics.plan(fleet),
            self._on_plan,
            qos.plan(qos.PLANS_WAITING),
            MOST_PLAN_BYTES,
            SubscriptionEventCallbacks(liveliness=self._on_planners),
        )
        self.listen(
            PartitionPlan,
            topics.active_plan(fleet),
            self._on_active_plan,
            qos.active_plan(streams),
            MOST_PLAN_BYTES,
        )
        self.listen(
            ResumeRequest,
            topics.resume_requests(fleet),
            self._on_resume_request,
            qos.recovery(),
            small,
        )
        self.listen(DeviceTelemetry, own, self._on_own_telemetry, qos.telemetry(), small)
        assert self._gauge is not None
        self._gauge.listen()
        self.every(1.0 / self.parameters.telemetry_hz, self._publish_telemetry)
        self._features = Input(
            FeatureMap,
            topics.features(fleet, name),
            self._take,
            qos.frames(),
            self._most_frame_bytes(self._scenario.file.model.name),
        )
        self._inlet = Inlet(
            self.get_namespace(), 'features', [self._features], self.refuse, self._work
        )

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
        if self._gauge is not None:
            self._gauge.close()
        self._gauge = None
        if self._outputs is not None:
            self._outputs.close()
        self._outputs = None

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
            WARN if self.refused_messages else OK,
            self.last_refusal or 'all frames accepted',
            {
                'frames': str(self._frames),
                'rejected': str(self.refused_messages),
                'duplicates': str(self._duplicates),
                'resent': str(self._resent),
            },
        )
        planners, double = self._planners.problem, self._elder.problem
        assert self._gauge is not None
        return [
            stages,
            frames,
            *self._gauge.diagnose(),
            Diagnosis('planners', ERROR if planners else OK, planners or 'one at most'),
            Diagnosis('name', ERROR if double else OK, double or 'used once'),
        ]

    def _on_plan(self, msg: PartitionPlan) -> None:
        plan = conversions.fleet_plan_from_msg(msg)
        self._planners.admit(plan)
        self._adopt(plan)

    def _on_active_plan(self, msg: PartitionPlan) -> None:
        if self._planners.alive == 0:
            self._adopt(conversions.fleet_plan_from_msg(msg))

    def _on_planners(self, info: QoSLivelinessChangedInfo) -> None:
        plan = self._planners.set_alive(info.alive_count, info.not_alive_count_change)
        if plan is not None:
            self._adopt(plan)

    def _adopt(self, plan: FleetPlan) -> None:
        before = self._core.newest_epoch
        try:
            missing = self._core.apply(plan)
        except LapdtrError as error:
            self.refuse(f'plan {plan.epoch} of {plan.planner}: {error}')
            return
        if self._core.newest_epoch == before:
            return
        self.get_logger().info(f'plan {plan.epoch}: {plan.reason}')
        self._open_outputs(plan)
        for key in missing:
            if key not in self._loading:
                self._load(key)
        self._report_new_ready()
        for question in [q for q in self._questions.values() if q.epoch <= plan.epoch]:
            del self._questions[question.stream]
            self._report_holdings(question)

    def _open_outputs(self, plan: FleetPlan) -> None:
        """Be ready to send to all who may go on with this device's frames, also after a loss."""
        assert self._outputs is not None
        served = self._core.streams & plan.streams.keys()
        devices = {device for stream in served for device in plan.devices(stream)}
        self._outputs.open(devices - {self.parameters.device}, served)
        models = {plan.streams[stream].plan.model for stream in served}
        limits = [self._most_frame_bytes(model) for model in models]
        self._features.most_bytes = max([self._features.most_bytes, *limits])

    @staticmethod
    def _most_frame_bytes(model: str) -> int:
        profile = profile_model(model)
        largest = max(profile.picture_bytes, *(unit.output_bytes for unit in profile.units))
        return largest + MOST_REPORT_BYTES

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
                calibration=key.calibration,
                level=key.level,
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

    def _take(self, msg: FeatureMap, info: dict[str, Any]) -> None:
        """Check a frame that came in; in the inference thread, or in the executor by `drain`."""
        now = time.monotonic()
        waited_s = max(0.0, (time.time_ns() - info['received_timestamp']) * 1e-9)
        try:
            self._elder.check()
            step = self._core.accept(conversions.feature_from_msg(msg), now - waited_s)
            if isinstance(step, Delivery):
                self._resend([step])
            else:
                self._jobs.append(step)
        except DuplicateFrameError:
            with self._counting:
                self._duplicates += 1
        except Exception as error:  # a frame must never end the thread that runs all others
            self.refuse(str(error))

    def _work(self) -> None:
        """In the inference thread: run what waits and pass it on."""
        while self._jobs:
            job = self._jobs.popleft()
            began = time.monotonic()
            try:
                self._run(job)
            except Exception as error:  # as above
                self._core.failed(job)
                self.refuse(str(error))
            took_s = time.monotonic() - began
            self._busy_s += took_s
            self._backlog = len(self._jobs) + int((began - job.accepted_s) / took_s)

    def _run(self, job: Job) -> None:
        assert self._gauge is not None
        energy = self._gauge.begin()
        packet, record = run_job(self.parameters.device, job)
        record = self._gauge.settle(job, record, energy)
        step = self._core.finished(job, packet, record, time.monotonic())
        self._frames += 1
        self._units += record.stop - record.start
        if isinstance(step, Job):
            self._jobs.append(step)
        elif step is not None:
            self._deliver(step)

    def _deliver(self, delivery: Delivery) -> None:
        """Send an output on, over a link that may be emulated."""
        assert self._gauge is not None
        assert self._outputs is not None
        outputs = self._outputs
        target = delivery.target or self._scenario.sink(delivery.output.stream)
        size = delivery.output.packet.nbytes
        self._gauge.links.send(target, size, lambda: outputs.deliver(delivery))

    def _resend(self, steps: Iterable[Step]) -> None:
        """Go on with frames that this device had already run."""
        assert self._inlet is not None
        for step in steps:
            with self._counting:
                self._resent += 1
            if isinstance(step, Delivery):
                self._deliver(step)
            else:
                self._jobs.append(step)
                self._inlet.wake()

    def _on_stream_status(self, msg: StreamStatus) -> None:
        self._core.retire(msg.stream, msg.oldest_epoch)
        self._core.done(msg.stream, msg.session, msg.next_seq, frozenset(msg.under_way))

    def _on_resume_request(self, msg: ResumeRequest) -> None:
        if len(msg.seqs) > qos.MOST_IN_FLIGHT or len(msg.holders) not in (0, len(msg.seqs)):
            raise LapdtrError(
                f'request for {len(msg.seqs)} frames of {msg.stream!r} with {len(msg.holders)} '
                f'holders; at most {qos.MOST_IN_FLIGHT}, and a holder for each or none'
            )
        if not msg.holders:
            if msg.epoch <= self._core.newest_epoch:
                self._report_holdings(msg)
            elif msg.stream in self._core.streams:
                self._questions[msg.stream] = msg  # the plan is still on its way here
            return
        me = self.parameters.device
        seqs = [seq for seq, holder in zip(msg.seqs, msg.holders, strict=True) if holder == me]
        if seqs:
            now = time.monotonic()
            steps = self._core.resume(msg.stream, msg.session, seqs, msg.epoch, msg.round, now)
            self._note_stalls(steps)
            self._resend(steps)

    def _note_stalls(self, steps: Iterable[Step]) -> None:
        """A link that swallows frames shows in telemetry, so that the planner goes around it."""
        assert self._gauge is not None
        for step in steps:
            if isinstance(step, Delivery) and step.target is not None and step.unheard_s > 0.0:
                self._gauge.note_stall(step.target, step.output.packet.nbytes, step.unheard_s)

    def _report_holdings(self, question: ResumeRequest) -> None:
        """Tell a source what is here of its frames, also of those that still wait to be taken."""
        assert self._inlet is not None
        self._inlet.drain()
        holdings = self._core.holdings(
            question.stream, question.session, question.seqs, question.epoch, question.round
        )
        report = conversions.cache_report_to_msg(self.parameters.device, question, holdings)
        report.header.stamp = self.get_clock().now().to_msg()
        self._reports.publish(report)

    def _on_own_telemetry(self, msg: DeviceTelemetry) -> None:
        self._elder.heard(msg.session)

    def _ready_epochs(self) -> tuple[int, ...]:
        """Epochs that are loaded and whose next hop is there to receive."""
        return tuple(n for n in self._core.ready_epochs() if self._outputs_matched(n))

    def _outputs_matched(self, epoch: int) -> bool:
        if self._outputs is None:
            return False
        for stream, target in self._core.targets(epoch).items():
            needed = self.parameters.result_listeners if target is None else 1
            if self._outputs.listeners(stream, target) < needed:
                return False
        return True

    def _report_new_ready(self) -> None:
        if self._ready_epochs() != self._reported_ready:
            self._publish_telemetry()

    def _publish_telemetry(self) -> None:
        if self._elder.problem:
            return
        self._reported_ready = self._ready_epochs()
        held = self._core.loaded.values()
        memory_bytes = sum(getattr(runner, 'parameter_bytes', 0) for runner in held)
        msg = DeviceTelemetry(
            device=self.parameters.device,
            session=str(self._session),
            epoch=self._core.newest_epoch,
            device_class=self._scenario.fleet.devices[self.parameters.device].device_class,
            load=self._busy_share(),
            queue=self._backlog,
            memory_bytes=memory_bytes,
            kept_bytes=self._core.kept_bytes,
            ready_epochs=list(self._reported_ready),
            frames=self._frames,
            units=self._units,
            resent=self._resent,
            rejected=self.refused_messages,
            duplicates=self._duplicates,
            last_error=self.last_refusal,
        )
        assert self._gauge is not None
        self._gauge.fill(msg, memory_bytes)
        msg.header.stamp = self.get_clock().now().to_msg()
        self._telemetry.publish(msg)

    def _busy_share(self) -> float:
        """Share of the time since the last telemetry that the inference thread was busy."""
        now = time.monotonic()
        last, self._last_busy = self._last_busy, (now, self._busy_s)
        if last is None or now <= last[0]:
            return 0.0
        return min(1.0, (self._last_busy[1] - last[1]) / (now - last[0]))


def main(args: list[str] | None = None) -> int:
    """Entry point of ``ros2 run lapdtr_ros device``."""
    return run_node(DeviceNode, args)


if __name__ == '__main__':
    sys.exit(main())

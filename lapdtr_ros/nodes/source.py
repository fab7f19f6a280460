"""The source node: sends a camera's pictures into the pipeline and accounts for every frame."""

from __future__ import annotations

import dataclasses
import secrets
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.event_handler import (
    PublisherEventCallbacks,
    QoSLivelinessChangedInfo,
    SubscriptionEventCallbacks,
)
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from sensor_msgs.msg import CompressedImage, Image

from lapdtr_ros import camera_messages, conversions, qos, topics
from lapdtr_ros.datasets.pictures import Picture, PictureSequence
from lapdtr_ros.errors import LapdtrError, UnknownNameError
from lapdtr_ros.execution import frames
from lapdtr_ros.execution.frames import Feature, FrameOutcome, Packet, StageRecord
from lapdtr_ros.execution.planners import PlannerWatch
from lapdtr_ros.execution.rescue import Rescue
from lapdtr_ros.execution.source import EpochGate, FrameLedger, InFlight, check_result
from lapdtr_ros.models.facts import model_spec, profile_model
from lapdtr_ros.models.preprocess import encode_jpeg, resize_picture
from lapdtr_ros.msg import (
    FeatureMap,
    FrameResult,
    FrameTrace,
    PartitionPlan,
    StreamStatus,
)
from lapdtr_ros.planning.plan import JPEG, FleetPlan
from lapdtr_ros.scenario import ScenarioError, load_scenario

from .base import (
    ERROR,
    MOST_PLAN_BYTES,
    MOST_REPORT_BYTES,
    OK,
    STALE,
    WARN,
    Diagnosis,
    ManagedNode,
    changed,
    declare,
    parameter,
    run_node,
)
from .geometry import GeometryPublisher
from .inlet import Inlet, Input
from .mender import Mender
from .telemetry import Links

# How often the source looks for frames that a loss left behind; events usually tell it earlier.
_WATCH_S = 0.1
_SILENCE_S = 2.0
_COMPRESSED = '/compressed'


@dataclass(frozen=True)
class SourceParameters:
    """Parameters of the source node."""

    stream: str = parameter('', 'Name of the stream in the scenario')
    frames: int = parameter(
        0, 'Frames to send; 0: as the scenario says, or every picture once', minimum=0
    )
    trace_listeners: int = parameter(
        0, 'Subscribers that must hear the frame traces before the first frame', minimum=0
    )
    max_in_flight: int = parameter(
        0,
        'Most frames under way; 0: as the scenario says',
        minimum=0,
        maximum=qos.MOST_IN_FLIGHT,
        dynamic=True,
    )


class SourceNode(ManagedNode):
    """Sends one camera's pictures to the first stage of the newest ready plan.

    Pictures come from a dataset directory (every picture once, none dropped) or from an image
    topic (newest wins). At most ``max_in_flight`` frames are under way.

    Parameters:
        See `SourceParameters`, `LinkParameters` and `CommonParameters`.

    Subscriptions:
        <fleet>/plan (PartitionPlan)
        <fleet>/<device>/telemetry (DeviceTelemetry): of every device, for the ready epochs and
            to see it lost.
        <fleet>/<stream>/result (FrameResult): frees a credit.
        <fleet>/cache_reports (CacheReport): what devices hold of frames after a loss.
        the stream's image_topic (sensor_msgs/Image, or CompressedImage where the topic ends in
            ``/compressed``), when the scenario names one.

    Publishers:
        <fleet>/<first device>/features (FeatureMap): the picture, input of unit 0.
        <fleet>/frame_traces (FrameTrace): every finished, lost or refused frame.
        <fleet>/stream_status (StreamStatus): latched; how far the stream has come.
        <fleet>/active_plan (PartitionPlan): latched; the plan that frames are sent under.
        <fleet>/resume_requests (ResumeRequest): who goes on with a frame after a loss.
        the geometry of the pictures of a dataset, see `GeometryPublisher`.
    """

    def __init__(self) -> None:
        super().__init__('source')
        self.parameters = declare(self, SourceParameters)
        self._publishers_by_device: dict[str, Publisher] = {}
        self._camera: ThreadPoolExecutor | None = None
        self._links: Links | None = None
        self._results: Inlet | None = None
        # Results come in a thread of their own; what both threads touch is used under this lock.
        self._lock = threading.RLock()
        self._session = secrets.randbits(32)
        self._planners = PlannerWatch()
        self._ready_picture: Picture | None = None
        self._fetching = False
        self._seq = self._sent = self._finished = self._lost = self._refused = 0
        self._due = True
        self._last_error = ''
        self._epoch = self._reported_epoch = 0
        self._last_picture_s: float | None = None

    def configure(self) -> None:
        """Read the scenario and open the pictures."""
        scenario = load_scenario(self.common.scenario)
        name = self.parameters.stream
        self._stream = scenario.stream(name)
        self._execution = scenario.file.execution
        self._profile = profile_model(scenario.file.model.name)
        spec = model_spec(scenario.file.model.name)
        self._picture_size = spec.picture_shape[:2]
        self._devices = tuple(scenario.fleet.devices)
        dataset = scenario.dataset(name)
        if dataset is None and not self._stream.image_topic:
            raise ScenarioError(
                f'{scenario.path}: streams.{name}: has neither dataset nor image_topic; give one'
            )
        self._pictures = (
            PictureSequence(dataset, self._stream.agent, self._stream.camera, self._picture_size)
            if dataset is not None
            else None
        )
        self._limit = self.parameters.frames or self._stream.frames or len(self._pictures or ())
        self._ledger = FrameLedger(
            self.parameters.max_in_flight or self._execution.max_in_flight,
            self._execution.frame_timeout_s,
        )
        self.add_post_set_parameters_callback(self._on_parameters_set)
        self._gate = EpochGate(name)
        self._traces = self.create_publisher(
            FrameTrace,
            topics.frame_traces(self.common.fleet),
            qos.traces(),
            event_callbacks=self._pump_when_matched(),
        )
        # A live camera has a driver that publishes all this itself.
        self._geometry = (
            GeometryPublisher(
                self, self.common.fleet, name, self._stream.source, self._pump_when_matched()
            )
            if self._pictures is not None
            else None
        )
        self._fused = scenario.file.fusion is not None
        self._status = self.create_publisher(
            StreamStatus, topics.stream_status(self.common.fleet), qos.stream_status()
        )
        self._active_plan = self.create_publisher(
            PartitionPlan, topics.active_plan(self.common.fleet), qos.active_plan()
        )
        self._rescue = Rescue(name, self._ledger, self._gate)
        self._mender = Mender(
            self,
            self.common.fleet,
            name,
            self._session,
            self._rescue,
            self._lock,
            self._restart,
            self._pump,
        )
        self._links = Links(self, scenario, self._stream.source)
        self._camera = ThreadPoolExecutor(1, 'camera')

    def activate(self) -> None:
        """Listen to plans, devices and results, and start sending."""
        fleet = self.common.fleet
        stream = self.parameters.stream
        self.listen(
            PartitionPlan,
            topics.plan(fleet),
            self._on_plan,
            qos.plan(qos.PLANS_WAITING),
            MOST_PLAN_BYTES,
            SubscriptionEventCallbacks(liveliness=self._on_planners),
        )
        self._mender.listen(self._devices)
        results = Input(
            FrameResult,
            topics.result(fleet, stream),
            self._on_result,
            qos.frames(),
            self._profile.units[-1].output_bytes + MOST_REPORT_BYTES,
        )
        self._results = Inlet(self.get_namespace(), 'results', [results], self.refuse, self._pump)
        if self._pictures is None:
            topic = self._stream.image_topic
            assert topic is not None
            kind = CompressedImage if topic.endswith(_COMPRESSED) else Image
            self.listen(kind, topic, self._on_image, qos.camera())
            self._began_s = time.monotonic()
            self.every(_SILENCE_S, self._tell_silence)
        self.every(0.5, self._expire)
        self.every(0.5, self._publish_status)
        self.every(_WATCH_S, self._pump)
        if self._stream.rate_hz:
            self.every(1.0 / (self._stream.rate_hz * self._execution.device_seconds), self._tick)
        self._fetch()

    def deactivate(self) -> None:
        """Stop listening to results."""
        if self._results is not None:
            self._results.close()
        self._results = None

    def cleanup(self) -> None:
        """Stop the camera thread."""
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.shutdown(cancel_futures=True)
        if self._links is not None:
            self._links.close()
        self._links = None
        for publisher in self._publishers_by_device.values():
            self.destroy_publisher(publisher)
        self._publishers_by_device = {}

    def diagnose(self) -> list[Diagnosis]:
        """Whether pictures come in and results come back."""
        planners = self._planners.problem
        with self._lock:
            values = {
                'sent': str(self._sent),
                'finished': str(self._finished),
                'lost': str(self._lost),
                'refused': str(self._refused),
                'resumed': str(self._rescue.moved),
                'in_flight': str(len(self._ledger)),
            }
            level, text = self._state()
        return [
            Diagnosis('frames', level, text, values),
            Diagnosis('planners', ERROR if planners else OK, planners or 'one at most'),
        ]

    def _state(self) -> tuple[bytes, str]:
        if self._last_error:
            return WARN, self._last_error
        silence = self._quiet()
        if silence:
            return STALE, silence
        plan = self._gate.newest
        if plan is None:
            return WARN, 'no plan yet'
        if self._gate.stopped:
            return ERROR, 'stopped by the planner: no plan serves this stream'
        waiting = self._gate.waiting_for(plan)
        if waiting and self._gate.current() is None:
            return WARN, f'waiting for {", ".join(waiting)} to be ready for plan {plan.epoch}'
        return WARN if self._lost else OK, 'running'

    def _quiet(self) -> str:
        """What to say about pictures that do not come, empty when they do."""
        topic = self._stream.image_topic
        if topic is None:
            return '' if self._last_picture_s is not None else 'no picture yet'
        waited_s = time.monotonic() - (self._last_picture_s or self._began_s)
        if waited_s < _SILENCE_S:
            return ''
        publishers = self.count_publishers(topic)
        return f'no picture on {topic} for {waited_s:.0f} s; it has {publishers} publishers'

    def _tell_silence(self) -> None:
        silence = self._quiet()
        if silence:
            self.get_logger().warning(silence, throttle_duration_sec=10.0)

    def _on_parameters_set(self, parameters: list[Parameter]) -> None:
        credits = changed(parameters).get('max_in_flight')
        if credits is not None:
            self._ledger.credits = credits or self._execution.max_in_flight
            self._pump()

    def _on_plan(self, msg: PartitionPlan) -> None:
        plan = conversions.fleet_plan_from_msg(msg)
        self._planners.admit(plan)
        self._adopt(plan)

    def _on_planners(self, info: QoSLivelinessChangedInfo) -> None:
        plan = self._planners.set_alive(info.alive_count, info.not_alive_count_change)
        if plan is not None:
            self._adopt(plan)

    def _adopt(self, plan: FleetPlan) -> None:
        stream = self.parameters.stream
        with self._lock:
            self._gate.add_plan(plan)
            if stream in plan.streams:
                self._publisher(plan.devices(stream)[0])
        self._pump()

    def _on_image(self, msg: Image | CompressedImage) -> None:
        try:
            picture = camera_messages.any_picture_from_msg(msg)
        except LapdtrError as error:
            self._refused += 1
            self._problem(str(error))
            return
        self._last_picture_s = time.monotonic()
        ready = Picture(
            resize_picture(picture, self._picture_size),
            conversions.time_from_msg(msg.header.stamp),
            msg.header.frame_id,
        )
        with self._lock:
            self._ready_picture = ready
        self._pump()

    def _fetch(self) -> None:
        """Have the camera thread decode the next picture of the dataset."""
        with self._lock:
            if self._camera is None or self._pictures is None or self._seq >= self._limit:
                return
            if self._fetching or self._ready_picture is not None:
                return
            self._fetching = True
            taking = self._camera.submit(self._take_picture, self._pictures, self._seq)
        taking.add_done_callback(self._tell_failure)

    def _tell_failure(self, taking: Future[None]) -> None:
        error = None if taking.cancelled() else taking.exception()
        if error is not None:
            self.refuse(f'camera: {error}')

    def _take_picture(self, pictures: PictureSequence, index: int) -> None:
        """In the camera thread: decode a picture and send it at once if it may go."""
        picture, reason = None, ''
        try:
            picture = pictures[index]
        except Exception as error:  # whatever is wrong with a picture, the next one may be good
            reason = str(error)
        with self._lock:
            self._fetching = False
            if picture is None:
                self._refuse_picture(reason)
            else:
                self._last_picture_s = time.monotonic()
                self._ready_picture = picture
        if picture is None:
            self._fetch()
        else:
            self._pump()

    def _refuse_picture(self, reason: str) -> None:
        """Account for a picture of the dataset that cannot be read."""
        self._problem(reason)
        self._refused += 1
        stamp_ns = self._pictures.stamp_ns(self._seq) if self._pictures is not None else 0
        frame = InFlight(self._seq, 0, time.monotonic(), stamp_ns, '')
        self._report(frame, frames.REFUSED, ())
        self._seq += 1

    def _tick(self) -> None:
        """The stream's frame rate allows one more picture; missed ones are not made up."""
        self._due = True
        self._pump()

    def _pump(self) -> None:
        """See to frames that a loss left behind, then send the picture in hand if it may go."""
        with self._lock:
            plan = self._gate.current()
            if plan is None:
                return
            publisher = self._publisher(plan.devices(self.parameters.stream)[0])
            if publisher.get_subscription_count() == 0:
                return
            if self._mender.mend():
                self._publish_status()
            sent = self._send_next(publisher, plan)
        if sent:
            self._fetch()

    def _send_next(self, publisher: Publisher, plan: FleetPlan) -> bool:
        """Send the picture in hand if a credit, the rate and the listeners allow it."""
        if self._ready_picture is None or not self._due or not self._ledger.may_send:
            return False
        if self._sent == 0 and not self._heard_by_all():
            return False
        picture, self._ready_picture = self._ready_picture, None
        self._due = not self._stream.rate_hz
        self._send(publisher, plan, picture)
        return True

    def _heard_by_all(self) -> bool:
        """Whether nothing is lost for want of a listener; only the start has to wait."""
        placed = self._geometry is None or self._geometry.heard or not self._fused
        traced = self._traces.get_subscription_count() >= self.parameters.trace_listeners
        return placed and traced

    def _send(self, publisher: Publisher, plan: FleetPlan, picture: Picture) -> None:
        packet = self._pack(plan.streams[self.parameters.stream].plan.picture, picture.pixels)
        now = time.monotonic()
        frame = InFlight(
            self._seq,
            plan.epoch,
            now,
            picture.stamp_ns,
            picture.frame_id,
            packet,
            self._rescue.path(plan),
            now,
        )
        self._ledger.sent(frame)
        self._transmit(publisher, frame)
        if self._geometry is not None:
            self._geometry.publish(picture)
        self._sent += 1
        self._seq += 1
        if plan.epoch != self._epoch:
            self._epoch = plan.epoch
            stamp = self.get_clock().now().to_msg()
            self._active_plan.publish(conversions.fleet_plan_to_msg(plan, stamp))

    def _restart(self, frame: InFlight, round: int) -> None:
        """Send the picture of a frame again, of which nothing else is left."""
        publisher = self._publisher(frame.path[0].device)
        self._transmit(publisher, frame, round)

    def _transmit(self, publisher: Publisher, frame: InFlight, round: int = 0) -> None:
        """Publish a picture, over a link that may be emulated."""
        assert frame.packet is not None
        assert self._links is not None
        message = conversions.feature_to_msg(self._feature(frame, round))
        device, size = frame.path[0].device, frame.packet.nbytes
        self._links.send(device, size, lambda: publisher.publish(message))

    def _feature(self, frame: InFlight, round: int = 0) -> Feature:
        assert frame.packet is not None
        return Feature(
            self.parameters.stream,
            frame.seq,
            frame.epoch,
            0,
            frame.packet,
            frame.stamp_ns,
            frame.frame_id,
            (),
            self._session,
            round,
        )

    def _pack(self, coding: str, pixels: np.ndarray) -> Packet:
        if coding == JPEG:
            data = encode_jpeg(pixels, self._execution.jpeg_quality)
            return Packet(frames.JPEG, 'uint8', pixels.shape, data)
        return Packet.of_array(pixels, frames.RAW)

    def _on_result(self, msg: FrameResult, _: dict[str, Any]) -> None:
        """In the thread of the results; the credit that it frees is used before it is reported."""
        received_s = time.monotonic()
        result = conversions.result_from_msg(msg)
        check_result(result, self.parameters.stream, self._profile)
        with self._lock:
            mine = result.session == self._session
            frame = self._ledger.finished(result.seq) if mine else None
            if frame is None:
                return
            self._finished += 1
        self._pump()
        frame = dataclasses.replace(frame, epoch=result.epoch)
        self._report(frame, frames.FINISHED, result.trace, received_s)
        with self._lock:
            if self._ledger.oldest_epoch(self._epoch) != self._reported_epoch:
                self._publish_status()

    def _publish_status(self) -> None:
        with self._lock:
            self._reported_epoch = self._ledger.oldest_epoch(self._epoch)
            status = StreamStatus(
                stream=self.parameters.stream,
                session=self._session,
                oldest_epoch=self._reported_epoch,
                next_seq=self._seq,
                under_way=[frame.seq for frame in self._ledger.frames],
            )
        status.header.stamp = self.get_clock().now().to_msg()
        self._status.publish(status)

    def _expire(self) -> None:
        with self._lock:
            expired = self._ledger.expired(time.monotonic())
        for frame in expired:
            self._lost += 1
            self.get_logger().warning(
                f'{self.parameters.stream} frame {frame.seq} lost: no result after '
                f'{self._execution.frame_timeout_s:g} s'
            )
            self._report(frame, frames.LOST, ())
        self._pump()

    def _report(
        self,
        frame: InFlight,
        outcome: str,
        trace: tuple[StageRecord, ...],
        ended_s: float | None = None,
    ) -> None:
        ended_s = time.monotonic() if ended_s is None else ended_s
        self._traces.publish(
            conversions.outcome_to_msg(
                FrameOutcome(
                    stream=self.parameters.stream,
                    seq=frame.seq,
                    epoch=frame.epoch,
                    outcome=outcome,
                    latency_s=ended_s - frame.sent_s,
                    picture_bytes=frame.picture_bytes,
                    stamp_ns=frame.stamp_ns,
                    frame_id=frame.frame_id,
                    trace=trace,
                    resumed=frame.resumed,
                )
            )
        )

    def _publisher(self, device: str) -> Publisher:
        if device not in self._devices:
            raise UnknownNameError('device', device, self._devices)
        if device not in self._publishers_by_device:
            self._publishers_by_device[device] = self.create_publisher(
                FeatureMap,
                topics.features(self.common.fleet, device),
                qos.frames(),
                event_callbacks=self._pump_when_matched(),
            )
        return self._publishers_by_device[device]

    def _pump_when_matched(self) -> PublisherEventCallbacks:
        return PublisherEventCallbacks(matched=lambda _: self._pump())

    def _problem(self, reason: str) -> None:
        self._last_error = reason
        self.get_logger().warning(reason, throttle_duration_sec=1.0)


def main(args: list[str] | None = None) -> int:
    """Entry point of ``ros2 run lapdtr_ros source``."""
    return run_node(SourceNode, args)


if __name__ == '__main__':
    sys.exit(main())

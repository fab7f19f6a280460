"""What a device does with plans and frames (paper Alg. 3), free of ROS.

Plans arrive in one thread and frames in another, so `DeviceCore` guards itself; `run_job` touches
nothing but its job.

After a loss a frame goes on from the newest feature that survived. So a device keeps the output of
every frame until the frame is finished, and a frame that comes again in a later *round* is not run
again: what was kept, or what is still being run, goes on its way under the new plan.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.features.packing import check
from lapdtr_ros.planning.plan import CutSetting, FleetPlan, PlanError, Stage
from lapdtr_ros.planning.profile import ModelProfile

from .frames import FEATURES, JPEG, RAW, Feature, Holding, Packet, PacketError, Result, StageRecord

# Frames that are known again when they come twice; far more than are ever under way.
_REMEMBERED_FRAMES = 2048

# Outputs kept per stream: twice the most frames in flight, for the word that a frame is finished
# comes late. A lost device's frames beyond that go on from their picture.
_KEPT_PER_STREAM = 128

# Plans that are kept while sources are silent.
_MOST_EPOCHS = 16

# A planner counts epochs up by one; a jump beyond this comes from a broken or hostile message.
_GREATEST_EPOCH_STEP = 1_000_000


_P = ParamSpec('_P')
_R = TypeVar('_R')


def _exclusive(
    method: Callable[Concatenate[DeviceCore, _P], _R],
) -> Callable[Concatenate[DeviceCore, _P], _R]:
    """One thread at a time inside a `DeviceCore`."""

    @functools.wraps(method)
    def guarded(self: DeviceCore, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self._lock:
            return method(self, *args, **kwargs)

    return guarded


class Runner(Protocol):
    """A loaded stage; see `lapdtr_ros.execution.stage.StageRunner`."""

    def run_packet(self, packet: Packet, start: int, stop: int, cut: CutSetting) -> Packet:
        """Run units on a packet and pack the output."""


@dataclass(frozen=True)
class StageKey:
    """What has to be loaded to run a stage; stages of several streams may share it."""

    model: str
    weights: str
    start: int
    stop: int
    level: int = 0
    calibration: str = ''


@dataclass(frozen=True, slots=True)
class FrameId:
    """A frame of one life of its source; numbers start again when a source does."""

    stream: str
    session: int
    seq: int


class RefusedFrameError(LapdtrError):
    """A feature map this device will not run: malformed, unknown epoch or wrong unit."""


class DuplicateFrameError(LapdtrError):
    """A feature map this device has already taken, or one of a plan that is over."""


class RefusedPlanError(LapdtrError):
    """A plan that no planner in its right mind could have made."""


class RefusedReportError(LapdtrError):
    """A word about a stream that cannot be true."""


@dataclass(frozen=True)
class Job:
    """One accepted frame, with all that running it needs.

    Attributes:
        feature: input of unit ``start``.
        runner: loaded units, which stay loaded as long as the job does.
        start: first unit to run; inside the stage when the frame goes on after a loss.
        stage: this device's stage in the plan the frame was accepted under.
        last: whether its output is the result.
        energy_j: modelled energy of running it and sending its output.
        accepted_s: time of acceptance on the steady clock.
    """

    feature: Feature
    runner: Runner
    start: int
    stage: Stage
    last: bool
    energy_j: float
    accepted_s: float


@dataclass(frozen=True)
class Delivery:
    """An output on its way: to another device, or to those who wait for the result.

    Attributes:
        target: device that goes on with it; None when it is the result.
        unheard_s: how long ago it was sent to the same device under the same plan, if it was;
            its source has asked since and found nothing there.
    """

    target: str | None
    output: Feature | Result
    unheard_s: float = 0.0


Step = Job | Delivery


@dataclass(slots=True)
class _Frame:
    """Where a frame stands on this device.

    Attributes:
        epoch: plan that its output goes on under.
        round: newest round in which it came or was asked to go on.
        reached: unit that the newest output of this device is the input of, or will be.
        job: while it waits or runs.
        kept: output, until the frame is finished.
        sent: plan and device that the output was last sent under and to, and when first.
    """

    epoch: int
    round: int
    reached: int
    job: Job | None = None
    kept: Feature | Result | None = None
    sent: tuple[int, str, float] | None = None


@dataclass
class _Epoch:
    plan: FleetPlan
    keys: dict[str, StageKey] = field(default_factory=dict)


class DeviceCore:
    """Plans, loaded stages, admission of frames and their way on of one device.

    Args:
        device: name of this device.
        profile_of: gives the `ModelProfile` of a model name.
        energy_of: modelled joules per frame that a stage of a stream costs this device.
    """

    def __init__(
        self,
        device: str,
        profile_of: Callable[[str], ModelProfile],
        energy_of: Callable[[FleetPlan, str], float],
    ) -> None:
        self.device = device
        self._profile_of = profile_of
        self._energy_of = energy_of
        self._lock = threading.RLock()
        self._epochs: dict[int, _Epoch] = {}
        self._energy: dict[tuple[int, str], float] = {}
        self._runners: dict[StageKey, Runner] = {}
        self._failed: dict[StageKey, str] = {}
        self._oldest: dict[str, int] = {}
        self._frames: OrderedDict[FrameId, _Frame] = OrderedDict()
        self._kept: dict[str, OrderedDict[FrameId, int]] = {}

    @property
    def newest(self) -> FleetPlan | None:
        """The newest plan this device knows."""
        with self._lock:
            return self._epochs[max(self._epochs)].plan if self._epochs else None

    @property
    def newest_epoch(self) -> int:
        """Number of the newest plan this device knows, 0 before the first."""
        with self._lock:
            return max(self._epochs, default=0)

    @property
    def streams(self) -> frozenset[str]:
        """Streams that any known plan gives this device a stage of."""
        with self._lock:
            return frozenset(s for epoch in self._epochs.values() for s in epoch.keys)

    @property
    def loaded(self) -> Mapping[StageKey, Runner]:
        """Stages in memory."""
        with self._lock:
            return dict(self._runners)

    @property
    def kept_bytes(self) -> int:
        """Payload bytes that are kept for frames that are not finished."""
        with self._lock:
            return sum(sum(kept.values()) for kept in self._kept.values())

    # --- Plans -----------------------------------------------------------------------------------

    @_exclusive
    def apply(self, plan: FleetPlan) -> tuple[StageKey, ...]:
        """Take a plan; returns the stages that must be loaded for it.

        A plan that is not newer than the newest known one is ignored.

        Raises:
            UnknownNameError: a model that this device does not know.
            RefusedPlanError: an epoch or a number of units that cannot be meant.
        """
        newest = max(self._epochs, default=0)
        if plan.epoch <= newest:
            return ()
        if newest and plan.epoch > newest + _GREATEST_EPOCH_STEP:
            raise RefusedPlanError(
                f'plan {plan.epoch} of {plan.planner} after plan {newest}: epochs rise in small '
                f'steps; restart the planner so that it learns the epoch from the devices'
            )
        epoch = _Epoch(plan)
        for stream, decision in plan.streams.items():
            units = len(self._profile_of(decision.plan.model))
            if decision.plan.units != units:
                raise RefusedPlanError(
                    f'plan {plan.epoch} of {plan.planner}: stages of {stream} cover '
                    f'{decision.plan.units} units, {decision.plan.model} has {units}'
                )
            for stage in decision.plan.stages:
                if stage.device == self.device:
                    epoch.keys[stream] = StageKey(
                        decision.plan.model,
                        decision.weights,
                        stage.start,
                        stage.stop,
                        stage.level,
                        decision.calibration,
                    )
        energy = {(plan.epoch, stream): self._energy_of(plan, stream) for stream in epoch.keys}
        self._epochs[plan.epoch] = epoch
        self._energy |= energy
        for number in sorted(self._epochs)[:-_MOST_EPOCHS]:
            self._forget_epoch(number)
        self._unload()
        return tuple(key for key in set(epoch.keys.values()) if key not in self._runners)

    @_exclusive
    def loaded_stage(self, key: StageKey, runner: Runner) -> None:
        """A stage has been loaded; it is kept only if a plan still wants it."""
        self._failed.pop(key, None)
        if key in self._wanted():
            self._runners[key] = runner

    @_exclusive
    def failed_stage(self, key: StageKey, reason: str) -> None:
        """A stage could not be loaded; its epochs never become ready."""
        if key in self._wanted():
            self._failed[key] = reason

    @_exclusive
    def ready_epochs(self) -> tuple[int, ...]:
        """Epochs whose stages on this device are all in memory."""
        return tuple(
            number
            for number, epoch in sorted(self._epochs.items())
            if all(key in self._runners for key in epoch.keys.values())
        )

    @_exclusive
    def targets(self, epoch: int) -> dict[str, str | None]:
        """Stream -> device that takes this device's output, None after the last unit."""
        known = self._epochs[epoch]
        return {stream: _next_device(known.plan, stream, self.device) for stream in known.keys}

    @_exclusive
    def retire(self, stream: str, oldest_epoch: int) -> None:
        """Forget what frames of ``stream`` below ``oldest_epoch`` needed; they are all done.

        Raises:
            RefusedReportError: an epoch that no plan known here can have.
        """
        newest = max(self._epochs, default=0)
        if not any(stream in epoch.plan.streams for epoch in self._epochs.values()):
            return
        if oldest_epoch > newest + _GREATEST_EPOCH_STEP:
            raise RefusedReportError(
                f'status of {stream} tells of epoch {oldest_epoch}; the newest plan is {newest}'
            )
        # A source may be ahead of this device by a plan that gives the device nothing to do.
        oldest = min(oldest_epoch, newest)
        self._oldest[stream] = max(oldest, self._oldest.get(stream, 0))
        for number in [n for n in self._epochs if n < newest]:
            epoch = self._epochs[number]
            for name in [s for s in epoch.keys if number < self._oldest.get(s, 0)]:
                del epoch.keys[name]
                del self._energy[number, name]
            if not epoch.keys and number < min(self._oldest.values()):
                del self._epochs[number]
        self._unload()

    def failures(self) -> Mapping[StageKey, str]:
        """Stages that could not be loaded, with the reason."""
        with self._lock:
            return dict(self._failed)

    # --- Frames ----------------------------------------------------------------------------------

    @_exclusive
    def accept(self, feature: Feature, now: float) -> Step:
        """Check a feature map and say what is to be done with it.

        Returns:
            A `Job`, or what was kept of the frame as a `Delivery` when it comes in a new round.

        Raises:
            RefusedFrameError: unknown epoch, stream or unit, or a payload that does not fit.
            DuplicateFrameError: the frame is here already, or its plan is over.
        """
        job = self._job(feature, now)
        frame_id = _id_of(feature)
        frame = self._frames.get(frame_id)
        if frame is None:
            frame = self._remember(frame_id, _Frame(feature.epoch, feature.round, job.stage.stop))
        elif not self._is_news(feature, frame):
            raise DuplicateFrameError(self._say(feature, 'already taken'))
        else:
            frame.epoch, frame.round = feature.epoch, feature.round
            if feature.unit < frame.reached:
                if frame.job is not None:
                    raise DuplicateFrameError(
                        self._say(feature, f'in hand, goes on under epoch {feature.epoch}')
                    )
                if frame.kept is not None:
                    return self._onward(frame, now)
        frame.reached = job.stage.stop
        frame.job = job
        return job

    @_exclusive
    def finished(self, job: Job, packet: Packet, record: StageRecord, now: float) -> Step | None:
        """A job was run; keeps the output and says what is to be done with it.

        Args:
            job: what was run.
            packet: its output.
            record: entry of the frame's trace.
            now: steady clock.

        Returns:
            A `Delivery`; a `Job` when the plan has changed and this device also runs what comes
            next; None when the plan that the frame is under is over: its source will ask for it.
        """
        feature = job.feature
        frame_id = _id_of(feature)
        frame = self._frames.get(frame_id)
        if frame is None:
            stop = job.stage.stop
            frame = self._remember(frame_id, _Frame(feature.epoch, feature.round, stop))
        frame.job = None
        frame.kept = _output(job, packet, record, frame)
        self._keep(frame_id, packet.nbytes)
        if not isinstance(frame.kept, Result) and self._is_over(feature.stream, frame.epoch):
            return None
        return self._onward(frame, now)

    @_exclusive
    def failed(self, job: Job) -> None:
        """A job could not be run; a later round of the frame may try again."""
        frame = self._frames.get(_id_of(job.feature))
        if frame is not None:
            frame.job = None

    @_exclusive
    def holdings(
        self, stream: str, session: int, seqs: Iterable[int], epoch: int, round: int
    ) -> list[Holding]:
        """What this device has of each of the frames; frames it has nothing of are left out.

        Of those it takes no copy of an earlier round any more: one that is still under way here
        will be sent again by who sent it, and would otherwise be run twice.

        Raises:
            RefusedReportError: a plan or a stream of it that is not known here.
        """
        self._check_known(stream, epoch)
        found = []
        for seq in seqs:
            frame_id = FrameId(stream, session, seq)
            frame = self._frames.get(frame_id)
            if frame is not None and frame.job is not None:
                found.append(Holding(seq, frame.job.start, True))
            elif frame is not None and frame.kept is not None:
                found.append(Holding(seq, self._unit_of(frame.kept), False))
            elif frame is None or frame.round < round:
                self._remember(frame_id, _Frame(epoch, round, 0))
        return found

    @_exclusive
    def resume(
        self, stream: str, session: int, seqs: Iterable[int], epoch: int, round: int, now: float
    ) -> list[Step]:
        """Go on with frames under another plan, each from the newest that this device has of it.

        Args:
            stream: camera stream.
            session: of its source.
            seqs: frames.
            epoch: plan that they go on under.
            round: rises each time a frame is sent on again.
            now: steady clock.

        Returns:
            What is to be done at once. A frame in hand goes on by itself when it has been run.

        Raises:
            RefusedReportError: a plan or a stream of it that is not known here.
        """
        self._check_known(stream, epoch)
        steps: list[Step] = []
        for seq in seqs:
            frame = self._frames.get(FrameId(stream, session, seq))
            if frame is None or round <= frame.round:
                continue
            frame.epoch, frame.round = epoch, round
            if frame.job is None and frame.kept is not None:
                steps.append(self._onward(frame, now))
        return steps

    @_exclusive
    def done(self, stream: str, session: int, next_seq: int, under_way: Collection[int]) -> None:
        """Free what was kept for finished frames.

        Args:
            stream: camera stream.
            session: of its source; frames of its earlier lives are over, too.
            next_seq: number of the next frame that its source will send.
            under_way: frames below that are not finished.
        """
        over = [
            frame_id
            for frame_id in self._kept.get(stream, {})
            if frame_id.session != session
            or (frame_id.seq < next_seq and frame_id.seq not in under_way)
        ]
        for frame_id in over:
            self._release(frame_id)

    def _check_known(self, stream: str, epoch: int) -> None:
        known = self._epochs.get(epoch)
        if known is None or stream not in known.plan.streams:
            raise RefusedReportError(
                f'{stream[:40]!r} is to go on under plan {epoch}, which gives it no stages or is '
                f'not known to {self.device}'
            )

    def _job(self, feature: Feature, now: float) -> Job:
        """The job that a feature map from the network would be."""
        epoch = self._epochs.get(feature.epoch)
        if epoch is None:
            if feature.epoch < max(self._epochs, default=0):
                raise DuplicateFrameError(self._say(feature, f'epoch {feature.epoch} is over'))
            raise RefusedFrameError(self._say(feature, f'unknown epoch {feature.epoch}'))
        key = epoch.keys.get(feature.stream)
        if key is None:
            raise RefusedFrameError(
                self._say(feature, f'epoch {feature.epoch} gives this device no stage of it')
            )
        if not key.start <= feature.unit < key.stop:
            raise RefusedFrameError(
                self._say(
                    feature,
                    f'input of unit {feature.unit}, but its stage runs units {key.start} to '
                    f'{key.stop - 1}',
                )
            )
        self._check_packet(feature, key)
        return self._job_of(feature, key, now)

    def _job_of(self, feature: Feature, key: StageKey, now: float) -> Job:
        runner = self._runners.get(key)
        if runner is None:
            raise RefusedFrameError(self._say(feature, f'epoch {feature.epoch} is not loaded'))
        plan = self._epochs[feature.epoch].plan.streams[feature.stream].plan
        share = self._share(key, feature.unit)
        return Job(
            feature,
            runner,
            feature.unit,
            plan.stage_at(key.start),
            key.stop == plan.units,
            share * self._energy[feature.epoch, feature.stream],
            now,
        )

    def _onward(self, frame: _Frame, now: float) -> Step:
        """Where the kept output of a frame goes under the plan the frame is under now."""
        kept = frame.kept
        assert kept is not None
        if isinstance(kept, Result):
            return Delivery(None, dataclasses.replace(kept, epoch=frame.epoch))
        feature = dataclasses.replace(kept, epoch=frame.epoch, round=frame.round)
        epoch = self._epochs[frame.epoch]
        stage = epoch.plan.streams[feature.stream].plan.stage_at(feature.unit)
        if stage.device != self.device:
            if frame.sent is None or frame.sent[:2] != (frame.epoch, stage.device):
                frame.sent = frame.epoch, stage.device, now
            return Delivery(stage.device, feature, now - frame.sent[2])
        frame.job = self._job_of(feature, epoch.keys[feature.stream], now)
        frame.reached = frame.job.stage.stop
        return frame.job

    def _is_over(self, stream: str, epoch: int) -> bool:
        return epoch not in self._epochs or epoch < self._oldest.get(stream, 0)

    @staticmethod
    def _is_news(feature: Feature, frame: _Frame) -> bool:
        """Whether a frame that was here before is sent on again, or comes back for later units."""
        if feature.round == frame.round:
            return feature.unit >= frame.reached
        return feature.round > frame.round

    def _unit_of(self, output: Feature | Result) -> int:
        if isinstance(output, Feature):
            return output.unit
        return output.trace[-1].stop

    def _share(self, key: StageKey, start: int) -> float:
        """Part of a stage's work that is left from unit ``start`` on."""
        if start == key.start:
            return 1.0
        flops = [unit.flops for unit in self._profile_of(key.model).units[key.start : key.stop]]
        total = sum(flops)
        return sum(flops[start - key.start :]) / total if total else 0.0

    def _wanted(self) -> set[StageKey]:
        return {key for epoch in self._epochs.values() for key in epoch.keys.values()}

    def _unload(self) -> None:
        wanted = self._wanted()
        self._runners = {key: runner for key, runner in self._runners.items() if key in wanted}
        self._failed = {key: reason for key, reason in self._failed.items() if key in wanted}

    def _forget_epoch(self, number: int) -> None:
        for stream in self._epochs.pop(number).keys:
            del self._energy[number, stream]

    def _remember(self, frame_id: FrameId, frame: _Frame) -> _Frame:
        self._frames[frame_id] = frame
        if len(self._frames) > _REMEMBERED_FRAMES:
            oldest, _ = self._frames.popitem(last=False)
            if oldest in self._kept.get(oldest.stream, ()):
                del self._kept[oldest.stream][oldest]
        return frame

    def _keep(self, frame_id: FrameId, nbytes: int) -> None:
        kept = self._kept.setdefault(frame_id.stream, OrderedDict())
        kept[frame_id] = nbytes
        if len(kept) > _KEPT_PER_STREAM:
            self._release(next(iter(kept)))

    def _release(self, frame_id: FrameId) -> None:
        del self._kept[frame_id.stream][frame_id]
        self._frames[frame_id].kept = None

    def _check_packet(self, feature: Feature, key: StageKey) -> None:
        profile = self._profile_of(key.model)
        if feature.unit == 0:
            codings: tuple[str, ...] = (RAW, JPEG)
            shape: tuple[int, ...] = profile.picture_shape
        else:
            codings = (FEATURES,)
            shape = (1, *profile.units[feature.unit - 1].output_shape)
        packet = feature.packet
        if packet.coding not in codings:
            raise RefusedFrameError(
                self._say(
                    feature,
                    f'unit {feature.unit} takes {" or ".join(codings)}, got {packet.coding}',
                )
            )
        if packet.coding == JPEG and packet.nbytes > profile.picture_bytes:
            raise RefusedFrameError(
                self._say(feature, f'JPEG of {packet.nbytes} bytes; limit {profile.picture_bytes}')
            )
        try:
            check(packet, shape)
        except (PacketError, PlanError) as error:
            raise RefusedFrameError(self._say(feature, str(error))) from None

    def _say(self, feature: Feature, what: str) -> str:
        return f'{feature.stream} frame {feature.seq} refused by {self.device}: {what}'


def _id_of(feature: Feature) -> FrameId:
    return FrameId(feature.stream, feature.session, feature.seq)


def _next_device(plan: FleetPlan, stream: str, device: str) -> str | None:
    devices = plan.devices(stream)
    position = devices.index(device)
    return devices[position + 1] if position + 1 < len(devices) else None


def _output(job: Job, packet: Packet, record: StageRecord, frame: _Frame) -> Feature | Result:
    feature = job.feature
    trace = (*feature.trace, record)
    if job.last:
        return Result(
            feature.stream,
            feature.seq,
            frame.epoch,
            record.device,
            packet,
            feature.stamp_ns,
            feature.frame_id,
            trace,
            feature.session,
        )
    return dataclasses.replace(
        feature,
        epoch=frame.epoch,
        unit=job.stage.stop,
        packet=packet,
        trace=trace,
        round=frame.round,
    )


def run_job(device: str, job: Job) -> tuple[Packet, StageRecord]:
    """Run a job; belongs to the inference thread.

    Returns:
        The output of the stage and the entry of the frame's trace.

    Raises:
        LapdtrError: the picture cannot be decoded or the input holds NaN or infinity.
    """
    started_ns = time.time_ns()
    started = time.monotonic()
    feature = job.feature
    packet = job.runner.run_packet(feature.packet, job.start, job.stage.stop, job.stage.cut)
    record = StageRecord(
        device=device,
        start=job.start,
        stop=job.stage.stop,
        started_ns=started_ns,
        queue_s=started - job.accepted_s,
        compute_s=time.monotonic() - started,
        received_bytes=feature.packet.nbytes,
        sent_bytes=packet.nbytes,
        energy_j=job.energy_j,
    )
    return packet, record

"""What a device does with plans and frames (paper Alg. 3), free of ROS.

Plans arrive in one thread and frames in another, so `DeviceCore` guards itself; `run_job` touches
nothing but its job.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np

from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.models.preprocess import decode_jpeg
from lapdtr_ros.planning.plan import FleetPlan, Stage
from lapdtr_ros.planning.profile import ModelProfile

from .frames import FEATURES, JPEG, RAW, Feature, Packet, Result, StageRecord

_REMEMBERED_FRAMES = 4096


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

    def run(self, array: np.ndarray) -> np.ndarray:
        """Run all units of the stage."""


@dataclass(frozen=True)
class StageKey:
    """What has to be loaded to run a stage; stages of several streams may share it."""

    model: str
    weights: str
    start: int
    stop: int


class RefusedFrameError(LapdtrError):
    """A feature map this device will not run: malformed, unknown epoch or wrong unit."""


class DuplicateFrameError(LapdtrError):
    """A feature map this device has already taken."""


@dataclass(frozen=True)
class Job:
    """One accepted frame, with all that running it and passing it on needs.

    Attributes:
        target: device that takes the output; None when it is the result.
        accepted_s: time of acceptance on the steady clock.
    """

    feature: Feature
    runner: Runner
    stage: Stage
    target: str | None
    energy_j: float
    accepted_s: float


@dataclass
class _Epoch:
    plan: FleetPlan
    keys: dict[str, StageKey] = field(default_factory=dict)


class DeviceCore:
    """Plans, loaded stages and admission of frames of one device.

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
        self._seen: OrderedDict[tuple[str, int, int], None] = OrderedDict()

    @property
    def newest(self) -> FleetPlan | None:
        """The newest plan this device knows."""
        return self._epochs[max(self._epochs)].plan if self._epochs else None

    @property
    def loaded(self) -> Mapping[StageKey, Runner]:
        """Stages in memory."""
        with self._lock:
            return dict(self._runners)

    @_exclusive
    def apply(self, plan: FleetPlan) -> tuple[StageKey, ...]:
        """Take a plan; returns the stages that must be loaded for it.

        A plan that is not newer than the newest known one is ignored.
        """
        if self._epochs and plan.epoch <= max(self._epochs):
            return ()
        epoch = _Epoch(plan)
        for stream, decision in plan.streams.items():
            for stage in decision.plan.stages:
                if stage.device == self.device:
                    epoch.keys[stream] = StageKey(
                        decision.plan.model, decision.weights, stage.start, stage.stop
                    )
                    self._energy[plan.epoch, stream] = self._energy_of(plan, stream)
        self._epochs[plan.epoch] = epoch
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
    def accept(self, feature: Feature, now: float) -> Job:
        """Check a feature map and turn it into a job.

        Raises:
            RefusedFrameError: unknown epoch, stream or unit, or a payload that does not fit.
            DuplicateFrameError: the frame was taken before.
        """
        epoch = self._epochs.get(feature.epoch)
        if epoch is None:
            raise RefusedFrameError(self._say(feature, f'unknown epoch {feature.epoch}'))
        key = epoch.keys.get(feature.stream)
        if key is None:
            raise RefusedFrameError(
                self._say(feature, f'epoch {feature.epoch} gives this device no stage of it')
            )
        if feature.unit != key.start:
            raise RefusedFrameError(
                self._say(
                    feature, f'input of unit {feature.unit}, but its stage starts at {key.start}'
                )
            )
        runner = self._runners.get(key)
        if runner is None:
            raise RefusedFrameError(self._say(feature, f'epoch {feature.epoch} is not loaded'))
        self._check_packet(feature, key)
        self._remember(feature)
        plan = epoch.plan.streams[feature.stream].plan
        return Job(
            feature,
            runner,
            plan.stage_at(key.start),
            _next_device(epoch.plan, feature.stream, self.device),
            self._energy[feature.epoch, feature.stream],
            now,
        )

    @_exclusive
    def retire(self, stream: str, oldest_epoch: int) -> None:
        """Forget what frames of ``stream`` below ``oldest_epoch`` needed; they are all done."""
        self._oldest[stream] = max(oldest_epoch, self._oldest.get(stream, 0))
        newest = max(self._epochs, default=0)
        for number in [n for n in self._epochs if n < newest]:
            epoch = self._epochs[number]
            for name in [s for s in epoch.keys if number < self._oldest.get(s, 0)]:
                del epoch.keys[name]
                del self._energy[number, name]
            if not epoch.keys and number < min(self._oldest.values()):
                del self._epochs[number]
        wanted = self._wanted()
        for key in [k for k in self._runners if k not in wanted]:
            del self._runners[key]

    def failures(self) -> Mapping[StageKey, str]:
        """Stages that could not be loaded, with the reason."""
        with self._lock:
            return dict(self._failed)

    def _wanted(self) -> set[StageKey]:
        return {key for epoch in self._epochs.values() for key in epoch.keys.values()}

    def _remember(self, feature: Feature) -> None:
        frame = (feature.stream, feature.seq, feature.unit)
        if frame in self._seen:
            raise DuplicateFrameError(self._say(feature, 'already taken'))
        self._seen[frame] = None
        if len(self._seen) > _REMEMBERED_FRAMES:
            self._seen.popitem(last=False)

    def _check_packet(self, feature: Feature, key: StageKey) -> None:
        profile = self._profile_of(key.model)
        packet = feature.packet
        if key.start == 0:
            codings: tuple[str, ...] = (RAW, JPEG)
            shape: tuple[int, ...] = profile.picture_shape
            dtype = 'uint8'
        else:
            codings = (FEATURES,)
            shape = (1, *profile.units[key.start - 1].output_shape)
            dtype = 'float32'
        found = (packet.coding, packet.dtype, tuple(packet.shape))
        if packet.coding not in codings or found[1:] != (dtype, shape):
            raise RefusedFrameError(
                self._say(
                    feature,
                    f'unit {feature.unit} takes {" or ".join(codings)} {dtype} '
                    f'{shape}, got {found[0]} {found[1]} {found[2]}',
                )
            )
        if packet.coding == JPEG:
            limit = profile.picture_bytes
            if packet.nbytes > limit:
                raise RefusedFrameError(
                    self._say(feature, f'JPEG of {packet.nbytes} bytes; limit {limit}')
                )
            return
        try:
            packet.to_array()
        except LapdtrError as error:
            raise RefusedFrameError(self._say(feature, str(error))) from None

    def _say(self, feature: Feature, what: str) -> str:
        return f'{feature.stream} frame {feature.seq} refused by {self.device}: {what}'


def _next_device(plan: FleetPlan, stream: str, device: str) -> str | None:
    devices = plan.devices(stream)
    position = devices.index(device)
    return devices[position + 1] if position + 1 < len(devices) else None


def run_job(device: str, job: Job) -> Feature | Result:
    """Run a job; belongs to the inference thread.

    Returns:
        The `Feature` for the next device, or the `Result` after the last unit.

    Raises:
        LapdtrError: the picture cannot be decoded or the input holds NaN or infinity.
    """
    started_ns = time.time_ns()
    started = time.monotonic()
    feature = job.feature
    if feature.packet.coding == JPEG:
        array = decode_jpeg(bytes(feature.packet.data))
    else:
        array = feature.packet.to_array()
    packet = Packet.of_array(job.runner.run(array))
    record = StageRecord(
        device=device,
        start=job.stage.start,
        stop=job.stage.stop,
        started_ns=started_ns,
        queue_s=started - job.accepted_s,
        compute_s=time.monotonic() - started,
        received_bytes=feature.packet.nbytes,
        sent_bytes=packet.nbytes,
        energy_j=job.energy_j,
    )
    trace = (*feature.trace, record)
    if job.target is None:
        return Result(
            feature.stream,
            feature.seq,
            feature.epoch,
            device,
            packet,
            feature.stamp_ns,
            feature.frame_id,
            trace,
        )
    return Feature(
        feature.stream,
        feature.seq,
        feature.epoch,
        job.stage.stop,
        packet,
        feature.stamp_ns,
        feature.frame_id,
        trace,
    )

"""Who runs which units of a stream, in the order the frame travels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lapdtr_ros.errors import LapdtrError

RAW = 'raw'
JPEG = 'jpeg'

CLUSTER, LITERAL_FORM = 'cluster', 'literal'
FORMS = (CLUSTER, LITERAL_FORM)
BITS = (8, 6, 4, 3, 2)
MAX_LEVEL = 255


class PlanError(LapdtrError):
    """A plan that no device could execute."""


@dataclass(frozen=True)
class CutSetting:
    """How the features of a cut are packed (paper §4.1); the default loses nothing.

    Attributes:
        keep: patch tokens that are sent, 0 for all.
        form: how tokens are chosen, one of `FORMS`; empty exactly when all are sent.
        bits: bits per value, one of `BITS`, or 0 for float32.
        transfer: name of the adapter X_j = W X_i that the receiver applies; empty for identity.

    Raises:
        PlanError: a setting out of range.
    """

    keep: int = 0
    form: str = ''
    bits: int = 0
    transfer: str = ''

    def __post_init__(self) -> None:
        if self.bits not in (0, *BITS):
            raise PlanError(f'cut setting: bits = {self.bits}; use 0 (float32) or one of {BITS}')
        if self.keep < 0:
            raise PlanError(f'cut setting: keep = {self.keep}; use 0 (all tokens) or more')
        if self.keep and self.form not in FORMS:
            raise PlanError(f'cut setting: form = {self.form!r}; use one of {", ".join(FORMS)}')
        if self.form and not self.keep:
            raise PlanError(f'cut setting: form = {self.form!r} but keep = 0; set keep')


LOSSLESS = CutSetting()


@dataclass(frozen=True)
class Stage:
    """Units ``start`` to ``stop - 1`` on one device.

    Attributes:
        level: elastic level that the units run at, 0 for full width (paper §4.1).
        cut: how the output travels to the next stage; the last stage's result is never packed.
    """

    device: str
    start: int
    stop: int
    level: int = 0
    cut: CutSetting = LOSSLESS

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """The plan of one stream.

    Attributes:
        stream: name of the camera stream, e.g. ``cav_0/camera0``.
        model: name of the model.
        source: device whose camera takes the picture.
        sink: device that needs the result.
        stages: consecutive unit ranges on distinct devices.
        picture: coding of the picture on its way to the first stage, `RAW` or `JPEG`.
    """

    stream: str
    model: str
    source: str
    sink: str
    stages: tuple[Stage, ...]
    picture: str = RAW

    def __post_init__(self) -> None:
        if not self.stages:
            raise PlanError(f'plan of {self.stream}: no stages')
        expected = 0
        for stage in self.stages:
            if stage.start != expected or stage.stop <= stage.start:
                raise PlanError(
                    f'plan of {self.stream}: stage on {stage.device} covers units '
                    f'{stage.start} to {stage.stop}, expected a start of {expected} and at '
                    f'least one unit'
                )
            if not 0 <= stage.level <= MAX_LEVEL:
                raise PlanError(
                    f'plan of {self.stream}: elastic level {stage.level} of the stage on '
                    f'{stage.device}; use 0 to {MAX_LEVEL}'
                )
            expected = stage.stop
        if self.stages[-1].cut != LOSSLESS:
            raise PlanError(
                f'plan of {self.stream}: the result of {self.stages[-1].device} is packed; '
                f'only features between stages are'
            )
        if len({stage.device for stage in self.stages}) != len(self.stages):
            raise PlanError(f'plan of {self.stream}: a device holds two stages; merge them')
        if self.picture not in (RAW, JPEG):
            raise PlanError(
                f'plan of {self.stream}: picture coding {self.picture!r} is not raw or jpeg'
            )

    @property
    def units(self) -> int:
        """Number of units that the stages cover."""
        return self.stages[-1].stop

    def stage_at(self, unit: int) -> Stage:
        """The stage that runs ``unit``."""
        for stage in self.stages:
            if stage.start <= unit < stage.stop:
                return stage
        raise PlanError(f'plan of {self.stream}: no stage runs unit {unit} of {self.units}')


def describe_plan(plan: Plan) -> str:
    """A plan for people: ``jpeg → cav_1: 0-4, level 2 → 128 tokens, 4 bit → rsu_1: 5-13``."""
    parts = []
    if plan.stages[0].device != plan.source:
        parts.append(plan.picture)
    for stage in plan.stages:
        units = str(stage.start) if len(stage) == 1 else f'{stage.start}-{stage.stop - 1}'
        level = f', level {stage.level}' if stage.level else ''
        parts.append(f'{stage.device}: {units}{level}')
        if stage.cut != LOSSLESS:
            parts.append(describe_cut(stage.cut))
    return ' → '.join(parts)


def describe_cut(setting: CutSetting) -> str:
    """A cut setting for people: ``128 tokens (literal), 4 bit, skip.4``."""
    parts = []
    if setting.keep:
        form = '' if setting.form == CLUSTER else f' ({setting.form})'
        parts.append(f'{setting.keep} tokens{form}')
    if setting.bits:
        parts.append(f'{setting.bits} bit')
    if setting.transfer:
        parts.append(setting.transfer)
    return ', '.join(parts) or 'lossless'


@dataclass(frozen=True)
class StreamDecision:
    """A stream's plan with what it is predicted to cost per frame.

    Attributes:
        weights: weights identifier that every stage loads.
        energy_j: energy of all devices, joules.
        latency_s: way of one frame through all stages, seconds.
        period_s: busiest stage or link, seconds.
        calibration: calibration file of the model, which its levels and packed cuts need; empty
            when there is none.
        accuracy: predicted accuracy, 0 to 1; NaN if unknown.
    """

    plan: Plan
    weights: str
    energy_j: float
    latency_s: float
    period_s: float
    calibration: str = ''
    accuracy: float = math.nan


@dataclass(frozen=True)
class Moving:
    """Price of bringing weights to where a plan needs them.

    Attributes:
        bytes: weights that devices must load.
        joules: energy of loading them.
        seconds: time until the slowest device has loaded.
    """

    bytes: int = 0
    joules: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Alternative:
    """A way to run all streams that was not chosen.

    Attributes:
        name: what it is, e.g. ``keep the running plan``; says so when it may not run.
        energy_j: energy per frame of all devices and streams, joules.
        latency_s: way of one frame, worst stream, seconds.
        period_s: busiest stage or link, seconds.
        accuracy: predicted accuracy, worst stream, 0 to 1; NaN if unknown.
        moving: price of changing to it.
    """

    name: str
    energy_j: float
    latency_s: float
    period_s: float
    accuracy: float
    moving: Moving


@dataclass(frozen=True)
class FleetPlan:
    """One epoch: the decisions for all streams, taken together.

    Attributes:
        epoch: rises with every fleet plan.
        planner: node that decided.
        solver: solver that was used.
        reason: why, for people.
        streams: decision per stream name; streams that are stopped have none.
        cause: why, for programs: kind of the first cause, see `monitor.Cause`.
        alternatives: what else could have been done.
        moving: price of the change to this plan.
    """

    epoch: int
    planner: str
    solver: str
    reason: str
    streams: Mapping[str, StreamDecision]
    cause: str = ''
    alternatives: tuple[Alternative, ...] = ()
    moving: Moving = Moving()

    def devices(self, stream: str) -> tuple[str, ...]:
        """Devices that run stages of ``stream``, in order."""
        return tuple(stage.device for stage in self.streams[stream].plan.stages)

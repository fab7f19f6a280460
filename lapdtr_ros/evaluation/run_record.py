"""What a run writes down.

A run of a fleet, on boards, emulated on one machine or simulated, leaves one `RunRecord`. It is
plain data in SI units: JSON on disk, no ROS, no torch. It says at which level its figures were
obtained:

* `MEASURED`: a real meter or a real clock, or bytes that were really sent,
* `EMULATED`: real nodes and weights, with the figures of a device class in place of a meter,
* `SIMULATED`: a discrete-event model of the fleet.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

from lapdtr_ros.errors import LapdtrError, UnknownNameError

MEASURED = 'measured'
EMULATED = 'emulated'
SIMULATED = 'simulated'
LEVELS = (MEASURED, EMULATED, SIMULATED)

FINISHED = 'finished'
LOST = 'lost'
REFUSED = 'refused'

VEHICLE = 'vehicle'
ROADSIDE = 'roadside'

RECORD_FORMAT = 'lapdtr_ros/run_record'
SCHEMA_VERSION = 1


class RunRecordError(LapdtrError):
    """A run record that cannot be read or contradicts itself."""


@dataclass(frozen=True)
class HostRecord:
    """The machine that ran the nodes: name of its processor, cores, torch threads per node."""

    cpu: str
    cores: int
    torch_threads: int


@dataclass(frozen=True)
class DeviceRecord:
    """One device of the fleet.

    Attributes:
        name: name of the device.
        device_class: hardware class, e.g. ``jetson_xavier_nx``.
        kind: `VEHICLE` or `ROADSIDE`.
        battery_j: energy of the full battery [J], None on mains.
        memory_bytes: memory that weights may use [B], None if unknown.
        weight_bytes: most weights held at any time of the run [B], None if unknown.
    """

    name: str
    device_class: str
    kind: str
    battery_j: float | None = None
    memory_bytes: float | None = None
    weight_bytes: float | None = None

    def __post_init__(self) -> None:
        _check_choice('kind of a device', self.kind, (VEHICLE, ROADSIDE))


@dataclass(frozen=True)
class StageSpan:
    """Units ``start`` to ``stop - 1`` on one device, as planned."""

    device: str
    start: int
    stop: int


@dataclass(frozen=True)
class StreamPlanRecord:
    """The plan of one stream with what the planner predicted for it.

    Attributes:
        stream: camera stream, e.g. ``cav_0/camera0``.
        source: device whose camera takes the picture.
        sink: device that needs the result.
        stages: in the order a frame travels.
        energy_j: predicted energy per frame of all devices [J].
        latency_s: predicted time of one frame through all stages [s].
        period_s: predicted time of the busiest stage or link [s].
        picture: coding of the picture on its way to the first stage, ``raw`` or ``jpeg``.
    """

    stream: str
    source: str
    sink: str
    stages: tuple[StageSpan, ...]
    energy_j: float
    latency_s: float
    period_s: float
    picture: str = 'raw'


@dataclass(frozen=True)
class PlanRecord:
    """One plan of the fleet: its epoch, when (seconds since the start), why and by which solver."""

    epoch: int
    time_s: float
    reason: str
    solver: str
    streams: tuple[StreamPlanRecord, ...]


@dataclass(frozen=True)
class StageRecord:
    """What one device did with one frame.

    Attributes:
        device: name of the device.
        start: first unit that was run.
        stop: one past the last unit that was run.
        queue_s: waiting before the stage started [s].
        compute_s: running the units, with unpacking and packing [s].
        received_bytes: payload that came in [B].
        sent_bytes: payload that went out [B].
        energy_j: energy of compute and radio for this frame [J], NaN if unknown.
        start_s: when computing started, seconds since the start of the run; None where the
            clocks of the devices are not aligned.
    """

    device: str
    start: int
    stop: int
    queue_s: float
    compute_s: float
    received_bytes: int
    sent_bytes: int
    energy_j: float = math.nan
    start_s: float | None = None


@dataclass(frozen=True)
class FrameRecord:
    """One finished or lost frame as its source saw it.

    Attributes:
        stream: camera stream.
        seq: frame number in the stream.
        epoch: plan epoch the frame ran under.
        sent_s: when the picture was sent, seconds since the start of the run.
        latency_s: from sending the picture to receiving the result [s]; meaningless when lost.
        outcome: `FINISHED`, `LOST`, or `REFUSED`: its picture could not be read, nothing was sent.
        picture_bytes: payload that left the source [B].
        stages: in the order the frame travelled.
        ends_j: energy of source and sink beside the stages: picture coding and radio [J].
    """

    stream: str
    seq: int
    epoch: int
    sent_s: float
    latency_s: float
    outcome: str
    picture_bytes: int
    stages: tuple[StageRecord, ...] = ()
    ends_j: float = 0.0

    def __post_init__(self) -> None:
        _check_choice('outcome of a frame', self.outcome, (FINISHED, LOST, REFUSED))

    @property
    def energy_j(self) -> float:
        """Energy of all devices [J]; NaN when a part is unknown, since a part is not the whole."""
        stages_j = (stage.energy_j for stage in self.stages)
        return sum(stages_j, self.ends_j) if self.stages else math.nan


@dataclass(frozen=True)
class TelemetryRecord:
    """One reading of a device.

    Attributes:
        time_s: when it was heard, seconds since the start of the run.
        device: name of the device.
        soc: state of charge, 0 to 1.
        energy_j: energy used since the node started [J].
        load: share of time the device was busy.
        queue: frames waiting.
        time_ratio: taken / expected time of its stages, NaN if unknown.
    """

    time_s: float
    device: str
    soc: float
    energy_j: float
    load: float
    queue: int
    time_ratio: float = math.nan


@dataclass(frozen=True)
class Equivalence:
    """How far results of the split model were from the unsplit one.

    Attributes:
        frames: results compared.
        max_abs_diff: largest absolute difference of any element of any result.
        reference: what they were compared with, for people.
        tolerance: difference that still counts as equal.
    """

    frames: int
    max_abs_diff: float
    reference: str
    tolerance: float = 1e-5

    @property
    def holds(self) -> bool:
        """Whether frames were compared and all of them agree; NaN never agrees."""
        return self.frames > 0 and self.max_abs_diff <= self.tolerance


@dataclass(frozen=True)
class AccuracyRecord:
    """Average precision of the detections of a run.

    Attributes:
        ap30: at IoU 0.3, seen from above; NaN when there was nothing to find.
        ap50: at IoU 0.5.
        ap70: at IoU 0.7.
        frames: moments that were evaluated.
        ground_truths: vehicles to find in them.
        detections: vehicles that were reported.
        protocol: everything else that the figures depend on, as JSON values.
        level: how the detections were obtained, one of `LEVELS`.
    """

    ap30: float
    ap50: float
    ap70: float
    frames: int
    ground_truths: int
    detections: int
    protocol: dict[str, Any]
    level: str = MEASURED

    def __post_init__(self) -> None:
        _check_choice('level', self.level, LEVELS)


@dataclass(frozen=True)
class BaselineRecord:
    """The same frames without partitioning, e.g. ``whole model on the source (cav_0)``.

    Attributes:
        name: for people.
        energy_j: energy per frame of all devices [J], counted as in `StageRecord.energy_j`.
        latency_s: time of one frame [s].
        level: how both were obtained, one of `LEVELS`.
    """

    name: str
    energy_j: float
    latency_s: float
    level: str

    def __post_init__(self) -> None:
        _check_choice('level', self.level, LEVELS)


@dataclass(frozen=True)
class RunRecord:
    """Everything a run leaves behind. Times are seconds since ``started_at``.

    Attributes:
        name: name of the run.
        scenario: name of the scenario.
        started_at: ISO 8601 date and time.
        model: name of the model.
        weights: weights identifier, e.g. ``random:0``.
        host: the machine.
        devices: the fleet.
        plans: in the order of their epochs.
        frames: in the order they were sent.
        telemetry: in the order of time.
        equivalence: None when results were not compared with the unsplit model.
        baselines: runs or predictions without partitioning.
        unit_flops: FLOPs of each unit for one frame, empty if unknown.
        accuracy: None when results were not compared with annotations.
        accuracy_alone: of the ego's own cameras at the same moments, None likewise.
        command: what to type to repeat the run.
        time_level: level of latency, frame rate and busy share.
        energy_level: level of all energies of stages.
        time_scale: seconds of the fleet per second of the host; other than 1 only when emulated.
    """

    name: str
    scenario: str
    started_at: str
    model: str
    weights: str
    host: HostRecord
    devices: tuple[DeviceRecord, ...]
    plans: tuple[PlanRecord, ...] = ()
    frames: tuple[FrameRecord, ...] = ()
    telemetry: tuple[TelemetryRecord, ...] = ()
    equivalence: Equivalence | None = None
    baselines: tuple[BaselineRecord, ...] = ()
    unit_flops: tuple[float, ...] = ()
    accuracy: AccuracyRecord | None = None
    accuracy_alone: AccuracyRecord | None = None
    command: str = ''
    time_level: str = MEASURED
    energy_level: str = EMULATED
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_choice('time_level', self.time_level, LEVELS)
        _check_choice('energy_level', self.energy_level, LEVELS)
        known = {device.name for device in self.devices}
        used = {stage.device for frame in self.frames for stage in frame.stages}
        for stream in (stream for plan in self.plans for stream in plan.streams):
            used |= {stream.source, stream.sink, *(stage.device for stage in stream.stages)}
        used |= {reading.device for reading in self.telemetry}
        for name in sorted(used - known):
            raise UnknownNameError('device in a run record', name, known)
        if self.unit_flops and self.units > len(self.unit_flops):
            raise RunRecordError(
                f'unit_flops has {len(self.unit_flops)} entries, but a plan covers {self.units} '
                f'units: give the FLOPs of every unit of {self.model}, or none'
            )

    @property
    def units(self) -> int:
        """Number of units of the model, 0 when no plan and no FLOPs tell."""
        stops = [s.stop for plan in self.plans for p in plan.streams for s in p.stages]
        return max([len(self.unit_flops), *stops])

    def stream_plan(self, stream: str, epoch: int) -> StreamPlanRecord | None:
        """Plan of ``stream`` under ``epoch``, None when that plan was not heard."""
        plans = (p for plan in self.plans if plan.epoch == epoch for p in plan.streams)
        return next((plan for plan in plans if plan.stream == stream), None)


class _Stage(Protocol):
    """Anything that holds units of a device: a planned, recorded or executed stage."""

    @property
    def device(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...


def describe_stages(stages: Iterable[_Stage]) -> str:
    """Stages for people, last units included: ``cav_0: 0-4 → rsu_0: 5-13``."""
    return ' → '.join(f'{s.device}: {describe_units(s.start, s.stop)}' for s in stages)


def describe_units(start: int, stop: int) -> str:
    """Units ``start`` to ``stop - 1`` for people: ``0-4``, or ``7`` for a single one."""
    return str(start) if stop - start == 1 else f'{start}-{stop - 1}'


def to_json(record: RunRecord) -> str:
    """The record as JSON text. Unknown floats (NaN) become null."""
    return dump({'format': RECORD_FORMAT, 'version': SCHEMA_VERSION, 'run': encode(record)})


def from_json(text: str) -> RunRecord:
    """Read what `to_json` wrote.

    Raises:
        RunRecordError: the text is no JSON, no run record, of another schema version, or a field
            is missing, unknown or of the wrong type.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunRecordError(f'run record is not JSON ({error}): was the run cut off?') from error
    if not isinstance(document, dict) or document.get('format') != RECORD_FORMAT:
        raise RunRecordError(f'not a run record: expected "format": "{RECORD_FORMAT}"')
    if document.get('version') != SCHEMA_VERSION:
        raise RunRecordError(
            f'run record has schema version {document.get("version")!r}, this release reads '
            f'{SCHEMA_VERSION}: repeat the run or use the release that wrote it'
        )
    record: RunRecord = _decode(RunRecord, document.get('run'), 'run')
    return record


def write_record(record: RunRecord, path: Path) -> None:
    """Write the record as JSON file."""
    path.write_text(to_json(record), encoding='utf-8')


def read_record(path: Path) -> RunRecord:
    """Read a file of `write_record`.

    Raises:
        RunRecordError: no such file, or it holds no valid run record.
    """
    try:
        text = path.read_text(encoding='utf-8')
    except OSError as error:
        raise RunRecordError(f'run record {path}: {error.strerror}; give a run.json') from error
    try:
        return from_json(text)
    except RunRecordError as error:
        raise RunRecordError(f'{path}: {error}') from error


def dump(document: Any) -> str:
    """JSON text of encoded values, one line per field so that versions compare well."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + '\n'


def encode(value: Any) -> Any:
    """Dataclasses, mappings and tuples as JSON values; NaN and infinity as null."""
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        (inner,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
        return None if value is None else _decode(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, value, 'a list')
        (item_kind, _) = typing.get_args(kind)
        return tuple(_decode(item_kind, v, f'{where}[{i}]') for i, v in enumerate(value))
    if kind is float:
        if value is None:
            return math.nan
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise _wrong(where, value, 'a number or null')
    plain = origin or kind
    if isinstance(value, plain) and not isinstance(value, bool):
        return value
    raise _wrong(where, value, {int: 'a whole number', str: 'a text', dict: 'an object'}[plain])


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, value, 'an object')
    hints = _field_types(kind)
    for name in value:
        if name not in hints:
            raise UnknownNameError(f'field of {where}', name, hints)
    decoded = {name: _decode(hints[name], v, f'{where}.{name}') for name, v in value.items()}
    try:
        return kind(**decoded)
    except TypeError as error:
        raise RunRecordError(f'run record: {where} lacks a field ({error})') from error


@functools.cache
def _field_types(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _wrong(where: str, value: Any, expected: str) -> RunRecordError:
    return RunRecordError(f'run record: {where} is {value!r:.80}, expected {expected}')


def _check_choice(kind: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UnknownNameError(kind, value, choices)

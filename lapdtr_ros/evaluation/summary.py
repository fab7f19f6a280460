"""The figures of a run, each with the level it was obtained at, and their words.

The levels are those of `run_record`. Figures of different levels are never mixed: a comparison is
made only within one level.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from .run_record import (
    EMULATED,
    FINISHED,
    MEASURED,
    REFUSED,
    SCHEMA_VERSION,
    SIMULATED,
    AccuracyRecord,
    BaselineRecord,
    FrameRecord,
    RunRecord,
    StageRecord,
    StageSpan,
    StreamPlanRecord,
    dump,
    encode,
)

SUMMARY_FORMAT = 'lapdtr_ros/run_summary'

# Stands for a figure that there is not.
ABSENT = '-'

# Unit of shares, 0 to 1 as value and percent in words.
SHARE = 'share'

# Share of the finished frames left out at each end when the steady frame rate is taken.
_WARM_UP = 0.1

# Stages that take longer than their class by more than this factor are told.
_LATE = 1.1


@dataclass(frozen=True)
class Figure:
    """A value with its unit and the level it was obtained at; None when there is none."""

    value: float | None
    unit: str
    level: str


@dataclass(frozen=True)
class DeviceSummary:
    """Figures of one device.

    Attributes:
        name: name of the device.
        device_class: hardware class.
        frames: finished frames it had a stage of.
        busy_share: computing time per second of the run, 0 to 1.
        compute_ms: mean time in one of its stages.
        queue_ms: mean waiting before one of its stages.
        energy_mj: energy per finished frame of the run, so that devices add up to the total.
        memory_share: weights held per memory available, 0 to 1.
    """

    name: str
    device_class: str
    frames: int
    busy_share: Figure
    compute_ms: Figure
    queue_ms: Figure
    energy_mj: Figure
    memory_share: Figure


@dataclass(frozen=True)
class HopSummary:
    """Mean payload of one stream from one device to the next under one epoch.

    ``cut`` is the unit that takes it as input, the number of units for the result. A hop inside
    one device (``source == target``) costs no radio and is not communication.
    """

    stream: str
    epoch: int
    cut: int
    source: str
    target: str
    frames: int
    bytes_per_frame: Figure

    @property
    def local(self) -> bool:
        """Whether both ends are the same device."""
        return self.source == self.target


@dataclass(frozen=True)
class EpochSummary:
    """Figures of the frames that ran under one epoch."""

    epoch: int
    frames: int
    latency_p50_ms: Figure
    latency_p95_ms: Figure
    energy_mj: Figure


@dataclass(frozen=True)
class Comparison:
    """Energy or latency of the run against one baseline, both at the same level.

    ``saving`` is the share of the baseline that the run saved, negative when it used more. It and
    ``run`` have no value when the levels differ: such figures do not compare.
    """

    quantity: str
    baseline_name: str
    baseline: Figure
    run: Figure
    saving: Figure


@dataclass(frozen=True)
class Summary:
    """The figures of a run. See `summarise` for how each is taken."""

    frames_sent: Figure
    frames_finished: Figure
    frames_lost: Figure
    frames_refused: Figure
    frames_duplicated: Figure
    latency_p50_ms: Figure
    latency_p95_ms: Figure
    frames_per_s: Figure
    energy_mj: Figure
    accuracy: Figure
    accuracy_alone: Figure
    busiest_share: Figure
    communication_bytes: Figure
    plan_changes: Figure
    max_abs_diff: Figure
    devices: tuple[DeviceSummary, ...]
    hops: tuple[HopSummary, ...]
    epochs: tuple[EpochSummary, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def metrics(self) -> Mapping[str, Figure]:
        """The five evaluation metrics of the paper (§5.1), by its names."""
        return {
            'latency': self.latency_p50_ms,
            'energy consumption': self.energy_mj,
            'accuracy': self.accuracy,
            'resource utilization': self.busiest_share,
            'communication overhead': self.communication_bytes,
        }


def summarise(record: RunRecord) -> Summary:
    """Figures of a run.

    * A frame (stream, seq) whose picture was not refused counts as sent once, finished when any
      of its records is finished, lost when none is; every further finished record of it is a
      duplicate.
    * Latency, energy and bytes are taken over the first finished record of each frame. Energy and
      bytes are means per frame; frames with a stage of unknown energy are left out of energies.
    * Frames per second count finished frames after the first and before the last tenth of them.
    * Busy share is computing time, of lost frames too, over the span from the first picture sent
      to the last result received; the utilization of the run is that of its busiest device.
    * Communication is the payload between different devices, with picture and result.
    * Accuracy is the AP at IoU 0.5, of all vehicles together and of the ego alone; a plain run, not
      compared with annotations, has none.
    """
    frames = first_finished(record)
    sent = {(f.stream, f.seq) for f in record.frames if f.outcome != REFUSED}
    refused = sum(frame.outcome == REFUSED for frame in record.frames)
    finished_records = sum(frame.outcome == FINISHED for frame in record.frames)
    latencies_ms = [frame.latency_s * 1e3 for frame in frames]
    devices = _summarise_devices(record, frames)
    hops = _summarise_hops(record, frames)
    check = record.equivalence
    time = record.time_level
    energy_mj = Figure(
        _mean(frame.energy_j * 1e3 for frame in frames), 'mJ/frame', record.energy_level
    )
    latency_p50_ms = Figure(_percentile(latencies_ms, 50), 'ms', time)
    # The counts and bytes of a simulation come from its model; otherwise they really happened.
    counted = SIMULATED if time == SIMULATED else MEASURED
    return Summary(
        frames_sent=Figure(len(sent), 'frames', counted),
        frames_finished=Figure(len(frames), 'frames', counted),
        frames_lost=Figure(len(sent) - len(frames), 'frames', counted),
        frames_refused=Figure(refused, 'frames', counted),
        frames_duplicated=Figure(finished_records - len(frames), 'frames', counted),
        latency_p50_ms=latency_p50_ms,
        latency_p95_ms=Figure(_percentile(latencies_ms, 95), 'ms', time),
        frames_per_s=Figure(_steady_rate(frames), 'frames/s', time),
        energy_mj=energy_mj,
        accuracy=_accuracy(record.accuracy, counted),
        accuracy_alone=_accuracy(record.accuracy_alone, counted),
        busiest_share=_largest([device.busy_share for device in devices], time),
        communication_bytes=Figure(_communication(hops, len(frames)), 'B/frame', counted),
        plan_changes=Figure(max(len(record.plans) - 1, 0), '', counted),
        max_abs_diff=Figure(None if check is None else _finite(check.max_abs_diff), '', counted),
        devices=devices,
        hops=hops,
        epochs=_summarise_epochs(record, frames),
        comparisons=_compare_all(record, energy_mj, latency_p50_ms),
    )


def summary_json(record: RunRecord) -> str:
    """Summary of the run as JSON text; each figure is ``{value, unit, level}``."""
    summary = summarise(record)
    return dump(
        {
            'format': SUMMARY_FORMAT,
            'version': SCHEMA_VERSION,
            'run': record.name,
            'metrics': encode(dict(summary.metrics)),
            'accuracy': encode(
                {'all_vehicles': record.accuracy, 'ego_alone': record.accuracy_alone}
            ),
            'summary': encode(summary),
        }
    )


def write_summary(record: RunRecord, path: Path) -> None:
    """Write `summary_json` as file."""
    path.write_text(summary_json(record), encoding='utf-8')


def headlines(summary: Summary) -> list[tuple[str, Figure]]:
    """The scalar figures by name, the five metrics of the paper (§5.1) first."""
    return [
        ('latency, median', summary.latency_p50_ms),
        ('latency, 95th percentile', summary.latency_p95_ms),
        ('energy consumption', summary.energy_mj),
        ('accuracy', summary.accuracy),
        ('accuracy, ego alone', summary.accuracy_alone),
        ('resource utilization, busiest device', summary.busiest_share),
        ('communication overhead', summary.communication_bytes),
        ('frame rate, steady', summary.frames_per_s),
        ('frames sent', summary.frames_sent),
        ('frames finished', summary.frames_finished),
        ('frames lost', summary.frames_lost),
        ('pictures refused', summary.frames_refused),
        ('second copies dropped', summary.frames_duplicated),
        ('plan changes', summary.plan_changes),
        ('largest difference to unsplit', summary.max_abs_diff),
    ]


def show(figure: Figure) -> str:
    """Value and unit for people: ``41.2 ms``, ``73.0 %`` for shares, ``150.5 kB`` for bytes."""
    if figure.value is None:
        return ABSENT
    if figure.unit == SHARE:
        return percent(figure.value)
    if figure.unit.startswith('B'):
        return size(figure.value) + figure.unit[1:]
    return f'{number(figure.value)} {figure.unit}'.rstrip()


def verdict(record: RunRecord, summary: Summary) -> str:
    """Whether every frame came back, split equals unsplit and emulation kept its pace."""
    sent, finished, lost, twice = (
        int(figure.value or 0)
        for figure in (
            summary.frames_sent,
            summary.frames_finished,
            summary.frames_lost,
            summary.frames_duplicated,
        )
    )
    frames = f'{finished} of {sent} frames finished, {lost} lost, {twice} second copies dropped.'
    if record.time_level == EMULATED:
        frames += f' {_pace(record)}'
    check = record.equivalence
    if check is None:
        return f'{frames} Results were not compared with the unsplit model.'
    word = 'equals' if check.holds else 'DIFFERS FROM'
    return (
        f'{frames} Split {word} unsplit: largest difference {number(check.max_abs_diff)} over '
        f'{check.frames} frames (tolerance {check.tolerance:g}, reference: {check.reference}).'
    )


def _pace(record: RunRecord) -> str:
    """Whether the host was fast enough for the classes that it emulated."""
    ratios = defaultdict(list)
    for reading in record.telemetry:
        if math.isfinite(reading.time_ratio):
            ratios[reading.device].append(reading.time_ratio)
    medians = {device: float(np.median(values)) for device, values in ratios.items()}
    late = {device: ratio for device, ratio in medians.items() if ratio > _LATE}
    scale = f'Emulated at time scale {record.time_scale:g}'
    if not late:
        return f'{scale}; every device kept the pace of its class.'
    told = ', '.join(f'{device} ({ratio:.1f} times)' for device, ratio in late.items())
    return f'{scale}; slower than their class: {told}. Lower execution.time_scale.'


def describe_accuracy(accuracy: AccuracyRecord) -> str:
    """What the figures of an accuracy depend on, in words."""
    protocol = accuracy.protocol
    (x_low, x_high), (y_low, y_high) = protocol['limits']['x'], protocol['limits']['y']
    return (
        f'{accuracy.frames} moments of {protocol["split"]}, {accuracy.ground_truths} vehicles to '
        f'find within x {x_low:g} to {x_high:g} m and y {y_low:g} to {y_high:g} m of the ego; '
        f'overlap (IoU) seen from above, {protocol["sort"]} sort; cameras '
        f'{", ".join(map(str, protocol["cameras"]))}; vehicles within '
        f'{protocol["communication_range_m"]:g} m share what they find'
    )


def alike(streams: Iterable[StreamPlanRecord]) -> list[tuple[StreamPlanRecord, ...]]:
    """Streams of one source with the same stages and predictions, put together."""
    groups: dict[tuple[object, ...], list[StreamPlanRecord]] = {}
    for stream in streams:
        key = stream.source, stream.sink, stream.stages, stream.picture, predicted(stream)
        groups.setdefault(key, []).append(stream)
    return [tuple(group) for group in groups.values()]


def names(streams: Iterable[StreamPlanRecord]) -> str:
    """Names of streams for people."""
    return ', '.join(stream.stream for stream in streams)


def predicted(stream: StreamPlanRecord) -> str:
    """What the planner predicted for a stream, in words."""
    values = (stream.energy_j, stream.latency_s, stream.period_s)
    energy, latency, period = (number(value * 1e3) for value in values)
    return f'predicted {energy} mJ/frame, latency {latency} ms, period {period} ms'


def stage_shares(record: RunRecord, stages: Sequence[StageSpan]) -> list[float | None]:
    """Share of the model's FLOPs in each stage, 0 to 1; None when the record does not know."""
    if not sum(record.unit_flops):
        return [None] * len(stages)
    before = list(accumulate(record.unit_flops, initial=0.0))
    return [(before[stage.stop] - before[stage.start]) / before[-1] for stage in stages]


def percent(share: float | None) -> str:
    """A share of 0 to 1 as percentage for people."""
    if share is None or not math.isfinite(share):
        return ABSENT
    return f'{share * 100:.1f} %'


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    power = min(int(math.log10(count)) // 3, 3) if count >= 1 else 0
    return f'{number(count / 1000**power)} {("B", "kB", "MB", "GB")[power]}'


def number(value: float | None) -> str:
    """A number for people: whole when it is, else at least three digits that count."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == round(value) and abs(value) < 1e9:
        return f'{value:.0f}'
    if not 1e-3 <= abs(value) < 1e6:
        return f'{value:.2e}'
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f'{value:.{min(max(digits, 1), 4)}f}'


def first_finished(record: RunRecord) -> list[FrameRecord]:
    """The first finished record of each frame, in the order of the run."""
    first: dict[tuple[str, int], FrameRecord] = {}
    for frame in record.frames:
        if frame.outcome == FINISHED:
            first.setdefault((frame.stream, frame.seq), frame)
    return list(first.values())


def _steady_rate(frames: Sequence[FrameRecord]) -> float | None:
    ends = sorted(frame.sent_s + frame.latency_s for frame in frames)
    margin = math.floor(len(ends) * _WARM_UP)
    steady = ends[margin : len(ends) - margin]
    if len(steady) < 2 or steady[-1] <= steady[0]:
        return None
    return (len(steady) - 1) / (steady[-1] - steady[0])


def _summarise_devices(
    record: RunRecord, frames: Sequence[FrameRecord]
) -> tuple[DeviceSummary, ...]:
    duration_s = _duration_s(record)
    busy_s: dict[str, float] = defaultdict(float)
    for frame in record.frames:
        for stage in frame.stages:
            busy_s[stage.device] += stage.compute_s
    stages: dict[str, list[StageRecord]] = defaultdict(list)
    energy_j: dict[str, float] = defaultdict(float)
    known = [frame for frame in frames if math.isfinite(frame.energy_j)]
    for frame in frames:
        for stage in frame.stages:
            stages[stage.device].append(stage)
    for frame in known:
        for stage in frame.stages:
            energy_j[stage.device] += stage.energy_j
    time, energy = record.time_level, record.energy_level
    return tuple(
        DeviceSummary(
            name=device.name,
            device_class=device.device_class,
            frames=len(stages[device.name]),
            busy_share=Figure(_ratio(busy_s[device.name], duration_s), SHARE, time),
            compute_ms=Figure(_mean([s.compute_s * 1e3 for s in stages[device.name]]), 'ms', time),
            queue_ms=Figure(_mean([s.queue_s * 1e3 for s in stages[device.name]]), 'ms', time),
            energy_mj=Figure(_ratio(energy_j[device.name] * 1e3, len(known)), 'mJ/frame', energy),
            memory_share=Figure(_ratio(device.weight_bytes, device.memory_bytes), SHARE, energy),
        )
        for device in record.devices
    )


def _duration_s(record: RunRecord) -> float:
    if not record.frames:
        return 0.0
    starts = [frame.sent_s for frame in record.frames]
    ends = [f.sent_s + f.latency_s for f in record.frames if f.outcome == FINISHED]
    return max(starts + ends) - min(starts)


def _summarise_hops(record: RunRecord, frames: Sequence[FrameRecord]) -> tuple[HopSummary, ...]:
    counted = SIMULATED if record.time_level == SIMULATED else MEASURED
    payloads: dict[tuple[str, int, int, str, str], list[float]] = defaultdict(list)
    for frame in frames:
        for cut, source, target, size in _hops(record, frame):
            payloads[frame.stream, frame.epoch, cut, source, target].append(size)
    return tuple(
        HopSummary(*key, frames=len(sizes), bytes_per_frame=Figure(_mean(sizes), 'B', counted))
        for key, sizes in sorted(payloads.items())
    )


def _hops(record: RunRecord, frame: FrameRecord) -> list[tuple[int, str, str, int]]:
    """(cut, from, to, payload bytes) of a frame, picture and result included.

    When the plan was not heard, the stream itself stands for its unknown source and sink.
    """
    if not frame.stages:
        return []
    plan = record.stream_plan(frame.stream, frame.epoch)
    source, sink = (plan.source, plan.sink) if plan else (frame.stream, frame.stream)
    first, last = frame.stages[0], frame.stages[-1]
    return [
        (first.start, source, first.device, frame.picture_bytes),
        *(
            (after.start, before.device, after.device, before.sent_bytes)
            for before, after in zip(frame.stages, frame.stages[1:], strict=False)
        ),
        (last.stop, last.device, sink, last.sent_bytes),
    ]


def _communication(hops: Sequence[HopSummary], frames: int) -> float | None:
    total = sum(hop.frames * (hop.bytes_per_frame.value or 0.0) for hop in hops if not hop.local)
    return _ratio(total, frames)


def _summarise_epochs(record: RunRecord, frames: Sequence[FrameRecord]) -> tuple[EpochSummary, ...]:
    by_epoch: dict[int, list[FrameRecord]] = {plan.epoch: [] for plan in record.plans}
    for frame in frames:
        by_epoch.setdefault(frame.epoch, []).append(frame)
    return tuple(
        EpochSummary(
            epoch=epoch,
            frames=len(members),
            latency_p50_ms=Figure(
                _percentile([f.latency_s * 1e3 for f in members], 50), 'ms', record.time_level
            ),
            latency_p95_ms=Figure(
                _percentile([f.latency_s * 1e3 for f in members], 95), 'ms', record.time_level
            ),
            energy_mj=Figure(
                _mean([f.energy_j * 1e3 for f in members]), 'mJ/frame', record.energy_level
            ),
        )
        for epoch, members in sorted(by_epoch.items())
    )


def _compare_all(record: RunRecord, energy: Figure, latency: Figure) -> tuple[Comparison, ...]:
    """Energy against each baseline, then latency.

    A modelled baseline says nothing about a latency measured on this machine; there the latency
    that the plans predicted is compared, which the same model gave.
    """
    rows = [_compare('energy', energy, b, b.energy_j) for b in record.baselines]
    predicted_ms = Figure(_predicted_latency_ms(record), 'ms', EMULATED)
    for baseline in record.baselines:
        if baseline.level == EMULATED != latency.level:
            rows.append(_compare('latency, predicted', predicted_ms, baseline, baseline.latency_s))
        else:
            rows.append(_compare('latency', latency, baseline, baseline.latency_s))
    return tuple(rows)


def _predicted_latency_ms(record: RunRecord) -> float | None:
    """Mean over the finished frames of what their plans predicted."""
    plans = (record.stream_plan(frame.stream, frame.epoch) for frame in first_finished(record))
    return _mean([plan.latency_s * 1e3 for plan in plans if plan is not None])


def _compare(quantity: str, run: Figure, baseline: BaselineRecord, value_si: float) -> Comparison:
    base = _finite(value_si * 1e3)
    value = run.value if run.level == baseline.level else None
    share = _ratio(value, base)
    return Comparison(
        quantity=quantity,
        baseline_name=baseline.name,
        baseline=Figure(base, run.unit, baseline.level),
        run=Figure(value, run.unit, run.level),
        saving=Figure(None if share is None else 1.0 - share, SHARE, baseline.level),
    )


def _accuracy(accuracy: AccuracyRecord | None, level: str) -> Figure:
    if accuracy is None:
        return Figure(None, '', level)
    return Figure(_finite(accuracy.ap50), 'AP50', accuracy.level)


def _largest(figures: Sequence[Figure], level: str) -> Figure:
    values = [figure.value for figure in figures if figure.value is not None]
    return Figure(max(values, default=None), SHARE, level)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values: Iterable[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _percentile(values: Iterable[float], percent: float) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return float(np.percentile(known, percent)) if known else None


def _ratio(value: float | None, total: float | None) -> float | None:
    return None if value is None or not total else value / total

"""Drawings of a run for the report.

Long runs are drawn as aggregates and drawings show the devices that took part, so the size of a
drawing does not grow with the run or the fleet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TypeVar

import numpy as np
from markupsafe import Markup

from .run_record import (
    FINISHED,
    FrameRecord,
    PlanRecord,
    RunRecord,
    StageRecord,
    StageSpan,
    StreamPlanRecord,
    describe_units,
)
from .summary import (
    Comparison,
    HopSummary,
    Summary,
    first_finished,
    number,
    percent,
    show,
    size,
    stage_shares,
)
from .svg import WIDTH, Axes, Drawing, Scale, roof, shorten

# Colours that the style sheet knows; neighbouring epochs need only two.
EPOCH_COLOURS = 2
DEVICE_COLOURS = 6

# More marks than these are drawn as aggregates.
MAX_DOTS = 800
MAX_BINS = 80
MAX_POINTS = 160

# Of a character in the text below an axis, pixels.
_TICK_WIDTH = 6.5

# Frames drawn before and after the first frame of a new plan.
FRAMES_BEFORE = 6
FRAMES_AFTER = 9

_OTHERS = 'other devices'
_T = TypeVar('_T')


@dataclass(frozen=True)
class Window:
    """Part of a run worth a closer look: the frames around the first one of plan ``epoch``.

    ``epoch`` is None when the plan never changed.
    """

    epoch: int | None
    frames: tuple[FrameRecord, ...]


@dataclass(frozen=True)
class _Bar:
    """One stage of one frame on the time axis; ``guessed`` when its start was not recorded."""

    frame: FrameRecord
    stage: StageRecord
    start_s: float
    guessed: bool

    @property
    def end_s(self) -> float:
        return self.start_s + self.stage.compute_s


def plan_figure(
    record: RunRecord, plan: PlanRecord, stream: StreamPlanRecord, hops: Sequence[HopSummary]
) -> Markup:
    """Who runs which units: a lane per device, units from left to right, payload at each hop.

    Every device that any plan of the stream uses has a lane, so that plans compare at a glance.

    Args:
        record: the run.
        plan: the plan to draw.
        stream: the stream of the plan to draw.
        hops: measured payload; that of other plans and streams is left out.
    """
    lanes = _lanes_of_stream(record, stream.stream)
    row, top = 56.0, 6.0
    y_of = {name: top + row * (index + 0.5) for index, name in enumerate(lanes)}
    bottom = top + row * len(lanes)
    x = Scale(0, max(record.units, 1), 236.0, WIDTH - 90.0)
    drawing = Drawing(bottom + 38, f'plan {plan.epoch} of {stream.stream}')
    for name, y in y_of.items():
        used = any(stage.device == name for stage in stream.stages)
        _draw_lane_name(drawing, record, name, y, '' if used else 'faded')
        drawing.line(x.start, y, x.stop, y, 'grid')
    _draw_unit_axis(drawing, x, bottom, record.units)
    payload = {
        hop.cut: hop.bytes_per_frame.value
        for hop in hops
        if (hop.stream, hop.epoch) == (stream.stream, plan.epoch)
    }
    _draw_way(drawing, stream, x, y_of, payload)
    css = _epoch_css(record, plan.epoch)
    shares = stage_shares(record, stream.stages)
    for stage, share in zip(stream.stages, shares, strict=True):
        _draw_stage(drawing, stage, share, x, y_of[stage.device], css)
    return drawing.render()


def _lanes_of_stream(record: RunRecord, stream: str) -> list[str]:
    used: set[str] = set()
    for plan in (p for epoch in record.plans for p in epoch.streams if p.stream == stream):
        used |= {plan.source, plan.sink, *(stage.device for stage in plan.stages)}
    return [device.name for device in record.devices if device.name in used]


def _draw_lane_name(drawing: Drawing, record: RunRecord, name: str, y: float, css: str) -> None:
    device_class = next(device.device_class for device in record.devices if device.name == name)
    drawing.text(4, y - 2, shorten(name, 20), f'lane {css}')
    drawing.text(4, y + 13, shorten(device_class, 24), f'tick {css}')


def _draw_unit_axis(drawing: Drawing, x: Scale, bottom: float, units: int) -> None:
    for unit in range(0, units, max(1, math.ceil(units / 28))):
        drawing.text(x(unit + 0.5), bottom + 12, str(unit), 'tick', 'middle')
    drawing.text((x.start + x.stop) / 2, bottom + 30, 'units of the model', 'label', 'middle')


def _draw_way(
    drawing: Drawing,
    stream: StreamPlanRecord,
    x: Scale,
    y_of: dict[str, float],
    payload: dict[int, float | None],
) -> None:
    """The way of a frame: camera, hops between devices with their payload, result."""
    first, last = stream.stages[0], stream.stages[-1]
    hops = [
        (first.start, stream.source, first.device),
        *((after.start, before.device, after.device) for before, after in pairwise(stream.stages)),
        (last.stop, last.device, stream.sink),
    ]
    for cut, source, target in hops:
        if source == target:
            continue
        down = 1 if y_of[target] > y_of[source] else -1
        drawing.arrow(x(cut), y_of[source], y_of[target] - 14 * down, 'hop')
        value = payload.get(cut)
        if value is not None:
            side, anchor = (-8, 'end') if cut == 0 else (8, 'start')
            y = y_of[source] + 28 * down + 4
            drawing.text(x(cut) + side, y, size(value), 'bytes', anchor)
    drawing.text(x.start - 8, y_of[stream.source] + 4, 'camera ▸', 'tick', 'end')
    drawing.text(x.stop + 8, y_of[stream.sink] + 4, '▸ result', 'tick')


def _draw_stage(
    drawing: Drawing, stage: StageSpan, share: float | None, x: Scale, y: float, css: str
) -> None:
    units = describe_units(stage.start, stage.stop)
    long = units if share is None else f'{units} · {percent(share)} of FLOPs'
    start, stop = x(stage.start), x(stage.stop)
    drawing.rect(start + 1, y - 14, stop - start - 2, 28, css, f'{stage.device}: {long}')
    text = next((t for t in (long, units) if len(t) * 6.8 < stop - start - 8), '')
    drawing.text((start + stop) / 2, y + 4, text, 'on-bar', 'middle')


def windows(record: RunRecord) -> tuple[Window, ...]:
    """Frames around each change of plan, or around the middle of the run when there was none."""
    frames = sorted((f for f in record.frames if f.stages), key=lambda frame: frame.sent_s)
    first: dict[int, int] = {}
    for index, frame in enumerate(frames):
        first.setdefault(frame.epoch, index)
    starts: list[tuple[int | None, int]] = [*list(first.items())[1:]]
    return tuple(
        Window(epoch, tuple(frames[max(0, index - FRAMES_BEFORE) : index + FRAMES_AFTER]))
        for epoch, index in starts or [(None, len(frames) // 2)]
        if frames
    )


def timeline(record: RunRecord, window: Window) -> Markup:
    """When each device computed which frame: a lane per device, a bar per stage.

    Bars carry the frame number and the colour of the plan. The thin bar in front of one is the
    wait in the queue; hollow bars have an estimated start.
    """
    bars = [bar for frame in window.frames for bar in _bars(frame)]
    used = {bar.stage.device for bar in bars}
    lanes = [device.name for device in record.devices if device.name in used]
    row, top = 44.0, 30.0
    y_camera = top + row * 0.5
    y_of = {name: top + row * (index + 1.5) for index, name in enumerate(lanes)}
    low = min(frame.sent_s for frame in window.frames)
    high = max([bar.end_s for bar in bars] + [_end_s(frame) for frame in window.frames])
    margin = (high - low) * 0.02
    x = Scale(low - margin, high + margin, 160.0, WIDTH - 12.0)
    axes = Axes(x, Scale(0, 1, top + row * (len(lanes) + 1), top))
    drawing = Drawing(axes.bottom + 40, 'timeline of stages per device')
    axes.draw_time(drawing)
    for name, y in y_of.items():
        _draw_lane_name(drawing, record, name, y, '')
    for frame in window.frames:
        _draw_thread(drawing, frame, [bar for bar in bars if bar.frame is frame], x, y_of, y_camera)
    _draw_cameras(drawing, record, window, x, y_camera)
    for bar in bars:
        _draw_bar(drawing, bar, x, y_of[bar.stage.device], _epoch_css(record, bar.frame.epoch))
    _mark_plans(drawing, record, axes)
    return drawing.render()


def has_guesses(window: Window) -> bool:
    """Whether the timeline of the window holds estimated starts."""
    return any(stage.start_s is None for frame in window.frames for stage in frame.stages)


def _bars(frame: FrameRecord) -> list[_Bar]:
    """Stages on the time axis. Unknown starts share the unexplained time evenly among the hops."""
    explained = sum(stage.queue_s + stage.compute_s for stage in frame.stages)
    latency = frame.latency_s if frame.outcome == FINISHED else explained
    hop_s = max(latency - explained, 0.0) / (len(frame.stages) + 1)
    now, bars = frame.sent_s, []
    for stage in frame.stages:
        guess = now + hop_s + stage.queue_s
        start = guess if stage.start_s is None else stage.start_s
        bars.append(_Bar(frame, stage, start, stage.start_s is None))
        now = start + stage.compute_s
    return bars


def _draw_thread(
    drawing: Drawing,
    frame: FrameRecord,
    bars: Sequence[_Bar],
    x: Scale,
    y_of: dict[str, float],
    y_camera: float,
) -> None:
    """The thin line that leads the eye along the way of one frame."""
    points = [(frame.sent_s, y_camera)]
    for bar in bars:
        y = y_of[bar.stage.device]
        points += [(bar.start_s, y), (bar.end_s, y)]
    if frame.outcome == FINISHED:
        points.append((_end_s(frame), y_camera))
    drawing.polyline([(x(time), y) for time, y in points], 'thread')


def _draw_cameras(drawing: Drawing, record: RunRecord, window: Window, x: Scale, y: float) -> None:
    drawing.text(4, y - 2, 'cameras', 'lane')
    drawing.text(4, y + 13, '▮ sent  ● result  x lost', 'tick')
    for frame in window.frames:
        css = _epoch_css(record, frame.epoch)
        drawing.rect(x(frame.sent_s) - 2, y - 11, 4, 22, css, f'frame {frame.seq} sent', rx=1)
        if frame.outcome == FINISHED:
            drawing.dot(x(_end_s(frame)), y, 5, f'{css} ring', f'result of frame {frame.seq}')
        else:
            drawing.cross(x(frame.sent_s), y - 18, 'lost', f'frame {frame.seq} was {frame.outcome}')


def _draw_bar(drawing: Drawing, bar: _Bar, x: Scale, y: float, css: str) -> None:
    stage, frame = bar.stage, bar.frame
    tip = (
        f'{frame.stream} frame {frame.seq}, plan {frame.epoch}, units '
        f'{describe_units(stage.start, stage.stop)}: computed {number(stage.compute_s * 1e3)} ms, '
        f'waited {number(stage.queue_s * 1e3)} ms'
    )
    start, end = x(bar.start_s), x(bar.end_s)
    waiting = x(bar.start_s - stage.queue_s)
    if stage.queue_s > 0:
        drawing.rect(waiting, y - 2, start - waiting, 4, f'{css} queue', rx=0)
    drawing.rect(start, y - 13, end - start, 26, f'{css} guessed' if bar.guessed else css, tip)
    if end - start > 7 * len(str(frame.seq)) + 4:
        drawing.text((start + end) / 2, y + 4, str(frame.seq), 'on-bar', 'middle')


def latency_chart(record: RunRecord, summary: Summary) -> Markup:
    """Latency over time: a dot per frame, in long runs bars of the spread of many frames."""
    finished = first_finished(record)
    high = roof([frame.latency_s * 1e3 for frame in finished])
    axes = _run_axes(record, high, 262.0, WIDTH - 12.0)
    drawing = Drawing(axes.bottom + 38, 'latency over time')
    axes.draw_values(drawing, f'latency [ms], {record.time_level}')
    axes.draw_time(drawing)
    if len(finished) <= MAX_DOTS:
        for frame in finished:
            _draw_latency(drawing, frame, axes, _epoch_css(record, frame.epoch))
    else:
        for members in _groups(finished, 3 * MAX_BINS):
            _draw_spread(drawing, members, axes, _epoch_css(record, members[0].epoch))
    for frame in _thin([frame for frame in record.frames if frame.outcome != FINISHED]):
        drawing.cross(
            axes.x(frame.sent_s), axes.top + 8, 'lost', f'frame {frame.seq} was {frame.outcome}'
        )
    _draw_medians(drawing, finished, summary, axes)
    _mark_plans(drawing, record, axes)
    return drawing.render()


def _draw_latency(drawing: Drawing, frame: FrameRecord, axes: Axes, css: str) -> None:
    value = frame.latency_s * 1e3
    x = axes.x(frame.sent_s)
    tip = f'{frame.stream} frame {frame.seq}, plan {frame.epoch}: {number(value)} ms'
    if value <= axes.y.high:
        drawing.dot(x, axes.y(value), 3, css, tip)
    else:
        drawing.path(f'M{x - 4:.1f} {axes.top + 8:.1f}h8l-4 -8Z', css, tip)


def _draw_spread(drawing: Drawing, members: Sequence[FrameRecord], axes: Axes, css: str) -> None:
    values = [min(frame.latency_s * 1e3, axes.y.high) for frame in members]
    low, middle, high = (axes.y(float(v)) for v in np.percentile(values, [5, 50, 95]))
    x = axes.x(members[0].sent_s)
    width = max(axes.x(members[-1].sent_s) - x, 1.5)
    tip = f'{len(members)} frames, median {number(float(np.median(values)))} ms'
    drawing.rect(x, high, width, low - high, f'{css} spread', tip, rx=0)
    drawing.rect(x, middle - 1, width, 2, css, rx=0)


def _draw_medians(
    drawing: Drawing, finished: Sequence[FrameRecord], summary: Summary, axes: Axes
) -> None:
    for epoch in summary.epochs:
        times = [frame.sent_s for frame in finished if frame.epoch == epoch.epoch]
        value = epoch.latency_p50_ms.value
        if not times or value is None or value > axes.y.high:
            continue
        start, stop, y = axes.x(min(times)), axes.x(max(times)), axes.y(value)
        drawing.line(start, y, stop, y, 'median')
        text = f'median {show(epoch.latency_p50_ms)}'
        if len(text) * 7 < stop - start:
            # Below the dots where there is room: they tend to crowd around their median.
            below = y + 34 if y + 44 < axes.bottom else y - 9
            drawing.text((start + stop) / 2, below, text, 'value halo', 'middle')


def energy_chart(record: RunRecord) -> Markup:
    """Energy per frame over the run, stacked by device; in long runs frames share a bar.

    Frames of unknown energy leave a hatched gap rather than a low bar. Baselines of the same level
    are dashed lines.
    """
    groups = _groups(first_finished(record), MAX_BINS)
    names = _stacked_devices(record)
    stacks = [_mean_energy(members, names) for members in groups]
    baselines = [
        (baseline.name, baseline.energy_j * 1e3)
        for baseline in record.baselines
        if baseline.level == record.energy_level and math.isfinite(baseline.energy_j)
    ]
    totals = [sum(stack) for stack in stacks if stack is not None]
    high = max(roof(totals), 1.12 * max([value for _, value in baselines], default=0.0))
    axes = Axes(Scale(0, max(len(groups), 1), 62.0, WIDTH - 12.0), Scale(0, high, 262.0, 42.0))
    drawing = Drawing(axes.bottom + 26, 'energy per frame by device')
    axes.draw_values(drawing, f'energy [mJ/frame], {record.energy_level}')
    for index, stack in enumerate(stacks):
        _draw_stack(drawing, axes, names, stack, index)
    _draw_epochs(drawing, axes, [members[0] for members in groups])
    for name, value in baselines:
        y = axes.y(value)
        drawing.line(axes.x.start, y, axes.x.stop, y, 'baseline')
        drawing.text(axes.x.stop - 4, y - 5, f'{name}: {number(value)} mJ', 'value halo', 'end')
    return drawing.render()


def energy_legend(record: RunRecord) -> list[tuple[str, str]]:
    """(style class, name) of the devices in the order of the stack."""
    return [(f'device-{index}', name) for index, name in enumerate(_stacked_devices(record))]


def _draw_epochs(drawing: Drawing, axes: Axes, firsts: Sequence[FrameRecord]) -> None:
    """A line where the plan changes, with as much text as there is room for up to the next one."""
    epochs = [frame.epoch for frame in firsts]
    changes = [i for i, epoch in enumerate(epochs) if i == 0 or epoch != epochs[i - 1]]
    for place, following in pairwise([*changes, len(firsts)]):
        x, frame = axes.x(place), firsts[place]
        drawing.line(x, axes.top, x, axes.bottom + 6, 'mark')
        texts = (f'plan {frame.epoch}, from frame {frame.seq}', f'plan {frame.epoch}')
        room = axes.x(following) - x
        text = next((t for t in texts if len(t) * _TICK_WIDTH < room), '')
        if text:
            drawing.text(x + 4, axes.bottom + 18, text, 'tick')


def _draw_stack(
    drawing: Drawing, axes: Axes, names: Sequence[str], stack: Sequence[float] | None, index: int
) -> None:
    gap = min(1.5, (axes.x(1) - axes.x(0)) * 0.12)
    x, width = axes.x(index) + gap, axes.x(1) - axes.x(0) - 2 * gap
    if stack is None:
        drawing.rect(x, axes.top, width, axes.bottom - axes.top, 'unknown', 'unknown energy', 0)
        return
    below = 0.0
    for position, (name, value) in enumerate(zip(names, stack, strict=True)):
        low, high = (axes.y(min(v, axes.y.high)) for v in (below, below + value))
        if low > high:
            tip = f'{name}: {number(value)} mJ/frame'
            drawing.rect(x, high, width, low - high, f'device-{position}', tip, rx=0)
        below += value


def _stacked_devices(record: RunRecord) -> list[str]:
    """Devices that used energy, most first; those without a colour of their own are summed up."""
    total: dict[str, float] = {}
    for stage in (stage for frame in record.frames for stage in frame.stages):
        if math.isfinite(stage.energy_j):
            total[stage.device] = total.get(stage.device, 0.0) + stage.energy_j
    names = sorted(total, key=lambda name: -total[name])
    if len(names) <= DEVICE_COLOURS:
        return names
    return [*names[: DEVICE_COLOURS - 1], _OTHERS]


def _mean_energy(members: Sequence[FrameRecord], names: Sequence[str]) -> list[float] | None:
    """Mean mJ per frame and device, None when no frame of the group is fully known."""
    known = [frame for frame in members if math.isfinite(frame.energy_j)]
    if not known:
        return None
    position = {name: index for index, name in enumerate(names)}
    sums = [0.0] * len(names)
    for stage in (stage for frame in known for stage in frame.stages):
        sums[position.get(stage.device, len(names) - 1)] += stage.energy_j * 1e3
    return [value / len(known) for value in sums]


def comparison_chart(comparisons: Sequence[Comparison]) -> Markup:
    """The run against baselines of its own level, as bars from a common zero.

    Args:
        comparisons: of one quantity; those that do not compare are left out, one at least must.
    """
    kept = [comparison for comparison in comparisons if comparison.saving.value is not None]
    run = kept[0].run
    rows = [('this run', run.value or 0.0, '')]
    rows += [(c.baseline_name, c.baseline.value or 0.0, _saving_text(c)) for c in kept]
    x = Scale(0, max(value for _, value, _ in rows), 300.0, WIDTH - 260.0)
    drawing = Drawing(34.0 * len(rows) + 4, f'{kept[0].quantity} against baselines')
    for index, (name, value, note) in enumerate(rows):
        y = 34.0 * index + 4
        drawing.text(x.start - 10, y + 18, shorten(name, 44), 'tick' if index else 'lane', 'end')
        css = 'other-bar' if index else 'run-bar'
        drawing.rect(x.start, y, x(value) - x.start, 26, css)
        drawing.text(x(value) + 8, y + 18, f'{number(value)} {run.unit}{note}', 'value')
    return drawing.render()


def _saving_text(comparison: Comparison) -> str:
    share = comparison.saving.value or 0.0
    return f', run uses {percent(abs(share))} {"less" if share >= 0 else "more"}'


def has_batteries(record: RunRecord) -> bool:
    """Whether `battery_chart` has anything to draw."""
    return any(_readings(record, device.name) for device in record.devices)


def battery_chart(record: RunRecord) -> Markup:
    """State of charge of the devices with a battery over time, told apart by dashes and names."""
    axes = _run_axes(record, 100.0, 190.0, WIDTH - 140.0)
    drawing = Drawing(axes.bottom + 38, 'state of charge over time')
    axes.draw_values(drawing, f'state of charge [%], {record.energy_level}')
    axes.draw_time(drawing)
    names: list[tuple[float, str]] = []
    for index, device in enumerate(d for d in record.devices if _readings(record, d.name)):
        points = _readings(record, device.name)
        drawing.polyline(
            [(axes.x(time), axes.y(charge * 100)) for time, charge in points],
            f'curve dash-{index % 4}',
        )
        names.append((axes.y(points[-1][1] * 100), f'{device.name}: {percent(points[-1][1])}'))
    lowest = -math.inf
    for y, name in sorted(names):
        lowest = max(y, lowest + 15)
        drawing.text(axes.x.stop + 8, lowest + 4, name, 'tick')
    _mark_plans(drawing, record, axes)
    return drawing.render()


def _readings(record: RunRecord, name: str) -> list[tuple[float, float]]:
    """(time, state of charge) of one device; none on mains."""
    device = next(device for device in record.devices if device.name == name)
    if device.battery_j is None:
        return []
    return _thin(
        [
            (reading.time_s, reading.soc)
            for reading in record.telemetry
            if reading.device == name and math.isfinite(reading.soc)
        ]
    )


def _run_axes(record: RunRecord, high: float, bottom: float, right: float) -> Axes:
    """Axes over the whole run in time and from 0 to ``high`` in value."""
    times = [_end_s(frame) for frame in record.frames]
    times += [reading.time_s for reading in record.telemetry]
    starts = [frame.sent_s for frame in record.frames]
    return Axes(
        Scale(min([0.0, *starts]), max([1e-3, *times]), 62.0, right), Scale(0, high, bottom, 42.0)
    )


def _mark_plans(drawing: Drawing, record: RunRecord, axes: Axes) -> None:
    """A vertical line where a plan was decided; its name stays clear of the one before."""
    free = -math.inf
    for plan in record.plans:
        if not axes.x.low <= plan.time_s <= axes.x.high:
            continue
        x = axes.x(plan.time_s)
        drawing.line(x, axes.top - 8, x, axes.bottom, 'mark')
        text = f'plan {plan.epoch}'
        if x > free:
            end = x + 70 > WIDTH
            drawing.text(x, axes.top - 14, text, 'mark-name', 'end' if end else 'start')
            free = x + 8 * len(text)


def _epoch_css(record: RunRecord, epoch: int) -> str:
    """Style class of an epoch; neighbouring plans differ."""
    return f'epoch-{sum(plan.epoch < epoch for plan in record.plans) % EPOCH_COLOURS}'


def _end_s(frame: FrameRecord) -> float:
    return frame.sent_s + (frame.latency_s if frame.outcome == FINISHED else 0.0)


def _groups(frames: Iterable[FrameRecord], limit: int) -> list[tuple[FrameRecord, ...]]:
    """Neighbouring frames of one epoch in about ``limit`` groups of equal size."""
    ordered = sorted(frames, key=lambda frame: frame.sent_s)
    count = max(1, math.ceil(len(ordered) / limit))
    runs = [tuple(run) for _, run in groupby(ordered, key=lambda frame: frame.epoch)]
    return [run[start : start + count] for run in runs for start in range(0, len(run), count)]


def _thin(items: Sequence[_T]) -> list[_T]:
    """At most about `MAX_POINTS` items, evenly chosen, the last one among them."""
    step = max(1, math.ceil(len(items) / MAX_POINTS))
    return list(items[::-1][::step][::-1])

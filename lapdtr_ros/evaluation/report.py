"""A run as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from lapdtr_ros.errors import LapdtrError

from . import charts
from .pictures import Picture, encode_png
from .run_record import EMULATED, MEASURED, SIMULATED, PlanRecord, RunRecord
from .summary import (
    Comparison,
    Figure,
    Summary,
    alike,
    describe_accuracy,
    headlines,
    names,
    number,
    percent,
    predicted,
    show,
    summarise,
    verdict,
)

# More plans, streams and changes than these make a page nobody reads.
MAX_PLANS = 4
MAX_STREAMS = 3
MAX_TIMELINES = 3
MAX_HOPS = 24
MAX_DEVICES = 40

# Pictures are shown at most this wide.
PICTURE_WIDTH = 960

_TEMPLATES = Path(__file__).parent / 'templates'
_SIGNATURES = ((b'\x89PNG\r\n\x1a\n', 'image/png'), (b'\xff\xd8\xff', 'image/jpeg'))

LEVEL_MEANINGS = {
    MEASURED: 'a real meter or a real clock, or bytes that were really sent',
    EMULATED: 'real nodes and weights; figures of a device class stand for a meter or a board',
    SIMULATED: 'a discrete-event model of the fleet, no frame was computed',
}


class ReportError(LapdtrError):
    """A report that cannot be made from what was given."""


@dataclass(frozen=True, eq=False)
class ReportImage:
    """A picture for the gallery.

    Attributes:
        title: short name shown above.
        picture: a PNG or JPEG file as bytes, or a (H, W, 3) uint8 array.
        caption: what there is to see.
    """

    title: str
    picture: bytes | Picture
    caption: str = ''


@dataclass(frozen=True)
class _Card:
    title: str
    value: str
    level: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _PlanView:
    plan: PlanRecord
    drawings: tuple[tuple[str, str, Markup], ...]
    more_streams: int
    result: str


def write_report(record: RunRecord, path: Path, images: Sequence[ReportImage] = ()) -> None:
    """Write the report of a run as one HTML file.

    Args:
        record: the run; empty and failed ones make a report too.
        path: the file to write.
        images: pictures for the gallery, in order.

    Raises:
        ReportError: an image is neither PNG nor JPEG, or the file cannot be written.
        PictureError: an array is no picture.
    """
    page = render_report(record, images)
    try:
        path.write_text(page, encoding='utf-8')
    except OSError as error:
        raise ReportError(f'report {path}: {error.strerror}; choose another path') from error


def render_report(record: RunRecord, images: Sequence[ReportImage] = ()) -> str:
    """The text of `write_report`."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(show=show, percent=percent, number=number)
    summary = summarise(record)
    windows = charts.windows(record)
    has_frames = any(epoch.frames for epoch in summary.epochs)
    return environment.get_template('report.html.j2').render(
        record=record,
        summary=summary,
        verdict=verdict(record, summary),
        good=_is_good(record, summary),
        cards=_cards(record, summary),
        plans=_plan_views(record, summary),
        more_plans=max(len(record.plans) - MAX_PLANS, 0),
        timelines=[
            (window.epoch, charts.timeline(record, window), charts.has_guesses(window))
            for window in windows[:MAX_TIMELINES]
        ],
        more_timelines=max(len(windows) - MAX_TIMELINES, 0),
        latency_chart=charts.latency_chart(record, summary) if has_frames else None,
        energy_chart=charts.energy_chart(record) if has_frames else None,
        energy_legend=charts.energy_legend(record),
        comparison_charts=_comparison_charts(summary),
        apart=[c for c in summary.comparisons if c.saving.value is None],
        battery_chart=charts.battery_chart(record) if charts.has_batteries(record) else None,
        images=[
            (image.title, _data_uri(image), image.caption, _is_wide(image)) for image in images
        ],
        accuracies=[
            (name, accuracy)
            for name, accuracy in (
                ('the ego alone', record.accuracy_alone),
                ('all vehicles', record.accuracy),
            )
            if accuracy is not None
        ],
        accuracy_words=describe_accuracy(record.accuracy) if record.accuracy else '',
        devices=summary.devices[:MAX_DEVICES],
        more_devices=max(len(summary.devices) - MAX_DEVICES, 0),
        hops=summary.hops[:MAX_HOPS],
        more_hops=max(len(summary.hops) - MAX_HOPS, 0),
        figures=headlines(summary),
        levels=LEVEL_MEANINGS,
    )


def _is_good(record: RunRecord, summary: Summary) -> bool:
    """Whether all frames came back and nothing speaks against equality.

    A second copy of a result is no fault: after a loss two devices may finish the same frame, and
    the later copy is dropped.
    """
    unequal = record.equivalence is not None and not record.equivalence.holds
    return bool(summary.frames_finished.value) and not summary.frames_lost.value and not unequal


def _cards(record: RunRecord, summary: Summary) -> list[_Card]:
    savings = [
        f'{_saving(comparison)} {comparison.baseline_name}'
        for comparison in summary.comparisons
        if comparison.quantity == 'energy' and comparison.saving.value is not None
    ]
    tail = f'95th percentile {show(summary.latency_p95_ms)}'
    busiest = max(summary.devices, key=lambda device: device.busy_share.value or 0.0, default=None)
    lost, twice = (show(figure) for figure in (summary.frames_lost, summary.frames_duplicated))
    return [
        _card('Energy', summary.energy_mj, *savings[:2]),
        _card('Latency, median', summary.latency_p50_ms, tail),
        _card('Frame rate', summary.frames_per_s, 'steady part of the run'),
        _card(
            'Communication', summary.communication_bytes, 'payload between devices, with picture'
        ),
        _card('Busiest device', summary.busiest_share, busiest.name if busiest else ''),
        _card('Finished', summary.frames_finished, f'{lost} lost', f'{twice} came twice'),
        _card('Difference to unsplit', summary.max_abs_diff, 'largest of any output element'),
        _card('Accuracy', summary.accuracy, *_accuracy_notes(record)),
    ]


def _accuracy_notes(record: RunRecord) -> list[str]:
    accuracy, alone = record.accuracy, record.accuracy_alone
    if accuracy is None:
        return ['not evaluated in this run']
    return [
        '' if alone is None else f'AP50 of the ego alone {number(alone.ap50)}',
        f'AP30 {number(accuracy.ap30)}, AP70 {number(accuracy.ap70)}',
        f'{accuracy.protocol.get("sort")} sort; {accuracy.ground_truths} vehicles in '
        f'{accuracy.frames} moments of {accuracy.protocol.get("split")}',
    ]


def _card(title: str, figure: Figure, *notes: str) -> _Card:
    level = '' if figure.value is None else figure.level
    return _Card(title, show(figure), level, tuple(filter(None, notes)))


def _saving(comparison: Comparison) -> str:
    share = comparison.saving.value or 0.0
    return f'{percent(abs(share))} {"less" if share >= 0 else "more"} than'


def _plan_views(record: RunRecord, summary: Summary) -> list[_PlanView]:
    results = {epoch.epoch: epoch for epoch in summary.epochs}
    views = []
    for plan in record.plans[:MAX_PLANS]:
        epoch = results[plan.epoch]
        groups = alike(plan.streams)
        drawn = groups[:MAX_STREAMS]
        views.append(
            _PlanView(
                plan=plan,
                drawings=tuple(
                    (
                        names(group),
                        predicted(group[0]),
                        charts.plan_figure(record, plan, group[0], summary.hops),
                    )
                    for group in drawn
                ),
                more_streams=sum(len(group) for group in groups[MAX_STREAMS:]),
                result=_epoch_words(epoch.frames, epoch.energy_mj, epoch.latency_p50_ms),
            )
        )
    return views


def _epoch_words(frames: int, energy: Figure, latency: Figure) -> str:
    if not frames:
        return 'no frame finished under this plan'
    return (
        f'{frames} frames: {show(energy)} ({energy.level}), '
        f'median latency {show(latency)} ({latency.level})'
    )


def _comparison_charts(summary: Summary) -> list[tuple[str, str, Markup]]:
    """(quantity, level, drawing) for each quantity with a baseline that compares."""
    views = []
    for quantity in ('energy', 'latency'):
        kept = [
            comparison
            for comparison in summary.comparisons
            if comparison.quantity == quantity and comparison.saving.value is not None
        ]
        if kept:
            views.append((quantity, kept[0].run.level, charts.comparison_chart(kept)))
    return views


def _data_uri(image: ReportImage) -> str:
    data = image.picture
    if isinstance(data, np.ndarray):
        data = encode_png(_shrink(data))
    for signature, media_type in _SIGNATURES:
        if data.startswith(signature):
            return f'data:{media_type};base64,{base64.b64encode(data).decode("ascii")}'
    raise ReportError(f'image {image.title!r} is neither PNG nor JPEG: encode it first')


def _is_wide(image: ReportImage) -> bool:
    """Whether a picture needs the whole page to be seen."""
    return isinstance(image.picture, np.ndarray) and image.picture.shape[1] >= PICTURE_WIDTH


def _shrink(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    if width <= PICTURE_WIDTH:
        return picture
    size = (PICTURE_WIDTH, max(1, round(height * PICTURE_WIDTH / width)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))

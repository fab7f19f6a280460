"""Tables for the terminal: 80 columns are enough, colours only repeat what the words say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .run_record import AccuracyRecord, PlanRecord, RunRecord, describe_units
from .summary import (
    ABSENT,
    Summary,
    alike,
    describe_accuracy,
    headlines,
    names,
    number,
    percent,
    predicted,
    show,
    stage_shares,
    summarise,
    verdict,
)

# Characters of our own texts that an ASCII terminal cannot show.
_ASCII = str.maketrans({'→': '->', '·': '|'})


@dataclass(frozen=True)
class PlanRow:
    """One plan that the planner weighed.

    Attributes:
        label: short name, e.g. ``exact`` or ``all on cav_1``.
        stages_text: who runs what, see `describe_stages`.
        energy_j: predicted energy per frame [J].
        latency_s: predicted time of one frame [s].
        period_s: predicted time of the busiest stage or link [s].
        note: why it was taken or refused, may be empty.
        chosen: whether this is the plan that was taken.
    """

    label: str
    stages_text: str
    energy_j: float
    latency_s: float
    period_s: float
    note: str = ''
    chosen: bool = False


def print_plan_table(rows: Sequence[PlanRow], console: Console, title: str = 'Plans') -> None:
    """Print plans one below the other; ``*`` marks the chosen one."""
    noted = any(row.note for row in rows)
    table = _table()
    table.add_column('')
    table.add_column('plan', overflow='fold')
    table.add_column('stages', overflow='fold')
    for heading in ('energy\nmJ', 'latency\nms', 'period\nms'):
        table.add_column(heading, justify='right', no_wrap=True)
    if noted:
        table.add_column('note', overflow='fold')
    for row in rows:
        numbers = [number(value * 1e3) for value in (row.energy_j, row.latency_s, row.period_s)]
        cells = ['*' if row.chosen else '', row.label, row.stages_text, *numbers]
        _add_row(table, console, [*cells, row.note] if noted else cells)
    _print(f'{title} (predicted per frame; * is the chosen one)', table, console)


def print_summary(record: RunRecord, console: Console) -> None:
    """Print plans, devices and headline figures of a run, with a verdict at the end."""
    summary = summarise(record)
    heading = f'{record.name} · {record.model} ({record.weights}) · scenario {record.scenario}'
    console.print(_text(heading, console))
    for plan in record.plans:
        _print_plan(record, plan, console)
    _print_devices(record, summary, console)
    _print_headlines(summary, console)
    if summary.comparisons:
        _print_comparisons(summary, console)
    if record.accuracy is not None:
        _print_accuracy(record.accuracy, record.accuracy_alone, console)
    console.print(_text(verdict(record, summary), console))


def _print_plan(record: RunRecord, plan: PlanRecord, console: Console) -> None:
    table = _table()
    for heading in ('stream', 'device', 'class', 'units'):
        table.add_column(heading, overflow='fold')
    table.add_column('of FLOPs', justify='right')
    classes = {device.name: device.device_class for device in record.devices}
    groups = alike(plan.streams)
    for group in groups:
        stages = group[0].stages
        for stage, share in zip(stages, stage_shares(record, stages), strict=True):
            units = describe_units(stage.start, stage.stop)
            cells = (names(group), stage.device, classes[stage.device], units, percent(share))
            _add_row(table, console, cells)
    _print(f'Plan {plan.epoch}, at {plan.time_s:.1f} s: {plan.reason}', table, console)
    for group in groups:
        console.print(_text(f'  {names(group)}, {plan.solver}: {predicted(group[0])}', console))


def _print_devices(record: RunRecord, summary: Summary, console: Console) -> None:
    time, energy = record.time_level, record.energy_level
    table = _table()
    table.add_column('device', overflow='fold')
    table.add_column('frames', justify='right')
    for name, level in (
        ('busy', time),
        ('compute ms', time),
        ('queue ms', time),
        ('mJ/frame', energy),
    ):
        table.add_column(f'{name}\n{level}', justify='right')
    for device in summary.devices:
        values = (device.compute_ms, device.queue_ms, device.energy_mj)
        numbers = [number(figure.value) for figure in values]
        busy = percent(device.busy_share.value)
        _add_row(table, console, (device.name, str(device.frames), busy, *numbers))
    _print('Devices', table, console)


def _print_headlines(summary: Summary, console: Console) -> None:
    table = _table()
    table.add_column('figure')
    table.add_column('value', justify='right')
    table.add_column('level')
    for name, figure in headlines(summary):
        level = ABSENT if figure.value is None else figure.level
        _add_row(table, console, (name, show(figure), level))
    _print('Run', table, console)


def _print_comparisons(summary: Summary, console: Console) -> None:
    table = _table()
    table.add_column('per frame')
    table.add_column('instead of the plan', overflow='fold')
    for heading in ('baseline', 'this run', 'saved'):
        table.add_column(heading, justify='right')
    table.add_column('level')
    for comparison in summary.comparisons:
        values = (comparison.baseline, comparison.run, comparison.saving)
        level = comparison.baseline.level
        cells = (comparison.quantity, comparison.baseline_name, *map(show, values), level)
        _add_row(table, console, cells)
    _print('Against no partitioning', table, console)


def _print_accuracy(
    together: AccuracyRecord, alone: AccuracyRecord | None, console: Console
) -> None:
    table = _table()
    table.add_column('vehicles found by the cameras of')
    for heading in ('AP30', 'AP50', 'AP70', 'boxes'):
        table.add_column(heading, justify='right')
    table.add_column('level')
    for name, accuracy in (('the ego alone', alone), ('all vehicles', together)):
        if accuracy is not None:
            values = (accuracy.ap30, accuracy.ap50, accuracy.ap70)
            cells = (name, *(f'{value:.3f}' for value in values), str(accuracy.detections))
            _add_row(table, console, (*cells, accuracy.level))
    _print('Detections', table, console)
    console.print(_text(describe_accuracy(together), console))


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=True)


def _print(title: str, table: Table, console: Console) -> None:
    """The title is no part of the table, whose width would wrap it."""
    console.print(_text(title, console), style='bold')
    console.print(table)


def _add_row(table: Table, console: Console, cells: Sequence[str]) -> None:
    table.add_row(*(_text(cell, console) for cell in cells))


def _text(text: str, console: Console) -> Text:
    """Literal text: no markup is read from names, and ASCII terminals get ASCII arrows."""
    return Text(text.translate(_ASCII) if console.options.ascii_only else text)

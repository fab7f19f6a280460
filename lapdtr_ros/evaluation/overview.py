"""A running fleet at a glance: what ``lapdtr watch`` shows, free of ROS.

Whoever listens to the fleet feeds a `FleetOverview`; `render` turns it into a screen of 80 columns
or more. Times are the caller's steady clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lapdtr_ros.execution.frames import FINISHED, FrameOutcome
from lapdtr_ros.planning.plan import LOSSLESS, FleetPlan, Stage, StreamDecision

from .run_record import describe_units
from .summary import ABSENT, number, percent

SILENT_S = 3.0

_WINDOW_S = 10.0
_MOST_FRAMES = 2000
_MOST_DECISIONS = 6
_BAR = 10
_LOW_SOC = 0.2


@dataclass(frozen=True)
class DeviceState:
    """Newest telemetry of one device; NaN where it is not measured.

    Attributes:
        name: of the device.
        device_class: hardware class.
        energy_level: measured, modelled or emulated.
        soc: state of charge, 0 to 1.
        on_mains: whether there is no battery to empty.
        power_w: mean power, watts.
        load: share of time the inference thread was busy, 0 to 1.
        queue: frames that wait.
        epoch: newest plan that it knows.
        note: newest error, empty if none.
    """

    name: str
    device_class: str
    energy_level: str
    soc: float
    on_mains: bool
    power_w: float
    load: float
    queue: int
    epoch: int
    note: str = ''


@dataclass(frozen=True)
class _Decision:
    at_s: float
    epoch: int
    cause: str
    reason: str


@dataclass
class _Stream:
    decision: StreamDecision | None = None
    recent: deque[tuple[float, FrameOutcome]] = field(
        default_factory=lambda: deque(maxlen=_MOST_FRAMES)
    )
    finished: int = 0
    not_finished: int = 0


class FleetOverview:
    """Collects what a fleet says.

    Args:
        now_s: time at which watching began.
    """

    def __init__(self, now_s: float) -> None:
        self._began_s = now_s
        self._devices: dict[str, tuple[float, DeviceState]] = {}
        self._streams: dict[str, _Stream] = {}
        self._decisions: deque[_Decision] = deque(maxlen=_MOST_DECISIONS)
        self._epoch = 0

    def add_plan(self, plan: FleetPlan, cause: str, now_s: float) -> None:
        """A plan was published; one that is not newer is ignored."""
        if plan.epoch <= self._epoch:
            return
        self._epoch = plan.epoch
        self._decisions.append(_Decision(now_s, plan.epoch, cause, plan.reason))
        for name, decision in plan.streams.items():
            self._stream(name).decision = decision

    def add_device(self, state: DeviceState, now_s: float) -> None:
        """A device reported."""
        self._devices[state.name] = now_s, state

    def add_outcome(self, outcome: FrameOutcome, now_s: float) -> None:
        """A frame ended."""
        stream = self._stream(outcome.stream)
        stream.recent.append((now_s, outcome))
        if outcome.outcome == FINISHED:
            stream.finished += 1
        else:
            stream.not_finished += 1

    def render(self, now_s: float) -> RenderableType:
        """The screen."""
        if not self._devices and not self._streams:
            waited = now_s - self._began_s
            return Text(
                f'Nothing heard for {waited:.0f} s. Is the fleet running, with the same '
                f'ROS_DOMAIN_ID and the same --fleet namespace?'
            )
        return Group(self._stream_table(now_s), self._device_table(now_s), self._decision_table())

    def _stream(self, name: str) -> _Stream:
        return self._streams.setdefault(name, _Stream())

    def _stream_table(self, now_s: float) -> Table:
        table = _table(f'Streams (last {_WINDOW_S:.0f} s)')
        table.add_column('stream')
        table.add_column('plan', overflow='fold')
        for heading in ('frames\n/s', 'latency ms\np50', '\np95', 'energy\nmJ'):
            table.add_column(heading, justify='right', no_wrap=True)
        table.add_column('done\nlost', justify='right', no_wrap=True)
        for name, stream in sorted(self._streams.items()):
            recent = [o for at, o in stream.recent if now_s - at <= _WINDOW_S]
            done = [o for o in recent if o.outcome == FINISHED]
            table.add_row(
                name,
                _plan_text(stream.decision),
                number(len(done) / min(_WINDOW_S, max(now_s - self._began_s, 1.0))),
                *_latencies(done),
                number(1e3 * median(map(_energy_j, done))) if done else ABSENT,
                f'{stream.finished}\n{stream.not_finished}',
            )
        return table

    def _device_table(self, now_s: float) -> Table:
        table = _table('Devices')
        table.add_column('device')
        table.add_column('class', overflow='fold')
        table.add_column('battery', no_wrap=True)
        for heading in ('power\nW', 'load', 'queue', 'plan'):
            table.add_column(heading, justify='right', no_wrap=True)
        table.add_column('note', overflow='fold')
        for name, (at_s, state) in sorted(self._devices.items()):
            silent = now_s - at_s > SILENT_S
            note = f'silent for {now_s - at_s:.0f} s' if silent else state.note
            table.add_row(
                name,
                f'{state.device_class}\n{state.energy_level}',
                _battery(state),
                number(state.power_w),
                percent(state.load),
                str(state.queue),
                str(state.epoch),
                note,
                style='red' if silent else None,
            )
        return table

    def _decision_table(self) -> Table:
        table = _table('Decisions')
        for heading in ('at s', 'plan', 'cause'):
            table.add_column(heading, justify='right' if heading != 'cause' else 'left')
        table.add_column('reason', overflow='fold')
        for entry in self._decisions:
            at = f'{entry.at_s - self._began_s:.1f}'
            table.add_row(at, str(entry.epoch), entry.cause, entry.reason)
        return table


def _plan_text(decision: StreamDecision | None) -> str:
    if decision is None:
        return 'no plan yet'
    parts = [_stage_text(stage) for stage in decision.plan.stages]
    if decision.plan.stages[0].device != decision.plan.source:
        parts.insert(0, f'{decision.plan.source}: picture ({decision.plan.picture})')
    return '\n→ '.join(parts)


def _stage_text(stage: Stage) -> str:
    text = f'{stage.device}: {describe_units(stage.start, stage.stop)}'
    if stage.level:
        text += f', level {stage.level}'
    if stage.cut != LOSSLESS:
        kept = f'{stage.cut.keep} tokens' if stage.cut.keep else ''
        bits = f'{stage.cut.bits} bit' if stage.cut.bits else ''
        text += f' ({", ".join(filter(None, (kept, bits)))})'
    return text


def _latencies(done: Iterable[FrameOutcome]) -> tuple[str, str]:
    values = [1e3 * outcome.latency_s for outcome in done]
    if not values:
        return ABSENT, ABSENT
    return number(float(np.percentile(values, 50))), number(float(np.percentile(values, 95)))


def _energy_j(outcome: FrameOutcome) -> float:
    return sum(record.energy_j for record in outcome.trace)


def _battery(state: DeviceState) -> Text:
    if state.on_mains:
        return Text('mains')
    if math.isnan(state.soc):
        return Text(ABSENT)
    filled = round(_BAR * min(max(state.soc, 0.0), 1.0))
    colour = 'red' if state.soc < _LOW_SOC else 'green'
    return Text.assemble(
        ('█' * filled, colour), ('░' * (_BAR - filled), 'dim'), f' {percent(state.soc)}'
    )


def _table(title: str) -> Table:
    return Table(title=title, title_justify='left', box=box.SIMPLE, expand=True)

"""Label search over consecutive unit ranges on distinct devices: exact, or a beam.

A *label* is the beginning of a plan: units ``0..k-1`` are placed, the last stage runs on kind
``d`` and holds a set of tokens, a multiset of devices is used, and additive costs and the busiest
device or link so far are known. The search goes stage by stage; each round runs a stage of any
length at any level and then hops to an unused device with any cut setting, always on whole arrays
of labels. A label is dropped when

* it breaks a limit or cannot meet it any more, by the lower bounds of `bounds`;
* its lower bound is not below the best complete plan known;
* another label of the same cut, kind, tokens and used devices is at least as good in every
  criterion. The sum of errors is one of them where accuracy is limited or counts.

None of the three can drop the beginning of a better plan, so the search is optimal. A beam keeps
only the most promising labels of each cut; it is fast for any fleet and gives the exact search
its first upper bound.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from lapdtr_ros.errors import LapdtrError

from .bounds import (
    Bounds,
    Goal,
    States,
    additive_costs,
    bounds,
    counts_errors,
    criteria,
    fluid,
    hops,
    multipliers,
    overused,
    peak_costs,
    states,
    steps,
)
from .dominance import rank_in_groups, undominated
from .plan import JPEG, LOSSLESS, RAW, CutSetting
from .tables import Floats, Tables

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# A bound must fall below the best score by this share to count as better.
_MARGIN = 1.0 - 1e-12
# Labels expanded at once; bounds the size of temporary arrays.
_CHUNK = 16384
# Multipliers are searched for with bounds of up to so many states.
_MOST_STATES_TO_MIX = 16
# Group bits: how a frame reached the first stage, as far as it matters for the rest of the plan.
_JPEG_BIT, _SINK_BIT = 1, 2


class SearchTooLargeError(LapdtrError):
    """The exact search has too many labels for this machine."""


@dataclass(frozen=True)
class ChainStage:
    """A stage of a `Chain`.

    Attributes:
        kind: kind of the device.
        start: first unit.
        stop: one past the last unit.
        level: number of the elastic level.
        cut: how the output is packed.
    """

    kind: int
    start: int
    stop: int
    level: int
    cut: CutSetting


@dataclass(frozen=True)
class Chain:
    """A complete plan in terms of kinds.

    Attributes:
        stages: the stages.
        picture: `RAW` or `JPEG`.
        score: the goal's score.
    """

    stages: tuple[ChainStage, ...]
    picture: str
    score: float


@dataclass(frozen=True)
class _Labels:
    """Columns of n labels.

    Attributes:
        unit: (n,) units placed so far.
        kind: (n,) kind of the last stage; after a hop, of the stage that comes.
        held: (n,) set of tokens after the last stage; after a hop, of the stage that comes.
        choice: (n,) level of the last stage; after a hop, the option that its cut took. Both are
            places in `Choices`.
        group: (n,) bits that tell how the frame reached the first stage.
        free: (n, K) devices of each kind that are still unused.
        code: (n,) the used devices as one number.
        values: (n, C) additive criteria.
        peak: (n,) busiest device or link so far, seconds.
        busy: (n,) seconds that the last stage keeps its device busy; after a hop, those of picture
            coding and unpacking before the coming stage.
        parent: (n,) index into the labels of the step before.
        least: (n,) lower bound of the score, the beam's order.
    """

    unit: Ints
    kind: Ints
    held: Ints
    choice: Ints
    group: Ints
    free: NDArray[np.int16]
    code: NDArray[np.uint64]
    values: Floats
    peak: Floats
    busy: Floats
    parent: Ints
    least: Floats

    def __len__(self) -> int:
        return len(self.unit)

    def take(self, index: NDArray[np.intp] | slice) -> _Labels:
        return _Labels(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def join(parts: list[_Labels]) -> _Labels:
        if len(parts) == 1:
            return parts[0]
        return _Labels(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(_Labels)}
        )


class Search:
    """Least score of one goal; may run several times with other widths or stage counts.

    Attributes:
        tables: arrays of fleet and model.
        goal: what is minimised.
        truncated: whether a beam has dropped labels that an exact search would have kept.
    """

    def __init__(self, tables: Tables, goal: Goal, every: bool = False) -> None:
        self.tables = tables
        self.goal = goal
        self._base = criteria(tables, goal, every)
        self._steps = steps(tables, goal)
        self._fluid = fluid(tables)
        self._code_weights, self._key_weights = _code_weights(tables)
        self._counts_errors = counts_errors(tables, goal)
        self._compared, self._compare_peak = _dominance_criteria(tables, goal, every)
        # Packing makes equal stages differently busy, which tells on the period only.
        self._compare_busy = tables.choices.packs and (
            self._compare_peak or math.isfinite(goal.max_period_s)
        )
        self._start = self._first_hops()
        self._mix = np.ones((0, len(self._base.rate)))
        self._upper = math.inf
        self._best: Complete | None = None
        self.truncated = False
        self._bound(states(tables, ()))

    def _bound(self, states: States) -> None:
        """Compute all lower bounds with the critical kinds of ``states``."""
        tables, steps = self.tables, self._steps
        self._states = states
        if len(states.after) <= _MOST_STATES_TO_MIX:
            starts = self._start.values, self._start.kind
            self._mix = multipliers(tables, steps, states, self._base, starts)
        self._peak_costs = peak_costs(tables, steps, self._base)
        self._peak_bounds = bounds(tables, states, self._peak_costs)
        self._costs = additive_costs(tables, steps, self._base)
        self._mixed_costs = additive_costs(tables, steps, self._base.mix(self._mix))
        self._mixed = bounds(tables, states, self._mixed_costs)
        if self._compared:
            self._bounds = bounds(tables, states, self._costs)
        else:
            # The period alone counts: sums are 0 wherever there is a way to the sink.
            after, before = self._peak_bounds.after, self._peak_bounds.before
            self._bounds = Bounds(
                np.where(np.isfinite(after), 0.0, np.inf),
                np.where(np.isfinite(before), 0.0, np.inf),
            )

    def refine(self, most_states: int) -> None:
        """Make kinds critical that bounds use too often, up to ``most_states`` states."""
        while True:
            extra = self._overused()
            chosen = list(self._states.kinds)
            size = len(self._states.after)
            for kind in extra:
                if size * (int(self.tables.counts[kind]) + 1) <= most_states:
                    size *= int(self.tables.counts[kind]) + 1
                    chosen.append(kind)
            if len(chosen) == len(self._states.kinds):
                return
            self._bound(states(self.tables, tuple(chosen)))

    def _overused(self) -> list[int]:
        """Kinds used too often by the cheapest ways, those of most rows first."""
        start = self._start
        rows = [
            (self._costs, self._bounds, start.values),
            (self._mixed_costs, self._mixed, start.values @ self._mix.T),
        ]
        if self._compare_peak:
            rows.append((self._peak_costs, self._peak_bounds, start.peak[:, None]))
        count = Counter(
            kind
            for costs, bound, values in rows
            for kinds in overused(self.tables, self._states, costs, bound, (values, start.kind))
            for kind in kinds
        )
        return [kind for kind, _ in sorted(count.items(), key=lambda item: (-item[1], item[0]))]

    def least(self) -> tuple[float, float]:
        """Lower bounds of the score's additive part and of the period of any plan."""
        start = self._start
        first = self._states.index(start.free), start.kind, 0, 0
        total = start.values[:, 0] + self._bounds.before[0][first]
        peak = np.maximum(start.peak, self._peak_bounds.before[0][first])
        fluid_period = self._fluid.period(self.tables.counts[None, :])[0, 0]
        return float(total.min()), max(float(peak.min()), float(fluid_period))

    def run(
        self,
        *,
        width: int | None = None,
        upper: float = math.inf,
        max_stages: int | None = None,
        budget: int = 10_000_000,
    ) -> Chain | None:
        """The best plan with a score below ``upper``, or None.

        Args:
            width: labels kept per cut and step; None keeps all and is optimal.
            upper: score that a plan must beat.
            max_stages: largest number of stages; None allows one per device.
            budget: labels that may be made in all.

        Raises:
            SearchTooLargeError: the budget is spent.
        """
        self._upper, self._best = upper, None
        history = self._rounds(width, max_stages, budget)
        return None if self._best is None else read_chain(history, self._best, self.tables)

    def _rounds(self, width: int | None, max_stages: int | None, budget: int) -> list[_Round]:
        """Run rounds of stages and hops until no label is left."""
        history: list[_Round] = []
        labels = self._trim(self._promising_starts(), width)
        while len(labels) and len(history) != max_stages:
            staged = _chunked(labels, lambda part, at: self._run_stages(part, at, len(history)))
            budget = self._spend(budget, staged)
            staged = self._trim(staged, width)
            history.append(_Round(labels, staged))
            labels = _chunked(staged, self._hop)
            budget = self._spend(budget, labels)
            labels = self._trim(labels, width)
        return history

    def _spend(self, budget: int, labels: _Labels) -> int:
        if len(labels) > budget:
            raise SearchTooLargeError(
                f'the exact search needs too many partial plans for '
                f'{int(self.tables.counts.sum())} devices of {self.tables.kinds} kinds and '
                f"{self.tables.units} units: use solver 'beam'"
            )
        return budget - len(labels)

    def _first_hops(self) -> _Labels:
        """Labels whose first stage is about to run, for every way of the picture to it."""
        tables, base = self.tables, self._base
        others = np.array([k for k in range(tables.kinds) if k != tables.source], dtype=np.int64)
        local = np.array([tables.source])
        parts = [(local, np.zeros((1, len(base.rate))), 0, 0.0, np.zeros(1))]
        if not self.goal.pictures_stay:
            codings = [(0, tables.cut_bytes[0], 0.0, 0.0)]
            if self.goal.jpeg_bytes is not None:
                jpeg = float(self.goal.jpeg_bytes), 1.0, self.goal.jpeg_error
                codings.append((_JPEG_BIT, *jpeg))
            for bit, size, coded, error in codings:
                kinds = others[np.isfinite(tables.delay[tables.source, others])]
                busy = coded * tables.codec
                values = (
                    base.fixed[:, tables.source, kinds]
                    + base.per_byte[:, tables.source, kinds] * size
                    + base.rate[:, tables.source, None] * busy[tables.source]
                    + base.rate[:, kinds] * busy[kinds]
                    + base.error[:, None] * error
                )
                on_link = size * tables.byte_seconds[tables.source, kinds]
                peak = np.maximum(on_link, busy[tables.source])
                keep = (peak <= self.goal.period_cap) & (error <= self.goal.max_error)
                parts.append((kinds[keep], values.T[keep], bit, coded, peak[keep]))
        kind = np.concatenate([part[0] for part in parts])
        n = len(kind)
        group = np.concatenate([np.full(len(part[0]), part[2]) for part in parts])
        coded_column = np.concatenate([np.full(len(part[0]), part[3]) for part in parts])
        least_period = self.goal.least_period_s
        to_sink = (kind == tables.sink) & (tables.sink != tables.source)
        free = np.repeat(tables.counts[None, :], n, axis=0)
        free[np.arange(n), kind] -= 1
        return _Labels(
            unit=np.zeros(n, dtype=np.int64),
            kind=kind,
            held=np.zeros(n, dtype=np.int64),
            choice=np.zeros(n, dtype=np.int64),
            group=np.where(to_sink, group | _SINK_BIT, group),
            free=free,
            code=self._code_weights[kind],
            values=np.concatenate([part[1] for part in parts]),
            peak=np.maximum(np.concatenate([part[4] for part in parts]), least_period),
            busy=coded_column * tables.codec[kind],
            parent=np.full(n, -1, dtype=np.int64),
            least=np.zeros(n),
        )

    def _promising_starts(self) -> _Labels:
        start = self._start
        first = slice(None), self._states.index(start.free), start.kind, 0, 0
        fluid_period = self._fluid.period(self.tables.counts[None, :])[0, 0]
        rest = np.maximum(self._peak_bounds.before[first][0], fluid_period)
        fine, least = self._promising(
            start.values.T[:, :, None],
            self._bounds.before[first][:, :, None],
            self._mixed.before[first][:, :, None],
            np.maximum(start.peak, rest)[:, None],
        )
        return replace(start, least=least[:, 0]).take(np.flatnonzero(fine))

    def _run_stages(self, labels: _Labels, offset: int, depth: int) -> _Labels:
        """All useful stages of every label; complete plans are noted on the way."""
        tables, base = self.tables, self._base
        kind, held, unit, last = labels.kind, labels.held, labels.unit, tables.units
        stage = (kind, held, slice(None), unit)
        seconds = self._steps.seconds[stage]
        busy = seconds + labels.busy[:, None, None]
        ok = self._steps.stage_ok[stage] & (busy <= self.goal.period_cap)
        peak = np.maximum(labels.peak[:, None, None], busy)
        values = labels.values.T[:, :, None, None] + base.rate[:, kind, None, None] * seconds
        if base.error.any():
            errors = tables.choices.level_error
            of_stage = errors[None, :, :] - errors[:, unit].T[:, :, None]
            values += base.error[:, None, None, None] * of_stage
        for level in range(len(tables.choices.levels)):
            finished = ok[:, level, last], values[:, :, level, last], peak[:, level, last]
            self._complete(labels, offset, depth, level, *finished)
        ok[:, :, last] = False
        place = self._states.index(labels.free), kind, held
        fluid_rest = self._fluid.period(labels.free)
        peak_rest = np.maximum(self._peak_bounds.after[(0, *place)], fluid_rest)
        fine, least = self._promising(
            values,
            self._bounds.after[(slice(None), *place)][:, :, None],
            self._mixed.after[(slice(None), *place)][:, :, None],
            np.maximum(peak, peak_rest[:, None]),
        )
        rows, levels, cuts = np.nonzero(ok & fine)
        return _Labels(
            unit=cuts.astype(np.int64),
            kind=kind[rows],
            held=np.where(cuts > tables.choices.ends[held[rows]], 0, held[rows]),
            choice=levels.astype(np.int64),
            group=labels.group[rows],
            free=labels.free[rows],
            code=labels.code[rows],
            values=values[:, rows, levels, cuts].T,
            peak=peak[rows, levels, cuts],
            busy=busy[rows, levels, cuts] if self._compare_busy else np.zeros(len(rows)),
            parent=rows + offset,
            least=least[rows, levels, cuts],
        )

    def _hop(self, labels: _Labels, offset: int) -> _Labels:
        """All useful hops of every label to a device that is still unused."""
        kind, held, unit, tables = labels.kind, labels.held, labels.unit, self.tables
        choices = tables.choices
        step = hops(tables, self._steps, self._base, held, unit, kind)
        ok = (labels.free > 0)[:, None] & step.ok
        values = labels.values.T[:, :, None, None] + step.costs
        peak = np.maximum(labels.peak[:, None, None], step.seconds)
        if self._compare_busy:
            packing = choices.pack_s[held, unit] * tables.packing[kind, None]
            busy = labels.busy[:, None] + packing
            ok &= (busy <= self.goal.period_cap)[..., None]
            peak = np.maximum(peak, busy[..., None])
        fluid_rest = self._fluid.period(labels.free)[np.arange(len(labels)), unit]
        onward = (
            self._states.after[self._states.index(labels.free)][:, None, :],
            np.arange(tables.kinds),
            choices.received[held, unit][..., None],
            unit[:, None, None],
        )
        peak_rest = np.maximum(self._peak_bounds.before[0][onward], fluid_rest[:, None, None])
        fine, least = self._promising(
            values,
            self._bounds.before[(slice(None), *onward)],
            self._mixed.before[(slice(None), *onward)],
            np.maximum(peak, peak_rest),
        )
        rows, options, kinds = np.nonzero(ok & fine)
        coding = (kinds == tables.source) & (labels.group[rows] & _JPEG_BIT > 0)
        unpacking = choices.unpack_s[held[rows], unit[rows], options] * tables.packing[kinds]
        free = labels.free[rows]
        free[np.arange(len(rows)), kinds] -= 1
        return _Labels(
            unit=unit[rows],
            kind=kinds.astype(np.int64),
            held=choices.received[held[rows], unit[rows], options],
            choice=options.astype(np.int64),
            # Once the source has had its stage, the way of the picture matters no more.
            group=np.where(kind[rows] == tables.source, 0, labels.group[rows]),
            free=free,
            code=labels.code[rows] + self._code_weights[kinds],
            values=values[:, rows, options, kinds].T,
            peak=peak[rows, options, kinds],
            busy=coding * tables.codec[tables.source] + unpacking,
            parent=rows + offset,
            least=least[rows, options, kinds],
        )

    def _promising(
        self, values: Floats, rest: Floats, mixed_rest: Floats, peak: Floats
    ) -> tuple[Bools, Floats]:
        """Whether labels may still become the best plan, and the least score they can reach.

        Args:
            values: (C, n, ...) costs so far.
            rest: (C, n, ...) least cost of the rest.
            mixed_rest: (M, n, ...) least cost of the rest in the weighted sums.
            peak: (n, ...) least period of the whole plan.
        """
        lower = values + rest
        extra = _weighted(self.goal.period, peak) + self._loss(lower)
        least = lower[0] + extra
        fine = least < self._upper * _MARGIN
        for row in range(1, len(values)):
            fine &= lower[row] <= self._base.limit[row]
        limits = np.where(np.isfinite(self._base.limit), self._base.limit, 0.0)
        for weights, to_go in zip(self._mix, mixed_rest, strict=True):
            total = np.tensordot(weights, values, 1) + to_go + extra
            fine &= total < self._upper * _MARGIN + weights @ limits
        return fine, least

    def _loss(self, values: Floats) -> Floats | float:
        """Score for the accuracy that ``values`` (C, ...) lose beyond the linear part."""
        if self.goal.loss is None or not self._counts_errors:
            return 0.0
        return self.goal.loss(values[-1])

    def _complete(
        self,
        labels: _Labels,
        offset: int,
        depth: int,
        level: int,
        ok: Bools,
        values: Floats,
        peak: Floats,
    ) -> None:
        """Send the result of finished labels to the sink and note the best."""
        tables, kind, cut = self.tables, labels.kind, self.tables.units
        result_s = tables.cut_bytes[cut] * tables.byte_seconds[kind, tables.sink]
        on_link = np.where(kind == tables.sink, 0.0, result_s)
        # The picture went the same link: from a source that runs the last stage to the sink.
        shared = (kind == tables.source) & (labels.group & _SINK_BIT > 0)
        if shared.any():
            jpeg = self.goal.jpeg_bytes if self.goal.jpeg_bytes is not None else 0
            picture = np.where(labels.group & _JPEG_BIT > 0, float(jpeg), tables.cut_bytes[0])
            on_link = on_link + np.where(
                shared, picture * tables.byte_seconds[tables.source, tables.sink], 0.0
            )
        values = values + self._bounds.after[:, 0, kind, 0, cut]
        peak = np.maximum(peak, on_link)
        ok = ok & np.isfinite(values[0]) & (on_link <= self.goal.period_cap)
        for row in range(1, len(values)):
            ok &= values[row] <= self._base.limit[row]
        index = np.flatnonzero(ok)
        if len(index):
            self._note(depth, index + offset, level, values[:, index].T, peak[index])

    def _note(self, depth: int, index: Ints, level: int, values: Floats, peak: Floats) -> None:
        """Remember the best of complete plans."""
        scores = values[:, 0] + self.goal.period * peak + self._loss(values.T)
        best = int(np.argmin(scores))
        if scores[best] < self._upper * _MARGIN:
            self._upper = float(scores[best])
            self._best = Complete(depth, int(index[best]), level, self._upper)

    def _trim(self, labels: _Labels, width: int | None) -> _Labels:
        """Drop dominated labels; a beam then keeps the ``width`` most promising of each cut."""
        if len(labels) < 2:
            return labels
        columns = labels.values[:, self._compared]
        if self._compare_peak:
            columns = np.column_stack([columns, labels.peak])
        if self._compare_busy:
            columns = np.column_stack([columns, labels.busy])
        on_kind, on_unit, on_held, on_group = self._key_weights
        key = (
            labels.code
            + labels.kind.astype(np.uint64) * on_kind
            + labels.unit.astype(np.uint64) * on_unit
            + labels.held.astype(np.uint64) * on_held
            + labels.group.astype(np.uint64) * on_group
        )
        index = undominated(key, columns)
        if width is not None:
            unit = labels.unit[index]
            order = np.lexsort((labels.least[index], unit))
            kept = rank_in_groups(unit[order]) < width
            self.truncated |= not kept.all()
            index = np.sort(index[order[kept]])
        return labels.take(index)


@dataclass(frozen=True)
class Complete:
    """A complete plan: the label that ran its last stage in round ``depth`` at a level."""

    depth: int
    index: int
    level: int
    score: float


class _Round:
    """What is needed of a round to read plans back."""

    def __init__(self, labels: _Labels, staged: _Labels) -> None:
        self.unit, self.kind, self.group = labels.unit, labels.kind, labels.group
        self.option, self.parent = labels.choice, labels.parent
        self.held, self.level = staged.held, staged.choice
        self.staged_parent = staged.parent


def read_chain(history: list[_Round], complete: Complete, tables: Tables) -> Chain:
    """Read a complete plan back, last stage first."""
    choices = tables.choices
    stages = []
    index, stop, level, cut = complete.index, tables.units, complete.level, LOSSLESS
    for depth in range(complete.depth, -1, -1):
        round_ = history[depth]
        start = int(round_.unit[index])
        stages.append(ChainStage(int(round_.kind[index]), start, stop, choices.levels[level], cut))
        stop = start
        if depth:
            before, place = history[depth - 1], int(round_.parent[index])
            cut = choices.settings[before.held[place]][start][int(round_.option[index])]
            level = int(before.level[place])
            index = int(before.staged_parent[place])
    picture = JPEG if history[0].group[index] & _JPEG_BIT else RAW
    return Chain(tuple(reversed(stages)), picture, complete.score)


def _chunked(labels: _Labels, expand: Callable[[_Labels, int], _Labels]) -> _Labels:
    """Expand labels in pieces, so that temporary arrays stay small."""
    starts = range(0, max(len(labels), 1), _CHUNK)
    return _Labels.join(
        [expand(labels.take(slice(start, start + _CHUNK)), start) for start in starts]
    )


def _weighted(weight: float, peak: Floats) -> Floats | float:
    """Product of weight and peak where an infinite peak without weight counts nothing."""
    return weight * peak if weight > 0.0 else 0.0


def _code_weights(tables: Tables) -> tuple[NDArray[np.uint64], tuple[np.uint64, ...]]:
    """Weights that turn used devices, and then kind, cut and group, into one number.

    Mixed radix where it fits into 63 bits, which is without collisions. Fleets beyond that are
    for beams; there fixed random weights tell labels apart.
    """
    sizes = [int(count) + 1 for count in tables.counts]
    sizes += [tables.kinds, tables.units + 1, tables.token_sets, 4]
    places = [math.prod(sizes[:i]) for i in range(len(sizes) + 1)]
    if places[-1] < 2**63:
        weights = np.array(places[:-1], dtype=np.uint64)
    else:
        weights = np.random.default_rng(0).integers(1, 2**63, len(sizes), dtype=np.uint64)
    return weights[: tables.kinds], tuple(weights[tables.kinds :])


def _dominance_criteria(tables: Tables, goal: Goal, every: bool) -> tuple[list[int], bool]:
    """Rows of the criteria that labels are compared by, and whether the period is one more."""
    errors = [-1] if counts_errors(tables, goal) else []
    if every:
        return [1, 2, *errors], True
    rows = [0] if goal.energy > 0.0 or goal.latency > 0.0 or goal.error > 0.0 else []
    row = 0
    if math.isfinite(goal.max_energy_j):
        row += 1
        if goal.latency > 0.0 or goal.energy == 0.0 or np.ptp(tables.price) > 0.0:
            rows.append(row)
    if math.isfinite(goal.max_latency_s):
        row += 1
        if goal.energy > 0.0 or goal.latency == 0.0:
            rows.append(row)
    return [*rows, *errors], goal.period > 0.0

"""The steps of a search as arrays and the least that any way to the end costs.

The bounds drop one rule: devices need not be distinct, except those of a few *critical* kinds.
The cheapest way from every (cut, kind) to the result is then a small dynamic programme over cuts.
Critical are kinds that the cheapest way would use too often, e.g. the one fast device whose memory
is too small for the model (state-space relaxation, refined where it hurts).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cost import LIMIT_TOLERANCE
from .tables import Floats, Tables

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_HUGE = 1e300
# How many multipliers are tried per limit, around (least score / limit), and how many are kept.
_MULTIPLIERS = np.geomspace(0.03, 30.0, 8)
_KEPT_MULTIPLIERS = 2


@dataclass(frozen=True)
class Goal:
    """What a search minimises and the limits it keeps.

    The score is ``energy`` * priced joules + ``latency`` * seconds + ``period`` * seconds.

    Attributes:
        energy: score per priced joule.
        latency: score per second of latency.
        period: score per second of the busiest device or link.
        max_energy_j: limit on joules per frame.
        max_latency_s: limit on the latency.
        max_period_s: limit on the busiest device or link.
        least_period_s: shorter periods count as this one.
        pictures_stay: unit 0 runs on the source.
        jpeg_bytes: bytes of the JPEG picture, None when it may not be sent.
    """

    energy: float = 0.0
    latency: float = 0.0
    period: float = 0.0
    max_energy_j: float = math.inf
    max_latency_s: float = math.inf
    max_period_s: float = math.inf
    least_period_s: float = 0.0
    pictures_stay: bool = False
    jpeg_bytes: int | None = None

    @property
    def period_cap(self) -> float:
        """`max_period_s` with the tolerance of `cost.within`."""
        return self.max_period_s * (1.0 + LIMIT_TOLERANCE)


@dataclass(frozen=True)
class Criteria:
    """C costs that add up over stages and hops; row 0 is the additive part of the score.

    A stage of s seconds on kind d costs ``rate[c, d] * s``, a hop of b bytes from kind d to e
    ``fixed[c, d, e] + per_byte[c, d, e] * b``.

    Attributes:
        rate: (C, K).
        fixed: (C, K, K).
        per_byte: (C, K, K).
        limit: (C,) largest allowed sum, infinite where there is none.
    """

    rate: Floats
    fixed: Floats
    per_byte: Floats
    limit: Floats

    def mix(self, weights: Floats) -> Criteria:
        """New criteria as weighted sums: (M, C) weights give M rows without own limits."""
        return Criteria(
            rate=np.tensordot(weights, self.rate, 1),
            fixed=np.tensordot(weights, self.fixed, 1),
            per_byte=np.tensordot(weights, self.per_byte, 1),
            limit=np.full(len(weights), np.inf),
        )


def criteria(tables: Tables, goal: Goal, every: bool = False) -> Criteria:
    """The score's additive part, then energy and latency where a limit (or ``every``) asks."""
    delay = np.where(np.isfinite(tables.delay), tables.delay, 0.0)
    no_delay = np.zeros_like(delay)
    ones = np.ones(tables.kinds)
    rows = [
        (
            goal.energy * tables.price * tables.watts + goal.latency,
            goal.latency * delay,
            goal.energy * tables.byte_priced + goal.latency * tables.byte_seconds,
            np.inf,
        )
    ]
    tolerance = 1.0 + LIMIT_TOLERANCE
    if every or math.isfinite(goal.max_energy_j):
        rows.append((tables.watts, no_delay, tables.byte_joules, goal.max_energy_j * tolerance))
    if every or math.isfinite(goal.max_latency_s):
        rows.append((ones, delay, tables.byte_seconds, goal.max_latency_s * tolerance))
    rate, fixed, per_byte, limit = zip(*rows, strict=True)
    return Criteria(np.array(rate), np.array(fixed), np.array(per_byte), np.array(limit))


@dataclass(frozen=True)
class Steps:
    """Which stages and hops are possible and how long they take.

    Attributes:
        seconds: (K, L + 1, L + 1) of a stage from the first to the second cut.
        stage_ok: the same shape; False for empty or too large stages and those over the period.
        hop_ok: (L + 1, K, K) whether data of a cut may go from kind to kind.
        hop_seconds: (L + 1, K, K) that such a hop keeps the link busy.
    """

    seconds: Floats
    stage_ok: Bools
    hop_ok: Bools
    hop_seconds: Floats


def steps(tables: Tables, goal: Goal) -> Steps:
    """Stages and hops that memory, links and the period allow."""
    seconds = tables.elapsed[:, None, :] - tables.elapsed[:, :, None]
    seconds += tables.overhead[:, None, None]
    weights = tables.weight_bytes[None, :] - tables.weight_bytes[:, None]
    forward = np.triu(np.ones((tables.units + 1, tables.units + 1), dtype=bool), 1)
    fits = weights[None] <= tables.memory[:, None, None]
    hop_seconds = tables.cut_bytes[:, None, None] * tables.byte_seconds[None]
    return Steps(
        seconds=seconds,
        stage_ok=forward[None] & fits & (seconds <= goal.period_cap),
        hop_ok=np.isfinite(tables.delay)[None] & (hop_seconds <= goal.period_cap),
        hop_seconds=hop_seconds,
    )


@dataclass(frozen=True)
class States:
    """Which devices of the *critical* kinds are still free, as one number z < Z.

    Bounds count devices of critical kinds and let all others be used again and again.

    Attributes:
        kinds: the critical kinds.
        place: (K,) weight of a free device in the number, 0 for kinds that are not critical.
        after: (Z, K) number after one more device of the kind is taken, -1 if none is free.
    """

    kinds: tuple[int, ...]
    place: Ints
    after: Ints

    def index(self, free: NDArray[np.int16]) -> Ints:
        """(n,) numbers of the ``free`` (n, K) devices."""
        return free @ self.place


def states(tables: Tables, kinds: tuple[int, ...]) -> States:
    """States that count the devices of ``kinds``."""
    place = np.zeros(tables.kinds, dtype=np.int64)
    total = 1
    for kind in kinds:
        place[kind] = total
        total *= int(tables.counts[kind]) + 1
    number = np.arange(total)[:, None]
    after = np.repeat(number, tables.kinds, axis=1)
    for kind in kinds:
        left = number[:, 0] // place[kind] % (int(tables.counts[kind]) + 1)
        after[:, kind] = np.where(left > 0, number[:, 0] - place[kind], -1)
    return States(kinds, place, after)


@dataclass(frozen=True)
class Costs:
    """Rows of costs of single steps; ``join`` adds them up or takes the largest.

    Attributes:
        rows: C.
        stage: cut -> (C, K, L - cut) of the stages from the cut to every later one.
        hop: cut -> (C, K, K) of sending the data of the cut.
        join: how costs of steps come together.
    """

    rows: int
    stage: Callable[[int], Floats]
    hop: Callable[[int], Floats]
    join: np.ufunc


def additive_costs(tables: Tables, steps: Steps, criteria: Criteria) -> Costs:
    """Steps of criteria that add up."""
    rate = criteria.rate[:, :, None]
    return Costs(
        rows=len(criteria.rate),
        stage=lambda cut: rate * steps.seconds[:, cut, cut + 1 :],
        hop=lambda cut: criteria.fixed + criteria.per_byte * tables.cut_bytes[cut],
        join=np.add,
    )


def peak_costs(steps: Steps) -> Costs:
    """Steps of the period, one row."""
    return Costs(
        rows=1,
        stage=lambda cut: steps.seconds[None, :, cut, cut + 1 :],
        hop=lambda cut: steps.hop_seconds[cut][None],
        join=np.maximum,
    )


@dataclass(frozen=True)
class Bounds:
    """Least cost of the rest of a plan, by row, state, kind and cut: (C, Z, K, L + 1).

    Attributes:
        after: the units before the cut are done, the last ones on the kind; at the last cut
            the exact way to the sink.
        before: a device of the kind is taken and about to run a stage from the cut.
    """

    after: Floats
    before: Floats


def bounds(tables: Tables, steps: Steps, states: States, costs: Costs) -> Bounds:
    """Backward over the cuts: best stage, then best hop."""
    units, kinds = tables.units, tables.kinds
    shape = costs.rows, len(states.after), kinds, units + 1
    after, before = np.full(shape, np.inf), np.full(shape, np.inf)
    to_sink = np.where(
        steps.hop_ok[units, :, tables.sink], costs.hop(units)[:, :, tables.sink], np.inf
    )
    to_sink[:, tables.sink] = 0.0
    after[..., units] = to_sink[:, None]
    taken = states.after >= 0
    for cut in range(units - 1, -1, -1):
        stage = _stage(steps, costs, cut)[:, None]
        before[..., cut] = costs.join(stage, after[..., cut + 1 :]).min(axis=3)
        onward = before[:, states.after, np.arange(kinds), cut]
        onward = np.where(taken, onward, np.inf)[:, :, None, :]
        after[..., cut] = costs.join(_hop(steps, costs, cut)[:, None], onward).min(axis=3)
    return Bounds(after, before)


def overused(
    tables: Tables,
    steps: Steps,
    states: States,
    costs: Costs,
    bounds: Bounds,
    starts: tuple[Floats, Ints],
) -> list[set[int]]:
    """Kinds that the cheapest way of each row uses more often than there are devices.

    Args:
        tables: arrays of fleet and model.
        steps: possible stages and hops.
        states: states of the bounds.
        costs: rows of costs.
        bounds: their bounds.
        starts: (n, C) costs before the first stage and (n,) its kind.
    """
    values, kinds = starts
    full = states.index(tables.counts[None, :])[0]
    found = []
    for row in range(costs.rows):
        first = states.after[full, kinds]
        total = costs.join(values[:, row], bounds.before[row, first, kinds, 0])
        best = int(np.argmin(total))
        used = np.zeros(tables.kinds, dtype=np.int64)
        state, kind, cut = int(first[best]), int(kinds[best]), 0
        while math.isfinite(total[best]):
            used[kind] += 1
            stage = _stage(steps, costs, cut)[row, kind]
            cut += 1 + int(np.argmin(costs.join(stage, bounds.after[row, state, kind, cut + 1 :])))
            if cut == tables.units:
                break
            onward = bounds.before[row, states.after[state], np.arange(tables.kinds), cut]
            onward = np.where(states.after[state] >= 0, onward, np.inf)
            kind = int(np.argmin(costs.join(_hop(steps, costs, cut)[row, kind], onward)))
            state = int(states.after[state, kind])
        found.append(set(np.flatnonzero(used > tables.counts).tolist()))
    return found


def _stage(steps: Steps, costs: Costs, cut: int) -> Floats:
    return np.where(steps.stage_ok[:, cut, cut + 1 :], costs.stage(cut), np.inf)


def _hop(steps: Steps, costs: Costs, cut: int) -> Floats:
    return np.where(steps.hop_ok[cut], costs.hop(cut), np.inf)


@dataclass(frozen=True)
class Fluid:
    """A bound on the period that respects distinct devices: work flows freely to unused ones.

    Let g_u be any weight of unit u and v_d the largest g_u / time of u on d. Devices that are busy
    for at most P each do work of at most P * sum of v_d, so P >= remaining work / free speed.

    Attributes:
        work: (L + 1,) weight of the units from each cut on.
        speed: (K,) v_d of one device.
    """

    work: Floats
    speed: Floats

    def period(self, free: NDArray[np.int16]) -> Floats:
        """(n, L + 1) least period of the units from each cut on the ``free`` (n, K) devices."""
        speed = np.maximum(free @ self.speed, 1.0 / _HUGE)
        # The factor keeps rounding of the sum from raising the bound above the truth.
        return self.work[None, :] / speed[:, None] * (1.0 - 1e-9)


def fluid(tables: Tables) -> Fluid:
    """Weights g_u are the mean times of the units over the kinds."""
    times = np.diff(tables.elapsed, axis=1)
    weight = times.mean(axis=0)
    with np.errstate(divide='ignore', invalid='ignore'):
        ratio = np.where(weight > 0.0, weight / times, 0.0)
    work = np.concatenate([np.cumsum(weight[::-1])[::-1], [0.0]])
    return Fluid(work, np.minimum(ratio.max(axis=1), _HUGE))


def multipliers(
    tables: Tables, steps: Steps, states: States, base: Criteria, starts: tuple[Floats, Ints]
) -> Floats:
    """Weighted sums of score and limits whose bounds are tightest at the start of all plans.

    For multipliers m >= 0, score + m * (cost - limit) never exceeds the score of a plan that
    keeps the limit (Lagrange), and its bound sees that cheap and fast exclude each other.

    Args:
        tables: arrays of fleet and model.
        steps: possible stages and hops.
        states: states of the bounds.
        base: criteria with limits in rows 1 and up.
        starts: (n, C) costs before the first stage of each possible start, (n,) its kind.

    Returns:
        (M, C) weights with 1 in column 0.
    """
    values, kinds = starts
    first = states.after[states.index(tables.counts[None, :])[0], kinds]
    single = bounds(tables, steps, states, additive_costs(tables, steps, base))
    least = (values[:, 0] + single.before[0, first, kinds, 0]).min()
    limited = [row for row in range(1, len(base.rate)) if math.isfinite(base.limit[row])]
    if not limited or not math.isfinite(least):
        return np.ones((0, len(base.rate)))
    weights = np.zeros((len(limited), len(_MULTIPLIERS), len(base.rate)))
    weights[:, :, 0] = 1.0
    for place, row in enumerate(limited):
        weights[place, :, row] = _MULTIPLIERS * max(least, 1.0 / _HUGE) / base.limit[row]
    flat = weights.reshape(-1, len(base.rate))
    mixed = bounds(tables, steps, states, additive_costs(tables, steps, base.mix(flat)))
    at_start = (flat @ values.T + mixed.before[:, first, kinds, 0]).min(axis=1)
    gain = at_start - flat[:, limited] @ base.limit[limited]
    return flat[np.argsort(-gain, kind='stable')[:_KEPT_MULTIPLIERS]]

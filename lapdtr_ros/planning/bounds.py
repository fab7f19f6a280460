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

    The score is ``energy`` * priced joules + ``latency`` * seconds + ``period`` * seconds +
    ``error`` * sum of errors + ``loss`` of that sum.

    Attributes:
        energy: score per priced joule.
        latency: score per second of latency.
        period: score per second of the busiest device or link.
        error: score per unit of the errors' sum.
        loss: further score for the errors' sum, 0 at 0 and never falling; None for none.
        max_error: limit on that sum.
        max_energy_j: limit on joules per frame.
        max_latency_s: limit on the latency.
        max_period_s: limit on the busiest device or link.
        least_period_s: shorter periods count as this one.
        pictures_stay: unit 0 runs on the source.
        jpeg_bytes: bytes of the JPEG picture, None when it may not be sent.
        jpeg_error: error of the JPEG picture.
    """

    energy: float = 0.0
    latency: float = 0.0
    period: float = 0.0
    error: float = 0.0
    loss: Callable[[Floats], Floats] | None = None
    max_error: float = 0.0
    max_energy_j: float = math.inf
    max_latency_s: float = math.inf
    max_period_s: float = math.inf
    least_period_s: float = 0.0
    pictures_stay: bool = False
    jpeg_bytes: int | None = None
    jpeg_error: float = 0.0

    @property
    def period_cap(self) -> float:
        """`max_period_s` with the tolerance of `cost.within`."""
        return self.max_period_s * (1.0 + LIMIT_TOLERANCE)


@dataclass(frozen=True)
class Criteria:
    """C costs that add up over stages and hops; row 0 is the additive part of the score.

    A stage of s seconds on kind d costs ``rate[c, d] * s``, a hop of b bytes from kind d to e
    ``fixed[c, d, e] + per_byte[c, d, e] * b``, and packing costs the rates of both ends. An error
    of x adds ``error[c] * x``.

    Attributes:
        rate: (C, K).
        fixed: (C, K, K).
        per_byte: (C, K, K).
        error: (C,).
        limit: (C,) largest allowed sum, infinite where there is none.
    """

    rate: Floats
    fixed: Floats
    per_byte: Floats
    error: Floats
    limit: Floats

    def mix(self, weights: Floats) -> Criteria:
        """New criteria as weighted sums: (M, C) weights give M rows without own limits."""
        return Criteria(
            rate=np.tensordot(weights, self.rate, 1),
            fixed=np.tensordot(weights, self.fixed, 1),
            per_byte=np.tensordot(weights, self.per_byte, 1),
            error=weights @ self.error,
            limit=np.full(len(weights), np.inf),
        )


def criteria(tables: Tables, goal: Goal, every: bool = False) -> Criteria:
    """The score's additive part; energy and latency where a limit (or ``every``) asks; the errors.

    The row of the errors is the last one and there only when a choice may have an error.
    """
    delay = np.where(np.isfinite(tables.delay), tables.delay, 0.0)
    nothing = np.zeros_like(delay)
    ones = np.ones(tables.kinds)
    rows: list[tuple[Floats, Floats, Floats, float, float]] = [
        (
            goal.energy * tables.price * tables.watts + goal.latency,
            goal.latency * delay,
            goal.energy * tables.byte_priced + goal.latency * tables.byte_seconds,
            goal.error,
            np.inf,
        )
    ]
    tolerance = 1.0 + LIMIT_TOLERANCE
    if every or math.isfinite(goal.max_energy_j):
        limit = goal.max_energy_j * tolerance
        rows.append((tables.watts, nothing, tables.byte_joules, 0.0, limit))
    if every or math.isfinite(goal.max_latency_s):
        rows.append((ones, delay, tables.byte_seconds, 0.0, goal.max_latency_s * tolerance))
    if counts_errors(tables, goal):
        rows.append((0.0 * ones, nothing, nothing, 1.0, goal.max_error * tolerance))
    return Criteria(*(np.array(column, dtype=float) for column in zip(*rows, strict=True)))


def counts_errors(tables: Tables, goal: Goal) -> bool:
    """Whether a search has to add up errors."""
    jpeg = goal.jpeg_bytes is not None and goal.jpeg_error > 0.0
    return (tables.choices.lossy or jpeg) and (
        math.isfinite(goal.max_error) or goal.loss is not None
    )


@dataclass(frozen=True)
class Steps:
    """Which stages are possible and how long they take.

    Attributes:
        seconds: (K, T, V, L + 1, L + 1) of a stage from the first to the second cut.
        stage_ok: the same shape; False for empty or too large stages and those over the period.
        period_cap: longest time that a hop may keep its link busy.
    """

    seconds: Floats
    stage_ok: Bools
    period_cap: float


def steps(tables: Tables, goal: Goal) -> Steps:
    """Stages that memory and the period allow."""
    elapsed = tables.elapsed.swapaxes(1, 2)
    seconds = elapsed[..., None, :] - elapsed[..., :, None]
    seconds += tables.overhead[:, None, None, None, None]
    weights = tables.weight_bytes[:, None, :] - tables.weight_bytes[:, :, None]
    forward = np.triu(np.ones((tables.units + 1, tables.units + 1), dtype=bool), 1)
    fits = weights[None] <= tables.memory[:, None, None, None]
    return Steps(
        seconds=seconds,
        stage_ok=(forward & fits)[:, None] & (seconds <= goal.period_cap),
        period_cap=goal.period_cap,
    )


@dataclass(frozen=True)
class Hops:
    """What n devices may send to K kinds with S settings.

    Attributes:
        ok: (n, S, K) whether a device may send so.
        seconds: (n, S, K) that it keeps the link busy.
        costs: (C, n, S, K).
    """

    ok: Bools
    seconds: Floats
    costs: Floats


def hops(
    tables: Tables, steps: Steps, criteria: Criteria, held: Ints, unit: Ints, kind: Ints
) -> Hops:
    """All hops of n devices by their kind, the set of tokens they hold and the cut, (n,) each."""
    choices = tables.choices
    sizes = choices.bytes[held, unit]
    present = np.isfinite(sizes)[..., None]
    sizes = np.where(present, sizes[..., None], 0.0)
    costs = criteria.fixed[:, kind, None] + criteria.per_byte[:, kind, None] * sizes
    if choices.packs:
        slowness = criteria.rate * tables.packing
        costs += slowness[:, kind, None, None] * choices.pack_s[held, unit][..., None]
        costs += slowness[:, None, None, :] * choices.unpack_s[held, unit][..., None]
    if criteria.error.any():
        costs += criteria.error[:, None, None, None] * choices.cut_error[held, unit][..., None]
    seconds = sizes * tables.byte_seconds[kind, None]
    linked = np.isfinite(tables.delay[kind, None])
    return Hops(linked & present & (seconds <= steps.period_cap), seconds, costs)


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
    """Rows of least costs of single steps, infinite for impossible ones.

    Attributes:
        rows: C.
        stage: cut -> (C, K, T, V, L - cut) of the stages from the cut to every later one.
        hop: cut -> (C, K, T, S, K) of sending the data of the cut.
        join: how costs of steps come together: they add up, or the largest counts.
    """

    rows: int
    stage: Callable[[int], Floats]
    hop: Callable[[int], Floats]
    join: np.ufunc


def additive_costs(tables: Tables, steps: Steps, criteria: Criteria) -> Costs:
    """Steps of criteria that add up."""
    errors = tables.choices.level_error

    def stage(cut: int) -> Floats:
        costs = criteria.rate[:, :, None, None, None] * steps.seconds[:, :, :, cut, cut + 1 :]
        if criteria.error.any():
            of_stage = errors[:, cut + 1 :] - errors[:, cut, None]
            costs += criteria.error[:, None, None, None, None] * of_stage
        return np.where(steps.stage_ok[:, :, :, cut, cut + 1 :], costs, np.inf)

    def hop(cut: int) -> Floats:
        every = _every_hop(tables, steps, criteria, cut)
        return _by_place(tables, np.where(every.ok, every.costs, np.inf))

    return Costs(len(criteria.rate), stage, hop, np.add)


def peak_costs(tables: Tables, steps: Steps, criteria: Criteria) -> Costs:
    """Steps of the period, one row; without packing, which only adds to them."""

    def stage(cut: int) -> Floats:
        ok = steps.stage_ok[:, :, :, cut, cut + 1 :]
        return np.where(ok, steps.seconds[:, :, :, cut, cut + 1 :], np.inf)[None]

    def hop(cut: int) -> Floats:
        every = _every_hop(tables, steps, criteria, cut)
        return _by_place(tables, np.where(every.ok, every.seconds, np.inf)[None])

    return Costs(1, stage, hop, np.maximum)


def _every_hop(tables: Tables, steps: Steps, criteria: Criteria, cut: int) -> Hops:
    """Hops at ``cut`` from every kind with every set of tokens."""
    kind, held = np.divmod(np.arange(tables.kinds * tables.token_sets), tables.token_sets)
    return hops(tables, steps, criteria, held, np.full(len(kind), cut), kind)


def _by_place(tables: Tables, costs: Floats) -> Floats:
    """(C, K * T, S, K) as (C, K, T, S, K)."""
    return costs.reshape(len(costs), tables.kinds, tables.token_sets, *costs.shape[2:])


@dataclass(frozen=True)
class Bounds:
    """Least cost of the rest of a plan by row, state, kind, tokens and cut: (C, Z, K, T, L + 1).

    Attributes:
        after: the units before the cut are done, the last ones on the kind; at the last cut
            the exact way to the sink.
        before: a device of the kind is taken and about to run a stage from the cut.
    """

    after: Floats
    before: Floats


def bounds(tables: Tables, states: States, costs: Costs) -> Bounds:
    """Backward over the cuts: best stage, then best hop."""
    units = tables.units
    shape = costs.rows, len(states.after), tables.kinds, tables.token_sets, units + 1
    after, before = np.full(shape, np.inf), np.full(shape, np.inf)
    # The result travels as it is.
    to_sink = costs.hop(units)[:, :, :, 0, tables.sink]
    to_sink[:, tables.sink] = 0.0
    after[..., units] = to_sink[:, None]
    for cut in range(units - 1, -1, -1):
        stage = costs.stage(cut).min(axis=3)[:, None]
        before[..., cut] = costs.join(stage, after[..., cut + 1 :]).min(axis=4)
        if cut:
            hop = _least_hops(tables, costs.hop(cut), cut)
            onward = _onward(states, before[..., cut])
            after[..., cut] = costs.join(hop[:, None], onward).min(axis=(4, 5))
    return Bounds(after, before)


def _onward(states: States, before: Floats) -> Floats:
    """(C, Z, 1, 1, K, T) least cost from taking a device of each kind on; ``before`` at one cut."""
    taken = states.after >= 0
    onward = before[:, states.after, np.arange(before.shape[2])]
    return np.where(taken[None, :, :, None], onward, np.inf)[:, :, None, None]


def _least_hops(tables: Tables, hop: Floats, cut: int) -> Floats:
    """(C, K, T, K, T) cheapest setting by set of tokens that is held and received."""
    received = tables.choices.received[:, cut]
    return np.stack(
        [
            np.where((received == t)[..., None], hop, np.inf).min(axis=3)
            for t in range(tables.token_sets)
        ],
        axis=-1,
    )


def overused(
    tables: Tables, states: States, costs: Costs, bounds: Bounds, starts: tuple[Floats, Ints]
) -> list[set[int]]:
    """Kinds that the cheapest way of each row uses more often than there are devices.

    Args:
        tables: arrays of fleet and model.
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
        total = costs.join(values[:, row], bounds.before[row, first, kinds, 0, 0])
        best = int(np.argmin(total))
        used = np.zeros(tables.kinds, dtype=np.int64)
        state, kind, held, cut = int(first[best]), int(kinds[best]), 0, 0
        while math.isfinite(total[best]):
            used[kind] += 1
            stage = costs.stage(cut)[row, kind, held].min(axis=0)
            rest = bounds.after[row, state, kind, held, cut + 1 :]
            cut += 1 + int(np.argmin(costs.join(stage, rest)))
            if cut == tables.units:
                break
            hop = _least_hops(tables, costs.hop(cut), cut)[row, kind, held]
            onward = _onward(states, bounds.before[:, :, :, :, cut])[row, state, 0, 0]
            kind, held = divmod(int(np.argmin(costs.join(hop, onward))), tables.token_sets)
            state = int(states.after[state, kind])
        found.append(set(np.flatnonzero(used > tables.counts).tolist()))
    return found


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
    times = np.diff(tables.elapsed, axis=3).min(axis=(1, 2))
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
    single = bounds(tables, states, additive_costs(tables, steps, base))
    least = (values[:, 0] + single.before[0, first, kinds, 0, 0]).min()
    limited = [
        row
        for row in range(1, len(base.rate))
        if math.isfinite(base.limit[row]) and base.limit[row]
    ]
    if not limited or not math.isfinite(least):
        return np.ones((0, len(base.rate)))
    weights = np.zeros((len(limited), len(_MULTIPLIERS), len(base.rate)))
    weights[:, :, 0] = 1.0
    for place, row in enumerate(limited):
        weights[place, :, row] = _MULTIPLIERS * max(least, 1.0 / _HUGE) / base.limit[row]
    flat = weights.reshape(-1, len(base.rate))
    mixed = bounds(tables, states, additive_costs(tables, steps, base.mix(flat)))
    at_start = (flat @ values.T + mixed.before[:, first, kinds, 0, 0]).min(axis=1)
    gain = at_start - flat[:, limited] @ base.limit[limited]
    return flat[np.argsort(-gain, kind='stable')[:_KEPT_MULTIPLIERS]]

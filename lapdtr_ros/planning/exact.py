"""The optimal plan: attempts of the label search that get more thorough as long as it takes.

Most problems end in the first, cheap attempt. The others need tighter bounds (more critical kinds)
or, where the score mixes sums with the period, a division of the period's range: inside a narrow
range the period hardly counts and labels compare by their sums alone.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .bounds import Goal, counts_errors
from .cost import LIMIT_TOLERANCE
from .search import Chain, Search, SearchTooLargeError
from .tables import Tables

# Labels per cut of the beam solver and of the beam that gives an attempt its first upper bound.
BEAM_WIDTH = 12
_SCOUT_WIDTH = 4

_UNBOUNDED = 20_000_000
# (states of the bounds, labels) of one attempt after the other.
_Efforts = tuple[tuple[int, int], ...]
_SINGLE: _Efforts = ((1, 5_000), (16, 15_000), (128, 60_000), (1024, _UNBOUNDED))
_MIXED: _Efforts = ((1, 5_000), (16, 20_000))
_RANGE: _Efforts = ((16, 20_000), (128, 60_000))
_LAST: _Efforts = ((1024, _UNBOUNDED),)
# Parts of a range of periods, and how narrow a range is divided no further.
_PARTS = 6
_NARROW = 1.01


def best_chain(tables: Tables, goal: Goal, *, exact: bool) -> Chain | None:
    """Least score, or None when no plan keeps the limits (for a beam: none was found).

    Where the period alone counts, plans of equal period are told apart by their energy.

    Raises:
        SearchTooLargeError: the fleet is too large for an exact search.
    """
    best = least_chain(tables, goal, exact=exact)
    if best is None or goal.energy > 0.0 or goal.latency > 0.0 or goal.loss is not None:
        return best
    # Many plans share the least period. The tolerance of limits is taken off again.
    period = best.score / goal.period * (1.0 - 0.999 * LIMIT_TOLERANCE)
    thrifty = replace(goal, energy=1.0, period=0.0, max_period_s=period)
    return best_chain(tables, thrifty, exact=exact) or best


def least_chain(tables: Tables, goal: Goal, *, exact: bool) -> Chain | None:
    """As `best_chain`, but equal scores are not told apart."""
    return _Exact(tables, goal).solve() if exact else Search(tables, goal).run(width=BEAM_WIDTH)


class _Exact:
    """One exact search; `best` is the best plan so far."""

    def __init__(self, tables: Tables, goal: Goal) -> None:
        self.tables = tables
        self.goal = goal
        self.best: Chain | None = None

    @property
    def upper(self) -> float:
        """Score to beat."""
        return math.inf if self.best is None else self.best.score

    def solve(self) -> Chain | None:
        sums = self.goal.energy > 0.0 or self.goal.latency > 0.0
        # A limited sum of errors is one more that plans differ in besides the period.
        sums = sums or counts_errors(self.tables, self.goal)
        if sums and self.goal.period > 0.0:
            self._mixed()
        else:
            self._attempt(self.goal, _SINGLE)
        return self.best

    def _mixed(self) -> None:
        """Score with sums and the period: divide the range of periods when it gets hard."""
        try:
            self._attempt(self.goal, _MIXED)
        except SearchTooLargeError:
            search = Search(self.tables, self.goal)
            least_sum, low = search.least()
            high = self.goal.max_period_s
            if self.best is not None:
                high = min(high, (self.best.score - least_sum) / self.goal.period)
            if math.isfinite(high) and low > 0.0:
                self._range(low, high)
            else:
                self._attempt(self.goal, _LAST)

    def _range(self, low: float, high: float) -> None:
        """Search all plans with a period from ``low`` to ``high`` in parts."""
        edges = np.geomspace(low, max(low, high), _PARTS + 1)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            part = replace(self.goal, least_period_s=start, max_period_s=stop)
            try:
                self._attempt(part, _RANGE)
            except SearchTooLargeError:
                if stop > start * _NARROW:
                    self._range(start, stop)
                else:
                    self._attempt(part, _LAST)

    def _attempt(self, goal: Goal, efforts: _Efforts) -> None:
        """Make `best` optimal for ``goal``.

        Raises:
            SearchTooLargeError: the last effort was not enough.
        """
        search = Search(self.tables, goal)
        for number, (most_states, budget) in enumerate(efforts, start=1):
            search.refine(most_states)
            self.best = search.run(width=_SCOUT_WIDTH, upper=self.upper) or self.best
            try:
                self.best = search.run(upper=self.upper, budget=budget) or self.best
            except SearchTooLargeError:
                if number == len(efforts):
                    raise
            else:
                return

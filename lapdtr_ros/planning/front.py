"""All plans that are best in some respect: the Pareto front over energy, latency and period."""

from __future__ import annotations

import numpy as np

from .bounds import Goal
from .dominance import Bools, Floats, Ints, undominated
from .search import Chain, Complete, Search, read_chain
from .tables import Tables

# Points of the front that partial plans are compared with; more cost time and prune little.
_MOST_COMPARED = 64


class FrontSearch(Search):
    """Label search that keeps every non-dominated plan instead of the one of least score.

    The goal's weights are not used, its limits are. A label is dropped when a complete plan is at
    least as good as the lower bounds of all that the label can become.
    """

    def __init__(self, tables: Tables, goal: Goal) -> None:
        super().__init__(tables, goal, every=True)
        self._points: Floats = np.empty((0, 3))
        self._plans: list[Complete] = []

    def front(self, width: int, budget: int = 20_000_000) -> list[Chain]:
        """Non-dominated plans, least energy first; all of them unless `truncated` is set then.

        Args:
            width: labels kept per cut and step.
            budget: labels that may be made in all.

        Raises:
            SearchTooLargeError: the budget is spent.
        """
        history = self._rounds(width, None, budget)
        order = np.lexsort(self._points.T[::-1])
        return [read_chain(history, self._plans[i], self.tables) for i in order]

    def _promising(
        self, values: Floats, rest: Floats, mixed_rest: Floats, peak: Floats
    ) -> tuple[Bools, Floats]:
        every = values + rest
        fine = np.isfinite(every[0])
        for row, limit in zip(every[1:], self._base.limit[1:], strict=True):
            fine &= row <= limit
        lower = np.stack([every[1], every[2], peak])
        index = np.nonzero(fine)
        alive = lower[:, fine]
        beaten = np.zeros(len(index[0]), dtype=bool)
        step = max(1, len(self._points) // _MOST_COMPARED)
        for point in self._points[::step]:
            beaten |= (point[:, None] <= alive).all(axis=0)
        fine[tuple(axis[beaten] for axis in index)] = False
        # A beam prefers labels that may become good in all respects.
        scale = np.where(self._points.size, self._points.min(axis=0, initial=np.inf), 1.0)
        scale = np.where(scale > 0.0, scale, 1.0)
        return fine, np.tensordot(1.0 / scale, lower, 1)

    def _note(self, depth: int, index: Ints, level: int, values: Floats, peak: Floats) -> None:
        points = np.concatenate([self._points, np.column_stack([values[:, 1:3], peak])])
        plans = [*self._plans, *(Complete(depth, int(i), level, 0.0) for i in index)]
        kept = undominated(np.zeros(len(points), dtype=np.uint64), points)
        self._points = points[kept]
        self._plans = [plans[i] for i in kept]

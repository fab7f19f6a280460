"""Which rows of costs are worth keeping, for many groups of rows at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def undominated(key: NDArray[np.uint64], columns: Floats) -> NDArray[np.intp]:
    """Indices of rows that no other row of equal key matches or beats in all columns.

    Of equal rows the first stays. With three columns or more, a group of very many rows may keep
    some dominated ones.
    """
    order = np.lexsort((*columns.T[::-1], key))
    sorted_key, rows = key[order], columns[order]
    if columns.shape[1] == 1:
        keep = group_starts(sorted_key)
    elif columns.shape[1] == 2:
        keep = _sweep(sorted_key, rows[:, 1])
    else:
        keep = _tournament(sorted_key, rows)
    return np.sort(order[keep])


def group_starts(sorted_key: NDArray) -> Bools:
    """Whether each entry begins a run of equal keys."""
    starts = np.ones(len(sorted_key), dtype=bool)
    starts[1:] = sorted_key[1:] != sorted_key[:-1]
    return starts


def rank_in_groups(sorted_key: NDArray) -> Ints:
    """Position of each entry within its run of equal keys."""
    starts = group_starts(sorted_key)
    place = np.arange(len(sorted_key))
    return place - np.maximum.accumulate(np.where(starts, place, 0))


def _sweep(sorted_key: NDArray[np.uint64], second: Floats) -> Bools:
    """Rows sorted by key and first column stay while the second column reaches a new low."""
    rank = np.unique(second, return_inverse=True)[1].reshape(-1)
    group = np.cumsum(group_starts(sorted_key))
    # Later groups lie wholly below earlier ones, so one running minimum serves all groups.
    level = rank - group * len(rank)
    keep = np.ones(len(rank), dtype=bool)
    keep[1:] = level[1:] < np.minimum.accumulate(level)[:-1]
    return keep


def _tournament(sorted_key: NDArray[np.uint64], rows: Floats, rounds: int = 256) -> Bools:
    """In each round the first open row of every group stays and removes all that it dominates."""
    keep = np.zeros(len(sorted_key), dtype=bool)
    open_ = np.arange(len(sorted_key))
    for _ in range(rounds):
        if not len(open_):
            break
        starts = group_starts(sorted_key[open_])
        keep[open_[starts]] = True
        champion = open_[starts][np.cumsum(starts) - 1]
        beaten = (rows[champion] <= rows[open_]).all(axis=1)
        open_ = open_[~beaten]
    keep[open_] = True
    return keep

"""Leave groups out and let the rest take over: choice and least squares in closed form.

A reader gives y = W h + b of its inputs h. Without the inputs R it can only see h_K, but the two
are correlated, so the best it can do is

    W' = W_K + (W_R G_RK + X_K) (G_KK + λI)⁻¹,   b' = W μ + b + e - W' μ_K

with mean μ and covariance G of h over calibration frames. X and e are the cross-covariance with h,
and the mean, of what the units before lack (0 where they are whole). λ keeps W' near W_K where data
are few. The form is that of optimal brain surgeon and its descendants; see `docs/paper.md`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

RIDGE = 0.01  # of the mean variance
_STEPS = 48  # in which the neurons of one part are eliminated


class Moments:
    """Streaming mean and covariance of a reader's inputs, and of them with an error.

    Args:
        inputs: number of channels of h.
        outputs: number of channels of the error.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.count = 0
        self._total = torch.zeros(inputs, dtype=torch.float64)
        self._products = torch.zeros(inputs, inputs, dtype=torch.float64)
        self._error_total = torch.zeros(outputs, dtype=torch.float64)
        self._cross = torch.zeros(outputs, inputs, dtype=torch.float64)

    def add(self, rows: Tensor, errors: Tensor | None = None) -> None:
        """Add inputs [n, inputs], with errors [n, outputs] where there are some."""
        self.count += len(rows)
        self._total += rows.sum(0, dtype=torch.float64)
        # Single precision suffices within one frame and is much faster.
        self._products += rows.T @ rows
        if errors is not None:
            self._error_total += errors.sum(0, dtype=torch.float64)
            self._cross += errors.T @ rows

    def __add__(self, other: Moments) -> Moments:
        """Statistics of both sets of rows."""
        both = copy.copy(self)
        for name in ('count', '_total', '_products', '_error_total', '_cross'):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    @property
    def mean(self) -> Tensor:
        """Mean of h [inputs]."""
        return self._total / self.count

    @property
    def covariance(self) -> Tensor:
        """Covariance G of h [inputs, inputs]."""
        return self._products / self.count - torch.outer(self.mean, self.mean)

    @property
    def error_mean(self) -> Tensor:
        """Mean error e [outputs]."""
        return self._error_total / self.count

    @property
    def cross_covariance(self) -> Tensor:
        """Covariance X of error and h [outputs, inputs]."""
        return self._cross / self.count - torch.outer(self.error_mean, self.mean)


def compensate(
    weight: Tensor, bias: Tensor, kept: Tensor, moments: Moments
) -> tuple[Tensor, Tensor]:
    """Reader for some of its inputs, fitted by least squares.

    Args:
        weight: W [outputs, inputs].
        bias: b [outputs].
        kept: indices of the inputs K that stay.
        moments: statistics of the inputs.

    Returns:
        W' [outputs, len(kept)] and b' [outputs], in the types of W and b.
    """
    full, mean, covariance = weight.double(), moments.mean, moments.covariance
    gone = torch.ones(len(mean), dtype=torch.bool)
    gone[kept] = False
    lacking = full[:, gone] @ covariance[gone][:, kept] + moments.cross_covariance[:, kept]
    factor = torch.linalg.cholesky(_with_ridge(covariance[kept][:, kept]))
    narrow = full[:, kept] + torch.cholesky_solve(lacking.T, factor).T
    shift = full @ mean + bias.double() + moments.error_mean - narrow @ mean[kept]
    return narrow.to(weight.dtype), shift.to(bias.dtype)


def order_groups(weight: Tensor, covariance: Tensor, group: int, floor: int) -> Tensor:
    """Sort groups so that every prefix is a good choice, by backward elimination.

    The group that costs least after compensation goes first, then the least of the rest, and so on
    (neurons a few at a time). What a group costs is its variance that the others cannot predict,
    seen through the reader.

    Args:
        weight: W of the reader [outputs, groups * group].
        covariance: G of its inputs.
        group: inputs per group.
        floor: groups that are not ranked any more, they come first.

    Returns:
        Indices of all groups, the most important first.
    """
    weight = weight.double()
    precision = torch.linalg.inv(_with_ridge(covariance))
    alive = torch.arange(len(covariance) // group)
    at_once = max(1, (len(alive) - floor) // _STEPS)
    gone: list[Tensor] = []
    while len(alive) > floor:
        cost = _costs(weight, precision, group)
        order = cost.argsort()
        leave, stay = order[: min(at_once, len(alive) - floor)], order[at_once:].sort().values
        out, rest = _members(leave, group), _members(stay, group)
        solved = torch.linalg.solve(precision[out][:, out], precision[out][:, rest])
        weight = weight[:, rest] - weight[:, out] @ solved
        precision = precision[rest][:, rest] - precision[rest][:, out] @ solved
        gone.append(alive[leave])
        alive = alive[stay]
    last = alive[_costs(weight, precision, group).argsort(descending=True)]
    return torch.cat([last, *(part.flip(0) for part in reversed(gone))])


def _costs(weight: Tensor, precision: Tensor, group: int) -> Tensor:
    """Error per group that appears at the output when the group alone leaves."""
    groups = len(precision) // group
    blocks = precision.unflatten(0, (groups, group)).unflatten(2, (groups, group))
    diagonal = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.unflatten(1, (groups, group)).permute(1, 2, 0)
    return (columns * torch.linalg.solve(diagonal, columns)).sum((1, 2))


def _members(groups: Tensor, group: int) -> Tensor:
    return (groups[:, None] * group + torch.arange(group)).flatten()


def _with_ridge(covariance: Tensor) -> Tensor:
    """Regularised, and positive definite even where a channel never changes."""
    ridge = RIDGE * covariance.diagonal().mean() + torch.finfo(torch.float32).tiny
    return covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype)

"""Losses of the dense detection head.

Focal on the heat, L1 on what describes a box, but for the depth: its error counts in units of what
the head itself expects (likelihood of a Laplace distribution, Kendall & Gal, 2017, section 3.2), so
that vehicles whose distance cannot be seen do not rule the training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lapdtr_ros.perception.detection_targets import (
    CHANNELS,
    DEPTH,
    HEADING,
    HEAT,
    OFFSET,
    SIZE,
    SPREAD,
    DetectionTargets,
)

PART_WEIGHTS = {'heat': 1.0, 'offset': 0.5, 'depth': 1.0, 'size': 1.5, 'heading': 1.0}

_PARTS: dict[str, slice] = {'offset': OFFSET, 'size': SIZE, 'heading': HEADING}
_SPREADS = (-4.5, 2.0)  # nobody judges distances better than to 1 %
_NEIGHBOUR_WEIGHT = 0.3
_LEAST_PROBABILITY = 1e-5
_NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of one picture as arrays of the same shape as the head's output.

    Attributes:
        values: float32, (`CHANNELS`, rows, columns).
        weights: float32, same shape; how much each value of a box counts, 0 where there is none.
            Unused for the heat.
    """

    values: np.ndarray
    weights: np.ndarray


def spread_targets(targets: DetectionTargets) -> Targets:
    """Let the cells around a box's centre describe it too, with less weight.

    A peak that is off by a cell then still says something sensible, and every box gives the head
    more to learn from. The offset is about one cell only and stays where it is.
    """
    values = targets.values.copy()
    weights = np.zeros_like(values)
    weights[1:, targets.mask] = 1.0
    rows, columns = targets.owner.shape
    for row, column in np.argwhere(targets.mask):
        for y, x in _NEIGHBOURS:
            near = row + y, column + x
            inside = 0 <= near[0] < rows and 0 <= near[1] < columns
            if inside and weights[DEPTH][near] == 0.0:
                values[DEPTH:, near[0], near[1]] = targets.values[DEPTH:, row, column]
                weights[DEPTH:, near[0], near[1]] = _NEIGHBOUR_WEIGHT
    return Targets(values, weights)


def detection_loss(prediction: Tensor, values: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Parts of the loss, `total` among them; `depth_error` is only told.

    Args:
        prediction: output of the head, [B, 10, rows, columns].
        values: targets, same shape.
        weights: of the targets, same shape.
    """
    assert prediction.shape[1] == CHANNELS
    difference = (prediction - values).abs()
    parts = {'heat': heat_loss(prediction[:, HEAT], values[:, HEAT])}
    for name, channels in _PARTS.items():
        parts[name] = _mean(difference[:, channels], weights[:, channels])
    error, weight = difference[:, DEPTH], weights[:, DEPTH]
    spread = prediction[:, SPREAD].clamp(*_SPREADS)
    parts['depth'] = _mean(error * torch.exp(-spread) + spread, weight)
    parts['total'] = torch.stack([w * parts[name] for name, w in PART_WEIGHTS.items()]).sum()
    parts['depth_error'] = _mean(error, weight)
    return parts


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1.0)


def heat_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Focal loss of CenterNet (Zhou et al., 2019, equation 1, α = 2, β = 4), per vehicle.

    Cells near a centre are negative, but the less so the nearer they are.
    """
    probability = probability.clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    centre = target >= 1.0
    found = (1 - probability) ** 2 * probability.log()
    rejected = (1 - target) ** 4 * probability**2 * (1 - probability).log()
    return -torch.where(centre, found, rejected).sum() / centre.sum().clamp(min=1)

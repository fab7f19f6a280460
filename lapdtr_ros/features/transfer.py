"""Knowledge transfer: X_j = W X_i, an adapter between what a stage gets and what it expects (§4.1).

Where both sides run the same units at full width, W is the identity and no adapter is used. It
stands in for units that are left out (``skip.4`` for unit 4) and makes up for units that were
shrunk. It is fitted in closed form on calibration frames, as ridge regression towards the identity,
and accepted only if it lowers the error of the last features on frames it was not fitted on: the
adapter with the least error at the cut itself shrinks everything towards the mean, which later
blocks may take worse than the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lapdtr_ros.models.layout import NCHW

from .calibration import Calibration
from .errors import CalibrationError

Array = npt.NDArray[np.float32]

AFFINE, GAIN = 'affine', 'gain'

_NAMESPACE = 'transfer'
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Adapter:
    """y = x + W x + b, or y = g x + b per channel, in the place of some units.

    Attributes:
        start: the cut where it stands, i.e. the unit whose input it takes.
        stop: the unit whose input it gives; equal to ``start`` if it replaces no unit.
        weight: W as float32 [C, C] to multiply from the right, or the gains g [C].
        bias: b, float32 [C].
    """

    start: int
    stop: int
    weight: Array
    bias: Array

    def apply(self, features: Array, layout: str) -> Array:
        """Adapt features [1, ...] of a layout; summarised tokens are adapted row by row."""
        if layout == NCHW:
            return np.ascontiguousarray(self._rows(features.swapaxes(1, 3)).swapaxes(1, 3))
        return self._rows(features)

    def _rows(self, features: Array) -> Array:
        if self.weight.ndim == 1:
            return features * self.weight + self.bias
        return features + features @ self.weight + self.bias

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What `lapdtr_ros.features.calibration.write_calibration` stores, as ``name``."""
        return {
            f'{_NAMESPACE}.{name}.weight': torch.from_numpy(self.weight).half(),
            f'{_NAMESPACE}.{name}.bias': torch.from_numpy(self.bias),
            f'{_NAMESPACE}.{name}.units': torch.tensor([self.start, self.stop]),
        }


def skip_name(unit: int) -> str:
    """Name of the adapter that stands in for a unit."""
    return f'skip.{unit}'


def read_adapter(calibration: Calibration, name: str) -> Adapter:
    """Read an adapter.

    Raises:
        CalibrationError: the file has no such adapter, or its tensors do not fit each other.
    """
    parts = ('weight', 'bias', 'units')
    tensors = calibration.tensors([f'{_NAMESPACE}.{name}.{part}' for part in parts])
    weight, bias, units = tensors.values()
    channels = bias.numel()
    shapes_fit = (
        bias.ndim == 1
        and tuple(weight.shape) in ((channels,), (channels, channels))
        and units.numel() == 2
        and 0 < int(units[0]) <= int(units[1])
    )
    if not shapes_fit or not bool(weight.isfinite().all() and bias.isfinite().all()):
        raise CalibrationError(
            f'calibration {calibration.path}: adapter {name!r} has tensors that do not fit each '
            f'other or are not finite; make it again with "lapdtr calibrate"'
        )
    start, stop = (int(unit) for unit in units)
    return Adapter(start, stop, weight.float().numpy(), bias.float().numpy())


class TransferSums:
    """Streaming sums over pairs of rows (u, v), from which adapters are solved; float64.

    Args:
        layout: kind of the features, see `lapdtr_ros.models.layout.FeatureLayout`.
    """

    def __init__(self, layout: str) -> None:
        self._layout = layout
        self._count = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, given: Tensor, expected: Tensor) -> None:
        """Add features [B, ...] that the receiver gets and those that it expects."""
        u, v = (_rows(x, self._layout).double() for x in (given, expected))
        self._count += u.shape[0]
        for name, value in {
            'u': u.sum(0),
            'v': v.sum(0),
            'uu': u.T @ u,
            'ud': u.T @ (v - u),
            'vv': v.square().sum(0),
        }.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def affine(self, start: int, stop: int, ridge: float = 1e-2) -> Adapter:
        """W and b of least squared error; ``ridge`` times the mean variance pulls W towards 0."""
        self._check()
        u, v = self._means()
        covariance = self._sums['uu'] / self._count - torch.outer(u, u)
        cross = self._sums['ud'] / self._count - torch.outer(u, v - u)
        pull = ridge * covariance.diagonal().mean() + _TINY
        weight = torch.linalg.solve(
            covariance + pull * torch.eye(len(u), dtype=torch.float64), cross
        )
        return _adapter(start, stop, weight, v - u - u @ weight)

    def gain(self, start: int, stop: int) -> Adapter:
        """Gain and bias per channel that match mean and standard deviation."""
        self._check()
        u, v = self._means()
        spread_u = self._sums['uu'].diagonal() / self._count - u.square()
        spread_v = self._sums['vv'] / self._count - v.square()
        gain = ((spread_v.clamp(min=0) + _TINY) / (spread_u.clamp(min=0) + _TINY)).sqrt()
        return _adapter(start, stop, gain, v - gain * u)

    def _means(self) -> tuple[Tensor, Tensor]:
        return self._sums['u'] / self._count, self._sums['v'] / self._count

    def _check(self) -> None:
        if not self._count:
            raise CalibrationError('an adapter from no frames; give at least one calibration frame')


@dataclass(frozen=True)
class TransferReport:
    """How well adapters did on held-out frames, as error over variance of the last features.

    Attributes:
        identity: without an adapter.
        errors: by kind of adapter.
        chosen: kind that was accepted; empty if none beat the identity.
    """

    identity: float
    errors: Mapping[str, float]
    chosen: str


def fit_adapter(
    pairs: Iterable[tuple[Tensor, Tensor]],
    held_out: Sequence[tuple[Tensor, Tensor]],
    tail: Callable[[Tensor], Tensor],
    layout: str,
    start: int,
    stop: int,
) -> tuple[Adapter | None, TransferReport]:
    """Fit adapters of every kind and accept the best, if it helps.

    Args:
        pairs: batches [B, ...] of what the receiver gets and what it expects, to fit on.
        held_out: more of them, of other pictures.
        tail: the units behind the adapter, from its output to the last features before the head.
        layout: kind of the features.
        start: cut where the adapter stands.
        stop: the unit whose input it gives.

    Returns:
        The adapter, None if the identity is not beaten, and how it was found.
    """
    sums = TransferSums(layout)
    for features, expected in pairs:
        sums.add(features, expected)
    candidates = {GAIN: sums.gain(start, stop), AFFINE: sums.affine(start, stop)}
    with torch.inference_mode():
        references = [tail(expected) for _, expected in held_out]
    given = [pair[0] for pair in held_out]
    identity = tail_error(given, references, tail, None, layout)
    errors = {
        kind: tail_error(given, references, tail, adapter, layout)
        for kind, adapter in candidates.items()
    }
    best = min(errors, key=lambda kind: errors[kind])
    accepted = errors[best] < identity
    report = TransferReport(identity, errors, best if accepted else '')
    return candidates[best] if accepted else None, report


def tail_error(
    given: Sequence[Tensor],
    references: Sequence[Tensor],
    tail: Callable[[Tensor], Tensor],
    adapter: Adapter | None,
    layout: str,
) -> float:
    """Squared error of the last features over their variance.

    Args:
        given: what the receiver gets, batches [B, ...].
        references: the last features that it should end with.
        tail: the units between the two.
        adapter: applied first; None for the identity.
        layout: kind of the features.
    """
    error = variance = 0.0
    with torch.inference_mode():
        for features, reference in zip(given, references, strict=True):
            adapted = features
            if adapter is not None:
                adapted = torch.from_numpy(adapter.apply(features.numpy(), layout))
            error += float((tail(adapted) - reference).double().square().sum())
            variance += float((reference.double() - reference.double().mean()).square().sum())
    return error / max(variance, _TINY)


def _adapter(start: int, stop: int, weight: Tensor, bias: Tensor) -> Adapter:
    return Adapter(start, stop, weight.float().numpy(), bias.float().numpy())


def _rows(features: Tensor, layout: str) -> Tensor:
    """Features [B, ...] as rows [n, C]."""
    if layout == NCHW:
        features = features.movedim(1, -1)
    return features.reshape(-1, features.shape[-1])

"""What runs through a unit on calibration frames, and how wrong a shrunk model's features are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .parts import Part, replace_parts

Features = Sequence[Tensor]


def run_frames(units: Iterable[nn.Module], frames: Features) -> list[Tensor]:
    """Run units on frames [1, ...], one by one, as a device does."""
    chain = nn.Sequential(*units)
    with torch.no_grad():
        return [chain(features) for features in frames]


def as_rows(features: Tensor, channels_first: bool) -> Tensor:
    """Features [1, ...] as rows [positions, channels]."""
    if channels_first:
        features = features.permute(0, 2, 3, 1)
    return features.reshape(-1, features.shape[-1])


def reader_inputs(
    parts: Sequence[Part], unit: nn.Module, features: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Run a unit and keep what the readers of some of its parts saw.

    Args:
        parts: parts whose readers are in ``unit``.
        unit: the unit.
        features: its input [1, ...].

    Returns:
        Each reader's inputs as rows [positions, channels], and the unit's output.
    """
    seen: dict[nn.Module, Tensor] = {}

    def keep(reader: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[reader] = as_rows(inputs[0], isinstance(reader, nn.Conv2d))

    hooks = [part.reader.register_forward_pre_hook(keep) for part in parts]
    try:
        (output,) = run_frames([unit], [features])
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[part.reader] for part in parts], output


def output_gain(
    part: Part, unit: nn.Module, features: Tensor, channels_first: bool
) -> Tensor | None:
    """How a unit's output answers to the bias of a part's reader.

    A part that is added to the output last, scaled or not, can mend what the units before it got
    wrong. Which parts are, is found by trying, so no family has to be known here.

    Args:
        part: a part of ``unit``.
        unit: the unit.
        features: an input of it [1, ...].
        channels_first: whether its output is [1, C, H, W].

    Returns:
        Gain per channel [outputs], or None when the part is not added last.
    """
    weight, bias = part.reader_matrix()
    everyone = torch.arange(part.width)
    # Not the same for all channels: a layer norm behind the part would take that off again.
    raise_by = torch.ones_like(bias)
    raise_by[::2] = -1
    plain, raised = (
        run_frames([replace_parts(unit, {part.path: part.shrunk(everyone, weight, b)})], [features])
        for b in (bias, bias + raise_by)
    )
    change = as_rows(raised[0] - plain[0], channels_first)
    if change.shape[1] != len(bias):
        return None
    change = change / raise_by
    gain = change.mean(0)
    added_last = torch.allclose(change, gain.expand_as(change), rtol=1e-2, atol=1e-3)
    return gain if added_last and bool((gain.abs() > _LEAST_GAIN).all()) else None


_LEAST_GAIN = 1e-3  # below it, mending an error would take weights out of all proportion


class FeatureError:
    """Normalised error of features against the undisturbed model's, every channel alike.

    NMSE = mean over channels of (mean squared error / variance). The channels of a transformer
    differ by magnitudes, and heads normalise them first.

    Args:
        reference: the undisturbed model's features, frames [1, ...].
        channels_first: whether they are [1, C, H, W].
    """

    def __init__(self, reference: Features, channels_first: bool) -> None:
        self._reference = reference
        self._channels_first = channels_first
        rows = torch.cat([as_rows(features, channels_first) for features in reference])
        self._variance = rows.var(0).clamp_min(torch.finfo(torch.float32).eps)

    def __call__(self, features: Features) -> float:
        """NMSE of the same frames' features."""
        errors = [self.of(index, found) for index, found in enumerate(features)]
        return sum(errors) / len(errors)

    def of(self, index: int, features: Tensor) -> float:
        """NMSE of one frame's features, its variance being that of all frames."""
        error = as_rows(features - self._reference[index], self._channels_first)
        return float((error.square().mean(0) / self._variance).mean())


def unit_flops(unit: nn.Module, features: Tensor) -> float:
    """FLOPs of a unit on one frame, 2 per multiply-add."""
    with FlopCounterMode(display=False) as counter:
        run_frames([unit], [features])
    return float(counter.get_total_flops())

"""What the planner knows of a model: one record per unit (paper §4.2).

A *unit* is the smallest piece that is never split (patch embedding, one block, head). *Cut* ``k``
lies before unit ``k``: cut 0 carries the camera picture, cut ``L`` the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .accuracy import AccuracyTable

MATMUL = 'matmul'
CONV = 'conv'
FLOAT_BYTES = 4


@dataclass(frozen=True)
class UnitProfile:
    """Cost and size of one unit for one frame (batch 1, float32).

    Attributes:
        name: readable and unique inside the model, e.g. ``blocks.3``.
        flops: floating point operations, 2 per multiply-add.
        parameter_bytes: bytes of the unit's weights and buffers in the weight file.
        output_shape: shape of the output without the batch dimension.
        output_bytes: bytes of the output as float32.
        kind: `MATMUL` when matrix products dominate, `CONV` for small or depthwise
            convolutions, which reach a fraction of a device's matrix rate.
        heads: attention heads, 0 where there are none.
        embedding_dim: channels of the output.
        hidden_dim: width of the feed-forward network, 0 where there is none.
        tokens: tokens (or map positions) of the output.
        token_global: whether the unit runs on any number of tokens, in any order (global
            attention without positional terms), so that summarized features need no grid.
        attention_flops: part of ``flops`` that grows with the square of the tokens.
    """

    name: str
    flops: float
    parameter_bytes: int
    output_shape: tuple[int, ...]
    output_bytes: int
    kind: str = MATMUL
    heads: int = 0
    embedding_dim: int = 0
    hidden_dim: int = 0
    tokens: int = 0
    token_global: bool = False
    attention_flops: float = 0.0

    def flops_at(self, tokens: int) -> float:
        """FLOPs on ``tokens`` tokens, prefix tokens included; `flops` where the grid is needed."""
        if not self.token_global:
            return self.flops
        share = tokens / self.tokens
        return (self.flops - self.attention_flops) * share + self.attention_flops * share**2


@dataclass(frozen=True)
class ModelProfile:
    """All units of a model in order.

    Attributes:
        model: name of the model.
        picture_shape: (height, width, 3) of the uint8 picture that enters unit 0.
        units: the units, first to last.
        measured_s: measured seconds per unit by device class; a class that is absent is
            estimated from FLOPs.
        prefix_tokens: class, distillation and register tokens before the patch tokens.
        accuracy: what elastic levels, packed cuts and JPEG pictures save and lose; None when
            only plans without loss are known.
    """

    model: str
    picture_shape: tuple[int, int, int]
    units: tuple[UnitProfile, ...]
    measured_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    prefix_tokens: int = 0
    accuracy: AccuracyTable | None = None

    def __post_init__(self) -> None:
        for device_class, times in self.measured_s.items():
            if len(times) != len(self.units):
                raise ValueError(
                    f'measured_s[{device_class!r}] has {len(times)} times for '
                    f'{len(self.units)} units of {self.model}: measure every unit'
                )
        if self.accuracy is not None:
            self.accuracy.check_fits(self.model, len(self.units))

    def __len__(self) -> int:
        return len(self.units)

    @property
    def flops(self) -> float:
        """FLOPs of the whole model for one frame."""
        return sum(unit.flops for unit in self.units)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(unit.parameter_bytes for unit in self.units)

    @property
    def picture_bytes(self) -> int:
        """Bytes of the raw uint8 picture."""
        height, width, channels = self.picture_shape
        return height * width * channels

    def cut_bytes(self, cut: int) -> int:
        """Bytes that cross ``cut`` uncompressed; cut 0 is the raw picture."""
        if not 0 <= cut <= len(self.units):
            raise IndexError(f'cut {cut} of {self.model}: expected 0 to {len(self.units)}')
        return self.picture_bytes if cut == 0 else self.units[cut - 1].output_bytes

    def prefix_parameter_bytes(self) -> tuple[int, ...]:
        """Running sum of parameter bytes: entry ``k`` covers units ``0..k-1``."""
        return tuple(accumulate((u.parameter_bytes for u in self.units), initial=0))

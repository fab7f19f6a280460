"""What the output of a backbone looks like, so that one head can sit on any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 'tokens'
NCHW = 'nchw'
NHWC = 'nhwc'


@dataclass(frozen=True)
class FeatureLayout:
    """Shape of the tensors between units and, exactly, of the input of the head.

    ``kind`` and ``prefix_tokens`` hold at every cut of the model except the picture (cut 0) and the
    result (cut L); ``channels`` and ``grid`` are those of the last cut before the head, because
    hierarchical backbones shrink the grid on the way.

    Attributes:
        kind: `TOKENS` [B, prefix_tokens + h * w, C], `NCHW` [B, C, h, w] or `NHWC` [B, h, w, C].
        channels: C.
        grid: (h, w), rows and columns of the map.
        prefix_tokens: class, distillation and register tokens before the map's tokens.
    """

    kind: str
    channels: int
    grid: tuple[int, int]
    prefix_tokens: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the head's input without the batch dimension."""
        height, width = self.grid
        if self.kind == TOKENS:
            return (self.prefix_tokens + height * width, self.channels)
        if self.kind == NHWC:
            return (height, width, self.channels)
        return (self.channels, height, width)

    def to_map(self, features: Tensor) -> Tensor:
        """View the head's input as a map [B, C, h, w], without prefix tokens."""
        if self.kind == NCHW:
            return features
        if self.kind == NHWC:
            return features.permute(0, 3, 1, 2)
        patches = features[:, self.prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, self.grid)

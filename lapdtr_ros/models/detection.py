"""The camera-based 3D detector's head: one dense map that says where vehicles are.

In the manner of CenterNet (Zhou et al., 2019) and SMOKE (Liu et al., 2020), a small convolutional
network turns the features of any backbone into `CHANNELS` channels over a grid of cells of about
8 pixels. `lapdtr_ros.perception.detection_targets` defines the channels and decodes them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .layout import FeatureLayout

CHANNELS = 10  # one of heat, eight that describe a box, one that says how sure its depth is

_CELL_PX = 8
_DROPPED = 0.1  # share of channels left out in training
_RARE = 0.01  # share of cells that an untrained head takes for vehicles


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        inner = self.act(self.norm1(self.conv1(x)))
        return self.act(x + self.norm2(self.conv2(inner)))


class GlobalContext(nn.Module):
    """Scales and shifts every channel by what the whole picture shows.

    How far a vehicle is depends on how high its camera sits. The head is not told which camera of
    the vehicle it serves, but the picture as a whole gives it away: the road runs ahead or across.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.summary = nn.Linear(channels, channels)
        self.act = nn.ReLU()
        self.change = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        change = self.change(self.act(self.summary(x.mean((2, 3)))))
        gain, shift = change[:, :, None, None].chunk(2, dim=1)
        return x * (1 + gain) + shift


class DetectionHead(nn.Module):
    """Features of any backbone to a map of vehicles.

    Args:
        layout: what the backbone gives.
        picture_size: (height, width) of the picture; it and the layout fix the grid of cells.
    """

    coarse_width = 192
    fine_width = 64
    blocks = 3

    def __init__(self, layout: FeatureLayout, picture_size: tuple[int, int]) -> None:
        super().__init__()
        self.layout = layout
        self.factor = max(1, round(picture_size[0] / layout.grid[0] / _CELL_PX))
        coarse, fine = self.coarse_width, self.fine_width
        # The norm comes first: channels of a backbone that is not trained differ by magnitudes.
        self.norm = nn.BatchNorm2d(layout.channels)
        self.drop = nn.Dropout2d(_DROPPED)
        self.project = nn.Sequential(
            nn.Conv2d(layout.channels + 2, coarse, 1, bias=False), nn.BatchNorm2d(coarse), nn.ReLU()
        )
        self.context = nn.Sequential(
            ResidualBlock(coarse),
            GlobalContext(coarse),
            *(ResidualBlock(coarse) for _ in range(self.blocks - 1)),
        )
        self.enlarge = nn.Sequential(
            nn.Conv2d(coarse, fine * self.factor**2, 1, bias=False),
            nn.PixelShuffle(self.factor),
            nn.BatchNorm2d(fine),
            nn.ReLU(),
            ResidualBlock(fine),
        )
        self.heat = _branch(fine, 1)
        self.box = _branch(fine, CHANNELS - 1)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features of the layout into float32 [B, 10, rows, columns], heat in 0..1."""
        x = with_position(self.drop(self.norm(self.layout.to_map(features))))
        x = self.enlarge(self.context(self.project(x)))
        # A probability near 1 has no digits left in bfloat16.
        heat = self.heat(x).float().sigmoid()
        return torch.cat([heat, self.box(x).float()], dim=1)

    def start_rare(self) -> None:
        """Let an untrained head find next to nothing, or the many empty cells rule the start."""
        last = self.heat[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.constant_(last.bias, math.log(_RARE / (1 - _RARE)))


def with_position(x: Tensor) -> Tensor:
    """Append row and column, -1 to 1, to a map [B, C, H, W]: on flat ground, row means distance."""
    batch, _, height, width = x.shape
    row = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)[:, None]
    column = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)[None, :]
    position = torch.stack([row.expand(height, width), column.expand(height, width)])
    return torch.cat([x, position.expand(batch, -1, -1, -1)], dim=1)


def _branch(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, channels, 1)
    )

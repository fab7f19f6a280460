"""EdgeViT: local aggregation, global sparse attention, local propagation.

Pan et al., "EdgeViTs: Competing Light-weight CNNs on Mobile Devices with Vision Transformers",
ECCV 2022, https://arxiv.org/abs/2205.03436. Written from the paper; weights of the authors do not
load. (The LAP-DTR paper cites a different network under the same name, which nobody published.)

Self-attention over a whole map is dear because neighbours say much the same. A block therefore
  1. aggregates each neighbourhood with a depthwise convolution (`LocalAggregation`),
  2. lets only one delegate of every r x r window attend to all other delegates, and
  3. hands what the delegates learnt back to their windows with a depthwise transposed convolution
     (2 and 3: `SparseAttention`),
each step followed by a feed-forward network, all residual. The last stage has r = 1: its map is
small enough to attend fully, so steps 1 and 3 disappear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

MLP_RATIO = 4
STRIDES = (4, 2, 2, 2)


@dataclass(frozen=True)
class EdgeViTConfig:
    """One row of the paper's table of variants."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    head_dim: int
    sample_rates: tuple[int, int, int, int] = (4, 2, 2, 1)


CONFIGS = {
    'edgevit_xxs': EdgeViTConfig((36, 72, 144, 288), (1, 1, 3, 2), head_dim=36),
    'edgevit_xs': EdgeViTConfig((48, 96, 240, 384), (1, 1, 3, 1), head_dim=48),
    'edgevit_s': EdgeViTConfig((48, 96, 240, 384), (1, 2, 5, 3), head_dim=48),
}


def depthwise(dim: int, kernel: int) -> nn.Conv2d:
    """A depthwise convolution that keeps the map's size."""
    return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of a map [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every position."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeedForward(nn.Module):
    """Two 1x1 convolutions around a GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, MLP_RATIO * dim, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(MLP_RATIO * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class LocalAggregation(nn.Module):
    """Gather each 5x5 neighbourhood: pointwise, depthwise, pointwise."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.before = nn.Conv2d(dim, dim, 1)
        self.gather = depthwise(dim, 5)
        self.after = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return self.after(self.gather(self.before(self.norm(x))))


class SparseAttention(nn.Module):
    """Attention between the delegates of r x r windows, propagated back to the windows.

    Args:
        dim: channels.
        num_heads: attention heads.
        sample_rate: r; 1 is plain full attention.
    """

    def __init__(self, dim: int, num_heads: int, sample_rate: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sample_rate = sample_rate
        self.norm = ChannelNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        if sample_rate > 1:
            self.propagate = nn.ConvTranspose2d(
                dim, dim, sample_rate, stride=sample_rate, groups=dim
            )
            self.propagate_norm = ChannelNorm(dim, eps=1e-6)
        self.proj = nn.Conv2d(dim, dim, 1)

    def attend(self, delegates: Tensor) -> Tensor:
        """Full self-attention over a map of delegates [B, C, h, w]."""
        height, width = delegates.shape[2:]
        qkv = self.qkv(delegates.flatten(2).transpose(1, 2))
        query, key, value = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        # [B, heads, h * w, C / heads] -> [B, C, h, w]
        return attended.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape; H and W are multiples of r."""
        rate = self.sample_rate
        attended = self.attend(self.norm(x)[:, :, ::rate, ::rate])
        if rate > 1:
            attended = self.propagate_norm(self.propagate(attended))
        return self.proj(attended)


class LocalStep(nn.Module):
    """Conditional positions, local aggregation and a feed-forward network, all residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.position = depthwise(dim, 3)
        self.mix = LocalAggregation(dim)
        self.norm = nn.BatchNorm2d(dim)
        self.mlp = FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        x = x + self.position(x)
        x = x + self.mix(x)
        return x + self.mlp(self.norm(x))


class GlobalStep(nn.Module):
    """Conditional positions, sparse attention and a feed-forward network, all residual."""

    def __init__(self, dim: int, num_heads: int, sample_rate: int) -> None:
        super().__init__()
        self.position = depthwise(dim, 3)
        self.mix = SparseAttention(dim, num_heads, sample_rate)
        self.norm = ChannelNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        x = x + self.position(x)
        x = x + self.mix(x)
        return x + self.mlp(self.norm(x))


class LocalGlobalLocalBlock(nn.Sequential):
    """One block; without the local step where every position attends (r = 1)."""

    def __init__(self, dim: int, num_heads: int, sample_rate: int) -> None:
        local = [LocalStep(dim)] if sample_rate > 1 else []
        super().__init__(*local, GlobalStep(dim, num_heads, sample_rate))


class PatchMerge(nn.Sequential):
    """Shrink the map by ``stride`` with one convolution of non-overlapping patches."""

    def __init__(self, in_dim: int, dim: int, stride: int) -> None:
        super().__init__(nn.Conv2d(in_dim, dim, stride, stride=stride), ChannelNorm(dim, eps=1e-6))


class Stage(nn.Module):
    """A patch merge and ``depth`` blocks."""

    def __init__(
        self, in_dim: int, dim: int, stride: int, depth: int, num_heads: int, sample_rate: int
    ) -> None:
        super().__init__()
        self.downsample = PatchMerge(in_dim, dim, stride)
        self.blocks = nn.Sequential(
            *(LocalGlobalLocalBlock(dim, num_heads, sample_rate) for _ in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H / stride, W / stride]."""
        return self.blocks(self.downsample(x))


class EdgeViT(nn.Module):
    """Four stages, then a classifier.

    Args:
        config: variant.
        num_classes: classes of the classifier.
    """

    def __init__(self, config: EdgeViTConfig, num_classes: int = 1000) -> None:
        super().__init__()
        self.num_features = config.dims[-1]
        in_dims = (3, *config.dims[:-1])
        rows = zip(in_dims, config.dims, STRIDES, config.depths, config.sample_rates, strict=True)
        self.stages = nn.ModuleList(
            Stage(in_dim, dim, stride, depth, dim // config.head_dim, rate)
            for in_dim, dim, stride, depth, rate in rows
        )
        self.norm = nn.BatchNorm2d(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes)

    def forward(self, picture: Tensor) -> Tensor:
        """Classify pictures [B, 3, H, W]; H and W are multiples of 32."""
        x = picture
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).mean((2, 3)))

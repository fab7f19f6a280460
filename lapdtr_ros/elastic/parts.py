"""What of a unit can be made smaller: neurons of a feed-forward network, heads of an attention.

A *part* is one such module inside a unit. It consists of *groups*, neurons or heads, whose outputs
are read by one linear map, the *reader* (``fc2``, ``proj``). Leaving groups out makes the matrices
before the reader shorter and the reader narrower; the reader's other columns and its bias then take
over what the groups that are gone used to contribute (see `compensation`).

=====================================  ==========================  ==============================
module                                 family                      groups
=====================================  ==========================  ==============================
timm ``Mlp``, ``NormMlp``              ViT, DeiT, Swin, TinyViT    neurons
`edgevit.FeedForward`                  EdgeViT                     neurons
timm ``ConvMlp``                       EfficientViT                neurons, batch norms folded
timm ``Attention``                     ViT, DeiT                   heads
timm ``WindowAttention``               Swin                        heads and their position biases
timm ``tiny_vit.Attention``            TinyViT                     heads and their position biases
=====================================  ==========================  ==============================

Everything else keeps its full width: EfficientViT's heads feed each other, EdgeViT normalises over
all heads before it reads them, and convolutions hold little of the work.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from lapdtr_ros.models.edgevit import FeedForward
from lapdtr_ros.models.torchvision_ops import timm

Mlp, Attention = timm.layers.Mlp, timm.layers.Attention
ConvMlp = timm.models.efficientvit_msra.ConvMlp
WindowAttention = timm.models.swin_transformer.WindowAttention
TinyAttention, NormMlp = timm.models.tiny_vit.Attention, timm.models.tiny_vit.NormMlp

NEURONS = 'neurons'
HEADS = 'heads'


class Part(ABC):
    """One module of a unit that can be made smaller.

    Attributes:
        path: where it is in its unit, e.g. ``mlp``.
        module: the module, at full width.
        kind: `NEURONS` or `HEADS`.
        width: number of groups.
        group: channels that the reader reads of each group.
    """

    kind = NEURONS
    group = 1

    def __init__(self, path: str, module: nn.Module, width: int) -> None:
        self.path = path
        self.module: Any = module
        self.width = width

    @property
    @abstractmethod
    def reader(self) -> nn.Module:
        """The linear map behind the groups; its input has width x group channels."""

    @abstractmethod
    def reader_matrix(self) -> tuple[Tensor, Tensor]:
        """Weight [outputs, width * group] and bias [outputs] of the reader."""

    @abstractmethod
    def shrunk(self, kept: Tensor, weight: Tensor, bias: Tensor) -> nn.Module:
        """The module with some groups only.

        Args:
            kept: indices of the groups that stay.
            weight: the reader's new weight [outputs, len(kept) * group].
            bias: its new bias [outputs].
        """

    def channels(self, groups: Tensor) -> Tensor:
        """Indices of the channels that the reader reads of some groups."""
        return (groups[:, None] * self.group + torch.arange(self.group)).flatten()


class Neurons(Part):
    """``fc1``, an activation, ``fc2``: linear layers or convolutions of one pixel."""

    def __init__(self, path: str, module: nn.Module) -> None:
        super().__init__(path, module, cast('Any', module).fc1.weight.shape[0])

    @property
    def reader(self) -> nn.Module:
        """The second layer."""
        return self.module.fc2

    def reader_matrix(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the second layer."""
        return self.module.fc2.weight.flatten(1), bias_of(self.module.fc2)

    def shrunk(self, kept: Tensor, weight: Tensor, bias: Tensor) -> nn.Module:
        """Rows of the first layer, columns of the second."""
        first = self.module.fc1
        return with_children(
            self.module,
            fc1=with_tensors(first, first.weight[kept], bias_of(first)[kept]),
            fc2=with_tensors(self.module.fc2, weight, bias),
        )


class ConvNeurons(Part):
    """``pw1``, ReLU, ``pw2``: convolutions of one pixel, each with a batch norm."""

    def __init__(self, path: str, module: nn.Module) -> None:
        super().__init__(path, module, cast('Any', module).pw1.conv.out_channels)

    @property
    def reader(self) -> nn.Module:
        """The second convolution; its batch norm is behind it."""
        return self.module.pw2.conv

    def reader_matrix(self) -> tuple[Tensor, Tensor]:
        """The second convolution, its batch norm folded in."""
        weight, bias = folded(self.module.pw2)
        return weight.flatten(1), bias

    def shrunk(self, kept: Tensor, weight: Tensor, bias: Tensor) -> nn.Module:
        """Two plain convolutions."""
        first, first_bias = folded(self.module.pw1)
        return with_children(
            self.module,
            pw1=with_tensors(self.module.pw1.conv, first[kept], first_bias[kept]),
            pw2=with_tensors(self.module.pw2.conv, weight, bias),
        )


class Heads(Part):
    """Heads of timm's attention: fused queries, keys and values, then ``proj``."""

    kind = HEADS

    def __init__(self, path: str, module: nn.Module) -> None:
        super().__init__(path, module, cast('Any', module).num_heads)
        self.group = self.module.proj.in_features // self.width

    @property
    def reader(self) -> nn.Module:
        """The projection."""
        return self.module.proj

    def reader_matrix(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the projection."""
        return self.module.proj.weight, bias_of(self.module.proj)

    def shrunk(self, kept: Tensor, weight: Tensor, bias: Tensor) -> nn.Module:
        """Rows of the fused layer, columns of the projection."""
        channels = self.channels(kept)
        rows = torch.cat([channels + part * self.width * self.group for part in range(3)])
        return self._smaller(kept, rows, weight, bias, attn_dim=len(channels))

    def _smaller(
        self, kept: Tensor, rows: Tensor, weight: Tensor, bias: Tensor, **sizes: int
    ) -> nn.Module:
        qkv = self.module.qkv
        smaller = with_children(
            self.module,
            qkv=with_tensors(qkv, qkv.weight[rows], bias_of(qkv)[rows]),
            proj=with_tensors(self.module.proj, weight, bias),
        )
        for name, size in {'num_heads': len(kept), **sizes}.items():
            setattr(smaller, name, size)
        return smaller


class WindowHeads(Heads):
    """Heads of Swin's attention inside windows."""

    def shrunk(self, kept: Tensor, weight: Tensor, bias: Tensor) -> nn.Module:
        """Also the heads' columns of the table of position biases."""
        channels = self.channels(kept)
        rows = torch.cat([channels + part * self.width * self.group for part in range(3)])
        smaller = self._smaller(kept, rows, weight, bias)
        table = self.module.relative_position_bias_table[:, kept]
        smaller.relative_position_bias_table = frozen(table)
        return smaller


class TinyHeads(Heads):
    """Heads of TinyViT's attention; the fused layer is ordered head by head."""

    def shrunk(self, kept: Tensor, weight: Tensor, bias: Tensor) -> nn.Module:
        """Also the heads' rows of the table of position biases."""
        per_head = 2 * self.module.key_dim + self.module.val_dim
        rows = (kept[:, None] * per_head + torch.arange(per_head)).flatten()
        smaller: Any = self._smaller(kept, rows, weight, bias, out_dim=len(kept) * self.group)
        smaller.attention_biases = frozen(self.module.attention_biases[kept])
        # It holds the expanded biases of all heads.
        smaller.attention_bias_cache = {}
        return smaller


def parts_of(unit: nn.Module) -> list[Part]:
    """The parts of a unit in the order in which they compute; empty if it cannot shrink."""
    return [part for path, module in unit.named_modules() if (part := _part(path, module))]


def _part(path: str, module: nn.Module) -> Part | None:
    if isinstance(module, (Mlp, Attention)) and not _is_plain(module):
        return None
    for kind, part in _PARTS.items():
        if isinstance(module, kind):
            return part(path, module)
    return None


def _is_plain(module: Any) -> bool:
    """Whether nothing between the groups and their reader looks at all groups together."""
    gated = getattr(module, 'gate', None) is not None
    return isinstance(module.norm, nn.Identity) and not gated


_PARTS: dict[type[nn.Module], Callable[[str, nn.Module], Part]] = {
    Mlp: Neurons,
    NormMlp: Neurons,
    FeedForward: Neurons,
    ConvMlp: ConvNeurons,
    Attention: Heads,
    WindowAttention: WindowHeads,
    TinyAttention: TinyHeads,
}


def replace_parts(unit: nn.Module, modules: dict[str, nn.Module]) -> nn.Module:
    """The unit with other modules at some paths; everything else is shared, not copied."""
    if '' in modules:
        return modules['']
    children = {}
    for name, child in unit.named_children():
        below = {
            path[len(name) + 1 :]: module
            for path, module in modules.items()
            if path == name or path.startswith(f'{name}.')
        }
        if below:
            children[name] = replace_parts(child, below)
    return with_children(unit, **children)


def with_children(module: nn.Module, **children: nn.Module) -> Any:
    """A shallow copy of a module with other children; parameters are shared."""
    twin = _twin(module)
    twin._modules.update(children)
    return twin


def with_tensors(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A linear layer or convolution like ``layer`` with other tensors, and sizes to match."""
    twin = _twin(layer)
    # A convolution of one pixel has two more dimensions than the matrix that it is.
    twin.weight = frozen(weight.reshape(*weight.shape[:2], *twin.weight.shape[2:]))
    twin.bias = None if bias is None else frozen(bias)
    kind = 'channels' if isinstance(layer, nn.Conv2d) else 'features'
    setattr(twin, f'out_{kind}', weight.shape[0])
    setattr(twin, f'in_{kind}', weight.shape[1])
    return twin


def _twin(module: nn.Module) -> Any:
    """A copy that shares all tensors and children, yet can be changed without the original."""
    twin: Any = copy.copy(module)
    for registry in ('_modules', '_parameters', '_buffers'):
        setattr(twin, registry, dict(getattr(module, registry)))
    # Whoever listens to the original for a moment must not listen to the copy for ever.
    twin._forward_pre_hooks, twin._forward_hooks = OrderedDict(), OrderedDict()
    return twin


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter that is not trained."""
    return nn.Parameter(tensor.detach(), requires_grad=False)


def bias_of(layer: Any) -> Tensor:
    """The layer's bias, zeros if it has none."""
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias


def folded(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals convolution and batch norm."""
    fused = layer.fuse()
    return fused.weight.detach(), fused.bias.detach()

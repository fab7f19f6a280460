"""Models by name.

A model name is ``<network>[:<last unit>][@<height>x<width>][+<head>]``:
``deit_tiny_patch16_224``, ``swin_tiny_patch4_window7_224@256x448``,
``vit_small_patch14_focus``, ``deit_tiny_patch16_224+saliency``,
``efficientvit_m4:stages.1.blocks.1@384x512+detection``.
Networks carry timm's names; ours are ``edgevit_xxs``, ``edgevit_xs``, ``edgevit_s`` and
``vit_small_patch14_focus``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from lapdtr_ros.errors import UnknownNameError

from .errors import ModelNameError
from .facts import CLASSIFIER, SALIENCY, ModelSpec
from .families import FAMILIES, FOCUS_MODEL, Backbone
from .heads import HEADS
from .truncation import truncate

_NAME = re.compile(
    r'(?P<network>\w+)(:(?P<last>[\w.]+))?'
    r'(@(?P<height>\d+)x(?P<width>\d+))?(\+(?P<head>\w+))?'
)


@dataclass
class BuiltModel:
    """A model on the meta device: shapes of all tensors, values of none.

    Attributes:
        spec: what it is.
        units: the units in order, head included.
        root: gives every tensor its name in weight files.
    """

    spec: ModelSpec
    units: list[nn.Module]
    root: nn.Module


def list_models() -> list[str]:
    """Names of all networks, sorted."""
    return sorted(name for family in FAMILIES.values() for name in family.names)


def build_model(name: str) -> BuiltModel:
    """Build a model on the meta device, in well under a second and without memory for weights.

    Every call gives new modules. Raises like `facts.model_spec`.
    """
    network, last, size, head = _parse(name)
    family = next((key for key, f in FAMILIES.items() if network in f.names), None)
    if family is None:
        raise UnknownNameError('model', network, list_models())
    head = head or (SALIENCY if network == FOCUS_MODEL else CLASSIFIER)
    backbone = FAMILIES[family].build(network, size)
    if last:
        if head == CLASSIFIER:
            raise ModelNameError(
                f'model name {name!r}: the classifier needs the whole network; leave :{last} out '
                f'or add a head, one of {", ".join(HEADS)}'
            )
        backbone = truncate(backbone, last)
    units = [*backbone.units.values(), _head(head, backbone)]
    # Not chained: some timm modules forget to return self from train().
    for unit in units:
        unit.eval()
    spec = ModelSpec(
        name=name,
        network=network,
        family=family,
        picture_shape=(*backbone.picture_size, 3),
        mean=backbone.mean,
        std=backbone.std,
        unit_names=(*backbone.units, 'head'),
        head=head,
        layout=backbone.layout,
    )
    return BuiltModel(spec, units, backbone.root)


def _parse(name: str) -> tuple[str, str | None, tuple[int, int] | None, str | None]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ModelNameError(
            f'model name {name!r} is malformed: expected <network>[:<last unit>]'
            f'[@<height>x<width>][+<head>], e.g. deit_tiny_patch16_224@224x320'
        )
    size = (int(match['height']), int(match['width'])) if match['height'] else None
    return match['network'], match['last'], size, match['head']


def _head(name: str, backbone: Backbone) -> nn.Module:
    if name == CLASSIFIER:
        return backbone.classifier
    if name not in HEADS:
        raise UnknownNameError('head', name, [CLASSIFIER, *HEADS])
    with torch.device('meta'):
        head = HEADS[name](backbone.layout, backbone.picture_size)
    # The root names all tensors, so the head has to hang below it.
    backbone.root.add_module(name, head)
    return nn.Sequential(backbone.norm, head)

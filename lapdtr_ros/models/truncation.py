"""Networks that stop early: ``efficientvit_m4:stages.1.blocks.1`` ends with that unit.

Hierarchical families end at a stride of 32 or 64, too coarse to tell vehicles apart. A dense head
does better on an earlier map, and what would follow it is neither loaded nor computed.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from lapdtr_ros.errors import UnknownNameError

from .families import Backbone
from .layout import NCHW, TOKENS, FeatureLayout


def truncate(backbone: Backbone, last: str) -> Backbone:
    """Keep the units up to ``last``.

    The network's last norm belongs to its last features, so a shortened network has none, and its
    classifier does not fit.

    Args:
        backbone: taken apart, on the meta device.
        last: name of the last unit that is kept.

    Raises:
        UnknownNameError: the network has no such unit.
    """
    names = list(backbone.units)
    if last not in names:
        raise UnknownNameError('unit', last, names)
    if last == names[-1]:
        return backbone
    units = {name: backbone.units[name] for name in names[: names.index(last) + 1]}
    features = torch.empty(1, 3, *backbone.picture_size, device='meta')
    with torch.no_grad():
        for unit in units.values():
            features = unit.eval()(features)
    layout = _layout(backbone.layout, tuple(features.shape[1:]))
    return dataclasses.replace(backbone, units=units, layout=layout, norm=nn.Identity())


def _layout(whole: FeatureLayout, shape: tuple[int, ...]) -> FeatureLayout:
    """Layout of features of this shape, of the same kind as the whole network's."""
    if whole.kind == TOKENS:
        return whole
    channels, height, width = shape if whole.kind == NCHW else (shape[2], *shape[:2])
    return dataclasses.replace(whole, channels=channels, grid=(height, width))

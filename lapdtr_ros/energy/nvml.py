"""Energy counters of NVIDIA graphics cards (NVML; Volta and newer, not Jetson)."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

from .errors import MeterError, MeterUnavailableError
from .meter import Meter, Reading
from .rails import GPU, Rail

NAME = 'nvml'


class NvmlMeter(Meter):
    """Energy of every NVIDIA card with a counter.

    Args:
        nvml: the module ``pynvml`` of nvidia-ml-py; imported if None.

    Raises:
        MeterUnavailableError: the package, the driver, a card or its counter is missing.
    """

    name = NAME

    def __init__(self, nvml: ModuleType | Any | None = None) -> None:
        self._nvml = _import() if nvml is None else nvml
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise MeterUnavailableError(
                f'NVML does not start ({error}): no NVIDIA driver here, or a Jetson, which has '
                f'no NVML energy'
            ) from None
        self._open = True
        self._cards = self._find_cards()
        if not self._cards:
            self.close()
            raise MeterUnavailableError(
                'NVML finds no card with an energy counter: they came with the Volta generation'
            )
        self.rails = tuple(Rail(name, (GPU,), True) for name in self._cards)
        self._start_mj = {name: self._counter(name) for name in self._cards}

    def read(self) -> Reading:
        """See `Meter.read`."""
        joules = {
            name: (self._counter(name) - start) * 1e-3 for name, start in self._start_mj.items()
        }
        return Reading(time.monotonic(), joules)

    def close(self) -> None:
        """See `Meter.close`."""
        if self._open:
            self._open = False
            self._nvml.nvmlShutdown()

    def _find_cards(self) -> dict[str, Any]:
        cards = {}
        for number in range(self._nvml.nvmlDeviceGetCount()):
            handle = self._nvml.nvmlDeviceGetHandleByIndex(number)
            try:
                self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            except self._nvml.NVMLError:
                continue
            cards[f'gpu{number}'] = handle
        return cards

    def _counter(self, name: str) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._cards[name]))
        except self._nvml.NVMLError as error:
            raise MeterError(f'energy counter of {name}: {error}') from None


def _import() -> ModuleType:
    try:
        import pynvml
    except ImportError:
        raise MeterUnavailableError(
            'the package nvidia-ml-py is not installed: pip install nvidia-ml-py'
        ) from None
    return pynvml

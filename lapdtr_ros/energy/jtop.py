"""jetson-stats as a source of power readings.

Its licence is the AGPL, so it is never installed with this package and only used where a user has
it. On a Jetson whose sysfs can be read, `ina3221` gives the same rails at ten times the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .errors import MeterError, MeterUnavailableError
from .integrator import SampledMeter
from .rails import board_rails

NAME = 'jtop'


class JtopMeter(SampledMeter):
    """Power that the jtop service reports, integrated at its rate of 1 Hz.

    Args:
        connect: gives a client that is not started; ``jtop.jtop`` if None.

    Raises:
        MeterUnavailableError: jetson-stats or its service is missing.
    """

    def __init__(self, connect: Callable[[], Any] | None = None) -> None:
        self._client = (_import() if connect is None else connect)()
        try:
            self._client.start()
        except Exception as error:  # its exceptions share no importable base across releases
            raise MeterUnavailableError(f'jtop does not start: {error}') from None
        names = tuple(self._client.power['rail'])
        if not names:
            self._client.close()
            raise MeterUnavailableError('jtop reports no power rails on this board')
        super().__init__(NAME, board_rails(names), self._watts, period_s=1.0)

    def close(self) -> None:
        """See `Meter.close`."""
        super().close()
        self._client.close()

    def _watts(self) -> Mapping[str, float]:
        if not self._client.ok():
            raise MeterError('the jtop service went away')
        # 'avg' is no mean over a defined time, 'power' is the reading in mW.
        return {name: rail['power'] * 1e-3 for name, rail in self._client.power['rail'].items()}


def _import() -> Callable[[], Any]:
    try:
        from jtop import jtop
    except ImportError:
        raise MeterUnavailableError(
            'the package jetson-stats is not installed (AGPL, never installed with this package)'
        ) from None
    connect: Callable[[], Any] = jtop
    return connect

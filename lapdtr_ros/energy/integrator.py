"""From sampled power to cumulative energy."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping

from .errors import MeterError
from .meter import Meter, Reading
from .rails import Rail

# Gaps up to this length are bridged by the mean of the powers at their ends.
_LONGEST_GAP_S = 2.0


class PowerIntegrator:
    """Integrates power by the trapezoid rule.

    Between samples the last power is assumed to go on; a reading never falls behind an earlier
    one. Safe for one thread that samples and any number that read.

    Args:
        rails: names of the rails.
        clock: steady clock, seconds.
    """

    def __init__(self, rails: tuple[str, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._joules = dict.fromkeys(rails, 0.0)
        self._shown = dict(self._joules)
        self._watts: dict[str, float] | None = None
        self._sampled_s = clock()
        self._problem = 'no sample yet'

    def add(self, watts: Mapping[str, float]) -> None:
        """Take a sample of the power of every rail; a value that is not finite is refused.

        Small negative values, which sensors give near zero, count as zero.
        """
        bad = [name for name, value in watts.items() if not math.isfinite(value)]
        if bad:
            self.failed(f'power of {bad[0]} is {watts[bad[0]]}')
            return
        now = self._clock()
        clean = {name: max(0.0, watts[name]) for name in self._joules}
        with self._lock:
            span = now - self._sampled_s
            if self._watts is not None:
                for name, value in clean.items():
                    self._joules[name] += 0.5 * (self._watts[name] + value) * span
            self._watts, self._sampled_s = clean, now

    def failed(self, reason: str) -> None:
        """A sample could not be taken."""
        with self._lock:
            self._problem = reason

    def read(self) -> Reading:
        """Energy up to now.

        Raises:
            MeterError: no sample for too long.
        """
        now = self._clock()
        with self._lock:
            ahead = now - self._sampled_s
            if ahead > _LONGEST_GAP_S:
                raise MeterError(f'no power reading for {ahead:.1f} s: {self._problem}')
            watts = self._watts or {}
            for name, joules in self._joules.items():
                reached = joules + watts.get(name, 0.0) * ahead
                self._shown[name] = max(self._shown[name], reached)
            return Reading(now, dict(self._shown))


class SampledMeter(Meter):
    """A meter that samples power in a thread of its own.

    Args:
        name: kind of the meter.
        rails: what it measures.
        sample: gives the watts of every rail; an `OSError` or `MeterError` of it is reported by
            `read` when it lasts.
        period_s: time between samples.
    """

    def __init__(
        self,
        name: str,
        rails: tuple[Rail, ...],
        sample: Callable[[], Mapping[str, float]],
        period_s: float = 0.1,
    ) -> None:
        self.name = name
        self.rails = rails
        self._sample = sample
        self._period_s = period_s
        self._integrator = PowerIntegrator(tuple(rail.name for rail in rails))
        self._ended = threading.Event()
        self._take()
        self._thread = threading.Thread(target=self._run, name=f'{name} meter', daemon=True)
        self._thread.start()

    def read(self) -> Reading:
        """See `Meter.read`."""
        return self._integrator.read()

    def close(self) -> None:
        """See `Meter.close`."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            self._take()

    def _take(self) -> None:
        try:
            self._integrator.add(self._sample())
        except (OSError, ValueError, MeterError) as error:
            self._integrator.failed(str(error))

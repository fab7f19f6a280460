"""The one interface of all meters: cumulative joules per rail."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from .rails import Rail


@dataclass(frozen=True)
class Reading:
    """State of a meter at one moment.

    Attributes:
        time_s: steady clock.
        joules: energy per rail name since the meter was opened; never falls.
    """

    time_s: float
    joules: Mapping[str, float]


class Meter(ABC):
    """Energy of one machine.

    Readings are cumulative, so any number of users may each take differences of their own.

    Attributes:
        name: kind of the meter, e.g. ``ina3221``.
        rails: what it measures.
    """

    name: str
    rails: tuple[Rail, ...]

    @abstractmethod
    def read(self) -> Reading:
        """Energy per rail up to now; cheap enough to be called around every frame.

        Raises:
            MeterError: the meter stopped giving readings.
        """

    def close(self) -> None:  # noqa: B027 - most meters hold nothing open
        """Stop measuring; may be called more than once."""

    def total_j(self, reading: Reading) -> float:
        """Energy of the whole machine: the sum of the rails that count."""
        return sum(reading.joules[rail.name] for rail in self.rails if rail.counted)


def watts_between(earlier: Reading, later: Reading) -> dict[str, float]:
    """Mean power per rail between two readings; empty when no time has passed."""
    span = later.time_s - earlier.time_s
    if span <= 0.0:
        return {}
    return {name: (joules - earlier.joules[name]) / span for name, joules in later.joules.items()}

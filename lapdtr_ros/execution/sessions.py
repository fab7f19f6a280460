"""One process per device name: who started later steps back, free of ROS."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from lapdtr_ros.errors import LapdtrError

# A few periods of the slowest usual telemetry.
_SILENCE_S = 3.0


class SessionError(LapdtrError):
    """A session that no device node has made up."""


class SteppedBackError(LapdtrError):
    """This process must not act as the device, because an older one does."""


@dataclass(frozen=True, order=True)
class Session:
    """The life of one process, in the order in which processes started.

    Attributes:
        started_ns: system clock.
        nonce: tells processes apart that started together.
    """

    started_ns: int
    nonce: str

    @classmethod
    def new(cls) -> Session:
        """The session of a process that starts now."""
        return cls(time.time_ns(), secrets.token_hex(4))

    @classmethod
    def parse(cls, text: str) -> Session:
        """Read what `str` wrote.

        Raises:
            SessionError: anything else.
        """
        started, _, nonce = text[:40].partition('-')
        try:
            return cls(int(started, 16), nonce)
        except ValueError:
            raise SessionError(f'session {text[:40]!r} is not of a device node') from None

    def __str__(self) -> str:
        return f'{self.started_ns:x}-{self.nonce}'


class Elder:
    """Looks out for an older process with the same device name.

    Args:
        session: of this process.
        clock: steady seconds.
    """

    def __init__(self, session: Session, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._clock = clock
        self._other: Session | None = None
        self._heard_s = 0.0

    @property
    def problem(self) -> str:
        """Why this process steps back, empty if it does not."""
        if self._other is None or self._clock() - self._heard_s > _SILENCE_S:
            return ''
        return (
            f'another process that started earlier (session {self._other}) acts as this device; '
            f'stop one of the two or give them different names'
        )

    def heard(self, session: str) -> None:
        """Somebody reported under the name of this device; may be this process itself.

        Raises:
            SessionError: it was no device node.
        """
        other = Session.parse(session)
        if other < self._session:
            self._other, self._heard_s = other, self._clock()

    def check(self) -> None:
        """Whether this process may act as the device.

        Raises:
            SteppedBackError: an older one does.
        """
        if self.problem:
            raise SteppedBackError(self.problem)

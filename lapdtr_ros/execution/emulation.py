"""A device of another class on this machine: paced computing and shaped links, free of ROS.

Emulation is honest about what it cannot do: computing is only ever slowed down. When this machine
is slower than the emulated class, the pace says by how much and the measured time counts. With a
`time_scale` below 1 all devices of a fleet slow down together, so that a machine can emulate
faster ones: a second of the emulated world then takes 1 / time_scale seconds here.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.planning.fleet import Link

from .frames import StageRecord

# The least that the operating system makes of a sleep; the rest of a wait is spun away.
_SLEEP_MARGIN_S = 2e-4

# Slower than the class by more than this counts as not kept up: timers and threads cost a little.
_BEHIND = 1.05

_REMEMBERED_RATIOS = 32
_REMEMBERED_HOPS = 9


class EmulationError(LapdtrError):
    """A setting that cannot be emulated."""


@dataclass(frozen=True)
class PaceSettings:
    """How fast computing is made to look.

    Attributes:
        emulate: whether stages take as long as on the device's class.
        slowdown: factor on top, 1 or more: a throttled or shared processor.
        time_scale: emulated seconds per second of this machine; 1 without emulation.
        of_class: whether this machine is of the device's class, so that the class's times are
            what is to be expected of it.

    Raises:
        EmulationError: a value out of range.
    """

    emulate: bool = False
    slowdown: float = 1.0
    time_scale: float = 1.0
    of_class: bool = False

    def __post_init__(self) -> None:
        if not 1.0 <= self.slowdown < math.inf:
            raise EmulationError(f'compute_slowdown = {self.slowdown}: use 1 or more')
        if not 0.0 < self.time_scale < math.inf:
            raise EmulationError(f'time_scale = {self.time_scale}: use a finite value above 0')


@dataclass(frozen=True)
class Paced:
    """One stage of a frame after the wait.

    Attributes:
        took_s: seconds of this machine, waiting included.
        ratio: taken / expected time. Without emulation, and unless this machine is of the
            device's class, only a slowdown is a deviation.
    """

    took_s: float
    ratio: float


class Pacer:
    """Holds the inference thread back until a stage has taken its emulated time.

    Args:
        settings: may be replaced at any time.
        clock: steady clock, seconds.
        sleep: sleeps for seconds.
    """

    def __init__(
        self,
        settings: PaceSettings,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.stages = 0
        self.behind = 0
        self.worst = 1.0
        self._clock = clock
        self._sleep = sleep
        self._ratios: deque[float] = deque(maxlen=_REMEMBERED_RATIOS)

    def hold(self, expected_s: float, began_s: float) -> Paced:
        """Wait until the stage that began at ``began_s`` has taken long enough.

        Args:
            expected_s: what the class takes, in emulated seconds.
            began_s: on the steady clock.
        """
        settings = self.settings
        needed_s = self._clock() - began_s
        expected_here_s = expected_s / settings.time_scale
        if settings.emulate:
            goal_s = expected_here_s * settings.slowdown
            self._note_host(needed_s, goal_s)
        else:
            goal_s = needed_s * settings.slowdown
            if not settings.of_class:
                expected_here_s = needed_s
        self._wait_until(began_s + goal_s)
        took_s = self._clock() - began_s
        paced = Paced(took_s, took_s / expected_here_s if expected_here_s > 0.0 else 1.0)
        self._ratios.append(paced.ratio)
        return paced

    @property
    def ratio(self) -> float:
        """Median of taken / expected time of the last stages; NaN before the first."""
        return median(self._ratios) if self._ratios else math.nan

    def forget(self) -> None:
        """Start the statistics anew, after settings have changed."""
        self.stages = self.behind = 0
        self.worst = 1.0
        self._ratios.clear()

    def _note_host(self, needed_s: float, goal_s: float) -> None:
        self.stages += 1
        if goal_s > 0.0 and needed_s > goal_s * _BEHIND:
            self.behind += 1
            self.worst = max(self.worst, needed_s / goal_s)

    def _wait_until(self, goal: float) -> None:
        left = goal - self._clock()
        if left > _SLEEP_MARGIN_S:
            self._sleep(left - _SLEEP_MARGIN_S)
        while self._clock() < goal:
            pass


@dataclass(frozen=True)
class LinkFigures:
    """What a shaped link does to a message, in emulated units.

    Attributes:
        bytes_per_s: rate; infinite for none.
        delay_s: one-way delay.
        jitter_s: standard deviation of the delay, exponential above its smallest value; at most
            the delay counts.
        loss: share of packets that are lost; sent again by the reliable transport, each costs
            another two delays.
    """

    bytes_per_s: float
    delay_s: float
    jitter_s: float = 0.0
    loss: float = 0.0


class ShapedLink:
    """When a message arrives: token bucket, then delay. Order is kept, as on a reliable link.

    Args:
        figures: see `change`.
        seed: of jitter and loss.
    """

    def __init__(self, figures: LinkFigures, seed: int | str = 0) -> None:
        self._figures = figures
        self._random = random.Random(seed)
        self._free_s = -math.inf
        self._arrived_s = -math.inf

    def change(self, figures: LinkFigures, now: float) -> None:
        """Have other figures from now on; what waits for the link goes at the new rate, too.

        Messages that were given their moment of arrival before keep it and may be overtaken.
        """
        if figures.bytes_per_s != self._figures.bytes_per_s and self._free_s > now:
            faster = figures.bytes_per_s / self._figures.bytes_per_s
            self._free_s = now + (self._free_s - now) / faster
            self._arrived_s = min(self._arrived_s, self._free_s)
        self._figures = figures

    def arrival(self, size: int, now: float, time_scale: float) -> float:
        """Moment at which ``size`` bytes that are sent now have arrived, on the same clock."""
        figures = self._figures
        self._free_s = max(now, self._free_s) + size / figures.bytes_per_s / time_scale
        delay_s = figures.delay_s
        if figures.jitter_s > 0.0:
            spread_s = min(figures.jitter_s, figures.delay_s)
            delay_s += spread_s * (self._random.expovariate(1.0) - 1.0)
        if figures.loss > 0.0 and self._random.random() < figures.loss:
            delay_s += 2.0 * figures.delay_s
        self._arrived_s = max(self._arrived_s, self._free_s + delay_s / time_scale)
        return self._arrived_s


class Postman:
    """Delivers messages later, in a thread of its own, so that nobody waits for a slow link.

    Args:
        clock: steady clock, seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name='links', daemon=True)
        self._thread.start()

    def deliver(self, due_s: float, action: Callable[[], None]) -> None:
        """Call ``action`` at ``due_s``; actions of the same moment keep their order."""
        with self._changed:
            heapq.heappush(self._waiting, (due_s, next(self._numbers), action))
            self._changed.notify()

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting)

    def close(self) -> None:
        """Stop; what waits is dropped."""
        with self._changed:
            self._ended = True
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (action := self._next()) is not None:
            action()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._ended:
                left = self._waiting[0][0] - self._clock() if self._waiting else None
                if left is not None and left <= 0.0:
                    return heapq.heappop(self._waiting)[2]
                self._changed.wait(left)
        return None


def hop_seconds(trace: Sequence[StageRecord], device: str) -> tuple[str, int, float] | None:
    """The hop that left ``device``, from the trace of a frame.

    It lasts from the end of the stage to the arrival of its output, on the system clocks of both
    devices, so between two computers it is as good as their synchronisation.

    Returns:
        Receiving device, bytes, seconds; None when the frame made no hop from ``device`` or the
        clocks disagree by more than it took.
    """
    for sender, receiver in itertools.pairwise(trace):
        if sender.device == device != receiver.device and receiver.start == sender.stop:
            left_ns = sender.started_ns + sender.compute_s * 1e9
            arrived_ns = receiver.started_ns - receiver.queue_s * 1e9
            seconds = (arrived_ns - left_ns) * 1e-9
            return (receiver.device, sender.sent_bytes, seconds) if seconds > 0.0 else None
    return None


class LinkEstimator:
    """Rate and delay of a link from the times of whole messages.

    One time cannot tell both, so a message that is expected to spend most of its time in transfer
    measures the rate and takes the delay as expected, and a short one the other way round.

    Args:
        expected: figures of the link's class.
    """

    def __init__(self, expected: Link) -> None:
        self._expected = expected
        self._rates: deque[float] = deque(maxlen=_REMEMBERED_HOPS)
        self._delays: deque[float] = deque(maxlen=_REMEMBERED_HOPS)

    def add(self, size: int, seconds: float) -> None:
        """A message of ``size`` bytes took so long."""
        delay_s = self._expected.latency_s
        transfer_s = size / self._expected.bytes_per_s
        if transfer_s >= delay_s:
            if seconds > delay_s:
                self._rates.append(size / (seconds - delay_s))
        elif seconds > transfer_s:
            self._delays.append(seconds - transfer_s)

    def stall(self, size: int, seconds: float) -> None:
        """A message of ``size`` bytes has not arrived after so long; what was known is over."""
        self._rates.clear()
        self._rates.append(size / seconds)

    @property
    def bytes_per_s(self) -> float:
        """Median rate, NaN while unmeasured."""
        return median(self._rates) if self._rates else math.nan

    @property
    def delay_s(self) -> float:
        """Median delay, NaN while unmeasured."""
        return median(self._delays) if self._delays else math.nan

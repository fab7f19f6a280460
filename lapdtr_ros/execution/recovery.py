"""How a source rides out the loss of devices, free of ROS (paper Alg. 3, cached results).

`DeviceWatch` knows which devices were lost since a frame was sent. For frames whose way is broken,
`Recovery` asks all devices what they hold and decides who goes on with each frame: the one with the
newest feature, or the source itself with its picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lapdtr_ros.planning.plan import Plan

from .frames import Holding

# A little more than the usual period of telemetry.
_USUAL_SILENCE_S = 0.55


def has_gone(alive: int, change: int, silent_s: float) -> bool:
    """Whether a device is lost, when the number of live publishers of its telemetry changed.

    Whoever else is on the topic must not hide that the device has gone, and it must not look so
    when the other one goes.

    Args:
        alive: live publishers now.
        change: by how many their number has changed.
        silent_s: time since the device itself was heard.
    """
    return alive == 0 or (change < 0 and silent_s > _USUAL_SILENCE_S)


@dataclass(frozen=True)
class Hop:
    """A device that a frame still needs.

    Attributes:
        life: `DeviceWatch.life` of the device when the frame was sent.
    """

    device: str
    life: int


class DeviceWatch:
    """Which devices are there, and whether they have been all the time.

    A device that was lost or restarted begins a new life; what it held before is gone.
    """

    def __init__(self) -> None:
        self._lives: dict[str, int] = {}
        self._sessions: dict[str, str] = {}
        self._present: set[str] = set()

    @property
    def present(self) -> frozenset[str]:
        """Devices that are there now."""
        return frozenset(self._present)

    def heard(self, device: str, session: str) -> bool:
        """A device reported; whether its process is another than before."""
        restarted = self._sessions.get(device, session) != session
        if restarted:
            self._lives[device] = self.life(device) + 1
        self._sessions[device] = session
        self._present.add(device)
        return restarted

    def lost(self, device: str) -> None:
        """The lease of a device has run out."""
        if device in self._present:
            self._present.remove(device)
            self._lives[device] = self.life(device) + 1

    def life(self, device: str) -> int:
        """Rises each time the device was lost or restarted."""
        return self._lives.get(device, 0)

    def path(self, plan: Plan, start: int = 0, holder: str = '') -> tuple[Hop, ...]:
        """The way of a frame that is the input of unit ``start``, from the device that has it."""
        stages = [stage.device for stage in plan.stages if stage.stop > start]
        devices = [holder, *stages] if holder else stages
        return tuple(Hop(device, self.life(device)) for device in devices)

    def intact(self, path: Iterable[Hop]) -> bool:
        """Whether all devices of a way are there and have been since it was made."""
        return all(
            hop.device in self._present and hop.life == self.life(hop.device) for hop in path
        )


@dataclass(frozen=True)
class Question:
    """What the source asks all devices.

    Attributes:
        round: number of the question.
        epoch: plan that the frames are to go on under.
        seqs: frames.
        asked_s: steady clock.
    """

    round: int
    epoch: int
    seqs: tuple[int, ...]
    asked_s: float


@dataclass(frozen=True)
class Found:
    """The newest of a frame that is left; without a device it is the picture at the source."""

    seq: int
    device: str
    unit: int
    in_hand: bool


class Recovery:
    """Questions of one source and the answers to them, one question at a time.

    Args:
        patience_s: longest wait for answers; who is silent is taken to hold nothing.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._round = 0
        self._question: Question | None = None
        self._waiting: set[str] = set()
        self._best: dict[int, Found] = {}

    @property
    def question(self) -> Question | None:
        """The question that is open."""
        return self._question

    def ask(self, seqs: Sequence[int], epoch: int, devices: Iterable[str], now: float) -> Question:
        """Open a question to the devices that are there."""
        self._round += 1
        self._question = Question(self._round, epoch, tuple(seqs), now)
        self._waiting = set(devices)
        self._best = {seq: Found(seq, '', 0, False) for seq in seqs}
        return self._question

    def answer(self, device: str, round: int, holdings: Iterable[Holding]) -> None:
        """A device told what it holds; answers to older questions are ignored."""
        if self._question is None or round != self._round or device not in self._waiting:
            return
        self._waiting.discard(device)
        for holding in holdings:
            found = self._best.get(holding.seq)
            # Of a sender and a receiver of the same feature, the receiver is further.
            if found is not None and (holding.unit, holding.in_hand) > (found.unit, found.in_hand):
                self._best[holding.seq] = Found(holding.seq, device, holding.unit, holding.in_hand)

    def forget(self, device: str) -> None:
        """A device is lost: nothing of it can be used."""
        self._waiting.discard(device)
        for seq, found in self._best.items():
            if found.device == device:
                self._best[seq] = Found(seq, '', 0, False)

    def settle(self, now: float) -> tuple[Found, ...] | None:
        """Close the question and return what was found, once all have answered or time is up."""
        question = self._question
        if question is None:
            return None
        if self._waiting and now - question.asked_s < self._patience_s:
            return None
        self._question = None
        return tuple(self._best.values())

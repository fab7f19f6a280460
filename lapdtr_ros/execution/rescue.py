"""What a source does for frames that a loss left behind, free of ROS (paper Alg. 3).

The way of a frame is broken when a device that it still has to pass was lost or restarted. Then all
devices are asked what they hold, and the one with the newest feature goes on with the frame under
the plan in force. docs/architecture.md tells the whole story.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lapdtr_ros.planning.plan import FleetPlan

from .recovery import DeviceWatch, Found, Hop, Question, Recovery
from .source import EpochGate, FrameLedger, InFlight

# How long devices have to say what they hold after a loss; they answer at once.
_ANSWERS_S = 0.5

# How long a frame may stand still before devices are asked who has it although none is lost. The
# time doubles whenever the frame is sent on: copies on a slow link would only make it slower.
_STALLED_S = 1.0
_MOST_DOUBLINGS = 5


@dataclass
class Orders:
    """Who goes on with which frames.

    Attributes:
        question: the question that this is the outcome of.
        holders: device per frame number.
        restarts: frames of which nothing but the picture at the source is left.
    """

    question: Question
    holders: dict[int, str] = field(default_factory=dict)
    restarts: list[InFlight] = field(default_factory=list)

    def told(self) -> str:
        """The orders in words."""
        held = [f'{seq} at {device}' for seq, device in self.holders.items()]
        again = [f'{frame.seq} from its picture' for frame in self.restarts]
        told = ', '.join([*held, *again]) or 'none'
        return f'frames that go on under plan {self.question.epoch}: {told}'


class Rescue:
    """Finds frames that cannot finish by themselves and decides how they go on.

    Args:
        stream: stream of the source.
        ledger: its frames in flight.
        gate: its plans and what devices are ready for.

    Attributes:
        moved: how often frames were sent on.
    """

    def __init__(self, stream: str, ledger: FrameLedger, gate: EpochGate) -> None:
        self._stream = stream
        self._ledger = ledger
        self._gate = gate
        self._watch = DeviceWatch()
        self._recovery = Recovery(_ANSWERS_S)
        self.moved = 0

    def heard(self, device: str, session: str, ready_epochs: list[int]) -> None:
        """A device reported."""
        self._watch.heard(device, session)
        self._gate.set_ready(device, ready_epochs)

    def lost(self, device: str) -> None:
        """The lease of a device has run out."""
        self._watch.lost(device)
        self._gate.set_ready(device, ())
        self._recovery.forget(device)

    def path(self, plan: FleetPlan) -> tuple[Hop, ...]:
        """The way of a new frame."""
        return self._watch.path(plan.streams[self._stream].plan)

    @property
    def answers(self) -> Recovery:
        """Takes what devices answer."""
        return self._recovery

    def ask(self, now: float) -> Question | None:
        """A question about frames whose way is broken or that stand still, if there are any."""
        plan = self._gate.current()
        if plan is None or self._recovery.question is not None:
            return None
        seqs = [
            frame.seq
            for frame in self._ledger.frames
            if not self._watch.intact(frame.path) or _stalled(frame, now)
        ]
        return self._recovery.ask(seqs, plan.epoch, self._watch.present, now) if seqs else None

    def settle(self, now: float) -> Orders | None:
        """The outcome of the open question, once the devices have answered."""
        question = self._recovery.question
        found = self._recovery.settle(now)
        plan = self._gate.current()
        # Without a plan that works the frames wait; they are asked for again under the next one.
        if question is None or found is None or plan is None or plan.epoch != question.epoch:
            return None
        orders = Orders(question)
        for entry in found:
            frame = self._ledger.get(entry.seq)
            if frame is None:
                continue
            frame = self._move(frame, entry, plan, now)
            if entry.device:
                orders.holders[frame.seq] = entry.device
            else:
                orders.restarts.append(frame)
        return orders

    def _move(self, frame: InFlight, found: Found, plan: FleetPlan, now: float) -> InFlight:
        """Note that a frame goes on under ``plan``; what is still in hand was not sent again."""
        again = 0 if found.in_hand else 1
        self.moved += again
        decision = plan.streams[self._stream].plan
        return self._ledger.change(
            frame.seq,
            epoch=plan.epoch,
            path=self._watch.path(decision, found.unit, found.device),
            moved_s=now,
            resumed=frame.resumed + again,
        )


def _stalled(frame: InFlight, now: float) -> bool:
    patience_s = _STALLED_S * 2 ** min(frame.resumed, _MOST_DOUBLINGS)
    return now - frame.moved_s > patience_s

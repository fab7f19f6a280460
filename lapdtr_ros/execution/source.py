"""What a source keeps of its frames and plans, free of ROS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lapdtr_ros.planning.plan import FleetPlan


@dataclass(frozen=True)
class InFlight:
    """A frame that was sent and has no result yet."""

    seq: int
    epoch: int
    sent_s: float
    picture_bytes: int
    stamp_ns: int
    frame_id: str


class FrameLedger:
    """Frames in flight of one stream, bounded by credits.

    The bound is what keeps reliable queues from overflowing: no more frames than the depth of the
    queues are ever under way.

    Args:
        credits: most frames in flight; may be changed at any time.
        timeout_s: a frame without a result for that long is lost.
    """

    def __init__(self, credits: int, timeout_s: float) -> None:
        self.credits = credits
        self._timeout_s = timeout_s
        self._frames: dict[int, InFlight] = {}

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def may_send(self) -> bool:
        """Whether a credit is free."""
        return len(self._frames) < self.credits

    def sent(self, frame: InFlight) -> None:
        """A frame left the source."""
        self._frames[frame.seq] = frame

    def finished(self, seq: int) -> InFlight | None:
        """A result came; None when the frame is unknown: finished before, or already lost."""
        return self._frames.pop(seq, None)

    def expired(self, now: float) -> list[InFlight]:
        """Take out the frames that are lost."""
        late = [f for f in self._frames.values() if now - f.sent_s > self._timeout_s]
        for frame in late:
            del self._frames[frame.seq]
        return late

    def done_before(self, next_seq: int) -> int:
        """Number below which no frame is under way; ``next_seq`` is the next one to send."""
        return min(self._frames, default=next_seq)

    def oldest_epoch(self, otherwise: int) -> int:
        """Lowest epoch in flight, or ``otherwise`` when nothing is."""
        return min((frame.epoch for frame in self._frames.values()), default=otherwise)


class EpochGate:
    """Which plan a stream's next frame runs under: the newest that all its devices are ready for.

    Args:
        stream: name of the stream.
    """

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._plans: dict[int, FleetPlan] = {}
        self._ready: dict[str, frozenset[int]] = {}

    @property
    def newest(self) -> FleetPlan | None:
        """Newest plan for the stream, ready or not."""
        return self._plans[max(self._plans)] if self._plans else None

    def add_plan(self, plan: FleetPlan) -> None:
        """A plan arrived; plans without this stream do not concern it."""
        if self._stream in plan.streams:
            self._plans[plan.epoch] = plan

    def set_ready(self, device: str, epochs: Iterable[int]) -> None:
        """A device reported the epochs it can run."""
        self._ready[device] = frozenset(epochs)

    def current(self) -> FleetPlan | None:
        """The plan for the next frame; older plans are forgotten. None until one is ready."""
        for epoch in sorted(self._plans, reverse=True):
            plan = self._plans[epoch]
            if not self.waiting_for(plan):
                self._plans = {n: p for n, p in self._plans.items() if n >= epoch}
                return plan
        return None

    def waiting_for(self, plan: FleetPlan) -> tuple[str, ...]:
        """Devices of the plan that have not reported its epoch as ready."""
        return tuple(
            device
            for device in plan.devices(self._stream)
            if plan.epoch not in self._ready.get(device, frozenset())
        )

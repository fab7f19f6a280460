"""What a source keeps of its frames and plans, free of ROS."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.planning.plan import FleetPlan
from lapdtr_ros.planning.profile import ModelProfile

from .frames import Packet, Result
from .recovery import Hop

# Plans that wait for their devices.
_MOST_PLANS = 64


class RefusedResultError(LapdtrError):
    """A result that no run of the model can have given."""


def check_result(result: Result, stream: str, profile: ModelProfile) -> None:
    """Check a result from the network.

    Raises:
        RefusedResultError: of another stream, of another shape than the model's output, or not run
            through all units once.
        PacketError: a payload that does not match its description.
    """
    said = f'result of {stream} frame {result.seq} from {result.device[:40]!r} refused'
    if result.stream != stream:
        raise RefusedResultError(f'{said}: it is of stream {result.stream[:40]!r}')
    packet, shape = result.packet, (1, *profile.units[-1].output_shape)
    if packet.dtype != 'float32' or packet.shape != shape:
        raise RefusedResultError(f'{said}: {packet.dtype} {packet.shape}, expected float32 {shape}')
    packet.to_array()
    starts = [*(record.start for record in result.trace), len(profile)]
    stops = [0, *(record.stop for record in result.trace)]
    if starts != stops:
        raise RefusedResultError(
            f'{said}: its stages start at units {starts[:-1]} and stop at {stops[1:]}; expected '
            f'all {len(profile)} units in a row'
        )


@dataclass(frozen=True)
class InFlight:
    """A frame that was sent and has no result yet.

    Attributes:
        sent_s: when it was first sent, steady clock.
        packet: the picture as it was sent, from which the frame can start again; None for a frame
            that was never sent.
        path: the devices that the frame still needs.
        moved_s: when it was sent, or when a device was last told to go on with it.
        resumed: how often it was sent on after a loss.
    """

    seq: int
    epoch: int
    sent_s: float
    stamp_ns: int
    frame_id: str
    packet: Packet | None = None
    path: tuple[Hop, ...] = ()
    moved_s: float = field(default=0.0)
    resumed: int = 0

    @property
    def picture_bytes(self) -> int:
        """Payload that leaves the source."""
        return self.packet.nbytes if self.packet is not None else 0


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

    @property
    def frames(self) -> tuple[InFlight, ...]:
        """All frames in flight, oldest first."""
        return tuple(self._frames.values())

    def sent(self, frame: InFlight) -> None:
        """A frame left the source."""
        self._frames[frame.seq] = frame

    def get(self, seq: int) -> InFlight | None:
        """The frame if it is in flight."""
        return self._frames.get(seq)

    def change(self, seq: int, **changes: object) -> InFlight:
        """Note what became of a frame in flight."""
        frame = dataclasses.replace(self._frames[seq], **changes)  # type: ignore[arg-type]
        self._frames[seq] = frame
        return frame

    def finished(self, seq: int) -> InFlight | None:
        """A result came; None when the frame is unknown: finished before, or already lost."""
        return self._frames.pop(seq, None)

    def expired(self, now: float) -> list[InFlight]:
        """Take out the frames that are lost."""
        late = [f for f in self._frames.values() if now - f.sent_s > self._timeout_s]
        for frame in late:
            del self._frames[frame.seq]
        return late

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
        self._stopped_at = 0

    @property
    def stopped(self) -> bool:
        """Whether the newest plan leaves the stream out: the planner found no way to serve it."""
        return self._stopped_at > max(self._plans, default=0)

    @property
    def newest(self) -> FleetPlan | None:
        """Newest plan for the stream, ready or not."""
        return self._plans[max(self._plans)] if self._plans else None

    def add_plan(self, plan: FleetPlan) -> None:
        """A plan arrived; one that leaves the stream out stops it until the next one."""
        if self._stream not in plan.streams:
            self._stopped_at = max(self._stopped_at, plan.epoch)
            return
        self._plans[plan.epoch] = plan
        for number in sorted(self._plans)[:-_MOST_PLANS]:
            del self._plans[number]

    def set_ready(self, device: str, epochs: Iterable[int]) -> None:
        """A device reported the epochs it can run; none when it is lost."""
        self._ready[device] = frozenset(epochs)

    def current(self) -> FleetPlan | None:
        """The plan for the next frame; older plans are forgotten. None until one is ready."""
        if self.stopped:
            return None
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

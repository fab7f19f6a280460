"""Records the topics of a fleet as a rosbag2 directory."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from lapdtr_ros import topics
from lapdtr_ros.errors import LapdtrError

from .bags.files import BagError, BagWriter, message_class
from .base import OK, WARN, Diagnosis, ManagedNode, declare, parameter, run_node

_LOOK_FOR_TOPICS_S = 0.5
_QUEUE = 100


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of the recorder node."""

    bag: str = parameter('', 'Directory of the recording; it must not exist')
    topics: str = parameter('.*', 'Regular expression; topics that match as a whole are recorded')
    compress: bool = parameter(False, 'Pack chunks with zstd')


class RecorderNode(ManagedNode):
    """Writes everything that the fleet says into one bag, from activation to deactivation.

    Topics that appear later are joined when they appear. A message's time is that of its arrival
    by the node's clock, so that with ``use_sim_time`` a bag is in simulation time.

    Parameters:
        See `RecorderParameters` and `CommonParameters`.

    Subscriptions:
        every topic of the fleet, ``/clock`` and ``/diagnostics`` that matches ``topics``.
    """

    def __init__(self) -> None:
        super().__init__('recorder')
        self.parameters = declare(self, RecorderParameters)
        self._bag: BagWriter | None = None
        self._joined: set[str] = set()
        self._refused: dict[str, str] = {}
        self._count = 0

    def configure(self) -> None:
        """Check the parameters."""
        if not self.parameters.bag:
            raise BagError('parameter bag is empty: give the directory of the recording')
        try:
            self._wanted = re.compile(self.parameters.topics)
        except re.error as error:
            raise BagError(
                f'parameter topics = {self.parameters.topics!r} is no regular expression: {error}'
            ) from None

    def activate(self) -> None:
        """Open the bag and look for topics."""
        path = Path(self.parameters.bag).expanduser()
        self._bag = BagWriter(path, compress=self.parameters.compress)
        self._joined, self._refused, self._count = set(), {}, 0
        self._join()
        self.every(_LOOK_FOR_TOPICS_S, self._join)

    def deactivate(self) -> None:
        """Finish the bag; only then it can be played."""
        if self._bag is not None:
            self._bag.close()
            self.get_logger().info(f'{self._count} messages in {self._bag.path}')
        self._bag = None

    def diagnose(self) -> list[Diagnosis]:
        """What is recorded and what cannot be."""
        values = {'topics': str(len(self._joined)), 'messages': str(self._count)}
        if self._refused:
            return [Diagnosis('bag', WARN, '; '.join(self._refused.values()), values)]
        return [Diagnosis('bag', OK, f'recording to {self.parameters.bag}', values)]

    def _join(self) -> None:
        prefix = topics.namespace(self.common.fleet)
        for name, kinds in self.get_topic_names_and_types():
            mine = name in ('/clock', topics.DIAGNOSTICS) or name.startswith(prefix)
            if mine and name not in self._joined and self._wanted.fullmatch(name):
                self._subscribe(name, kinds[0])

    def _subscribe(self, name: str, kind: str) -> None:
        try:
            message = message_class(kind, name)
        except LapdtrError as error:
            if name not in self._refused:
                self._refused[name] = str(error)
                self.get_logger().warning(f'not recorded: {error}')
            return
        profile = self._profile(name)
        if profile is None:
            return
        self._joined.add(name)
        self._listening.append(
            self.create_subscription(
                message, name, partial(self._on_message, name, message, profile), profile, raw=True
            )
        )

    def _profile(self, name: str) -> QoSProfile | None:
        """The strictest policies that every publisher of a topic offers; None without any."""
        offers = [info.qos_profile for info in self.get_publishers_info_by_topic(name)]
        if not offers:
            return None
        reliable = all(q.reliability == ReliabilityPolicy.RELIABLE for q in offers)
        latched = all(q.durability == DurabilityPolicy.TRANSIENT_LOCAL for q in offers)
        return QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=_QUEUE,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )

    def _on_message(self, name: str, kind: type, profile: QoSProfile, data: bytes) -> None:
        if self._bag is None:
            return
        stamp_ns = self.get_clock().now().nanoseconds
        try:
            self._bag.write_raw(name, kind, data, stamp_ns, profile)
        except BagError as error:
            self._refused[name] = str(error)
            return
        self._count += 1


def main(args: list[str] | None = None) -> int:
    """Entry point of ``ros2 run lapdtr_ros recorder``."""
    return run_node(RecorderNode, args)


if __name__ == '__main__':
    sys.exit(main())

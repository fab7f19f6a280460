"""Where a device sends its outputs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.execution.device import Delivery
from lapdtr_ros.execution.frames import Result
from lapdtr_ros.msg import FeatureMap, FrameResult


class NoOutputError(LapdtrError):
    """An output for somebody that no plan has named."""


class Outputs:
    """Publishers of features and results; what has no listener yet waits for it.

    Publishers are opened in the executor thread, deliveries may come from any.

    Args:
        node: node that publishes.
        fleet: namespace of the fleet.
        on_matched: called in the executor thread when a listener came or went.
    """

    def __init__(self, node: Node, fleet: str, on_matched: Callable[[], None]) -> None:
        self._node = node
        self._fleet = fleet
        self._on_matched = on_matched
        self._features: dict[str, Publisher] = {}
        self._results: dict[str, Publisher] = {}
        self._lock = threading.Lock()
        self._waiting: deque[Delivery] = deque(maxlen=2 * qos.MOST_IN_FLIGHT)

    def open(self, devices: Iterable[str], streams: Iterable[str]) -> None:
        """Make sure that there are publishers to ``devices`` and for results of ``streams``."""
        for device in devices:
            if device not in self._features:
                topic = topics.features(self._fleet, device)
                self._features[device] = self._publisher(FeatureMap, topic)
        for stream in streams:
            if stream not in self._results:
                topic = topics.result(self._fleet, stream)
                self._results[stream] = self._publisher(FrameResult, topic)

    def close(self) -> None:
        """Destroy all publishers; what waits is dropped."""
        for publisher in (*self._features.values(), *self._results.values()):
            self._node.destroy_publisher(publisher)
        self._features, self._results = {}, {}
        self._waiting.clear()

    def listeners(self, stream: str, target: str | None) -> int:
        """Who listens to outputs for ``target``, or to results of ``stream`` when it is None."""
        publisher = self._results.get(stream) if target is None else self._features.get(target)
        return publisher.get_subscription_count() if publisher is not None else 0

    def deliver(self, delivery: Delivery) -> None:
        """Send an output on, or keep it until its target listens.

        Raises:
            NoOutputError: no plan has named the target.
        """
        publisher = self._publisher_of(delivery)
        if publisher is None:
            raise NoOutputError(
                f'{delivery.output.stream} frame {delivery.output.seq}: no way to '
                f'{delivery.target or "those who wait for results"}'
            )
        if publisher.get_subscription_count() == 0:
            with self._lock:
                self._waiting.append(delivery)
            return
        if isinstance(delivery.output, Result):
            publisher.publish(conversions.result_to_msg(delivery.output))
        else:
            publisher.publish(conversions.feature_to_msg(delivery.output))

    def _publisher_of(self, delivery: Delivery) -> Publisher | None:
        if delivery.target is None:
            return self._results.get(delivery.output.stream)
        return self._features.get(delivery.target)

    def _publisher(self, kind: type, topic: str) -> Publisher:
        events = PublisherEventCallbacks(matched=lambda _: self._matched())
        return self._node.create_publisher(kind, topic, qos.frames(), event_callbacks=events)

    def _matched(self) -> None:
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        for delivery in waiting:
            self.deliver(delivery)
        self._on_matched()

"""The part of a source that rides out the loss of devices; docs/architecture.md tells the story."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from rclpy.event_handler import QoSLivelinessChangedInfo, SubscriptionEventCallbacks

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.execution.recovery import Question, has_gone
from lapdtr_ros.execution.rescue import Rescue
from lapdtr_ros.execution.sessions import Session
from lapdtr_ros.execution.source import InFlight
from lapdtr_ros.msg import CacheReport, DeviceTelemetry, ResumeRequest

from .base import MOST_REPORT_BYTES, ManagedNode


class Mender:
    """Watches the devices and speaks with them about frames that a loss left behind.

    Args:
        node: the source node.
        fleet: namespace of the fleet.
        stream: stream of the source.
        session: number of the source's process.
        rescue: what is known and decided.
        lock: guards ``rescue``; callbacks take it, `mend` is called with it held.
        restart: sends the picture of a frame again, in a round.
        changed: called without the lock when frames may be sent again.
    """

    def __init__(
        self,
        node: ManagedNode,
        fleet: str,
        stream: str,
        session: int,
        rescue: Rescue,
        lock: AbstractContextManager[bool],
        restart: Callable[[InFlight, int], None],
        changed: Callable[[], None],
    ) -> None:
        self._node = node
        self._fleet = fleet
        self._stream = stream
        self._session = session
        self._rescue = rescue
        self._lock = lock
        self._restart = restart
        self._changed = changed
        self._requests = node.create_publisher(
            ResumeRequest, topics.resume_requests(fleet), qos.recovery()
        )

    def listen(self, devices: Sequence[str]) -> None:
        """Listen to the devices until the node is deactivated."""
        for device in devices:
            self._listen_to(device)
        self._node.listen(
            CacheReport,
            topics.cache_reports(self._fleet),
            self._on_cache_report,
            qos.recovery(),
            MOST_REPORT_BYTES,
        )

    def close(self) -> None:
        """Destroy the publisher."""
        self._node.destroy_publisher(self._requests)

    def mend(self) -> bool:
        """Look after frames that cannot finish; whether any was sent on."""
        now = time.monotonic()
        orders = self._rescue.settle(now)
        if orders is not None:
            self._node.get_logger().info(orders.told())
            for frame in orders.restarts:
                self._restart(frame, orders.question.round)
            if orders.holders:
                self._request(orders.question, list(orders.holders), list(orders.holders.values()))
        question = self._rescue.ask(now)
        if question is not None:
            self._request(question, question.seqs, [])
        return orders is not None

    def _listen_to(self, device: str) -> None:
        heard_s = -math.inf

        def heard(msg: DeviceTelemetry) -> None:
            nonlocal heard_s
            if msg.device != device:
                raise LapdtrError(f'says it is of {msg.device[:40]!r}, expected {device!r}')
            Session.parse(msg.session)
            heard_s = time.monotonic()
            with self._lock:
                self._rescue.heard(device, msg.session, list(msg.ready_epochs))
            self._changed()

        def lives(info: QoSLivelinessChangedInfo) -> None:
            silent_s = time.monotonic() - heard_s
            if has_gone(info.alive_count, info.alive_count_change, silent_s):
                self._on_lost(device)

        self._node.listen(
            DeviceTelemetry,
            topics.telemetry(self._fleet, device),
            heard,
            qos.telemetry(),
            MOST_REPORT_BYTES,
            SubscriptionEventCallbacks(liveliness=lives),
        )

    def _on_lost(self, device: str) -> None:
        self._node.get_logger().warning(
            f'{device} is lost: no sign of life for {qos.LIVELINESS_LEASE_S:g} s'
        )
        with self._lock:
            self._rescue.lost(device)
        self._changed()

    def _on_cache_report(self, msg: CacheReport) -> None:
        if msg.stream != self._stream or msg.session != self._session:
            return
        with self._lock:
            self._rescue.answers.answer(msg.device, msg.round, conversions.holdings_from_msg(msg))
        self._changed()

    def _request(self, question: Question, seqs: Sequence[int], holders: Sequence[str]) -> None:
        request = ResumeRequest(
            stream=self._stream,
            session=self._session,
            epoch=question.epoch,
            round=question.round,
            seqs=list(seqs),
            holders=list(holders),
        )
        request.header.stamp = self._node.get_clock().now().to_msg()
        self._requests.publish(request)

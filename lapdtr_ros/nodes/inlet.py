"""Messages that are received in the thread that works on them."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerGuardCondition
from rclpy.subscription import Subscription

from lapdtr_ros.errors import LapdtrError

# (message, info); the info holds times in nanoseconds.
Take = Callable[[Any, dict[str, Any]], None]
Work = Callable[[], None]
Refuse = Callable[[str], None]

_FOR_EVER = -1


def _nothing() -> None:
    """Messages are done with when they have been taken."""


@dataclass
class Input:
    """One topic of an inlet.

    Attributes:
        kind: type of the messages.
        topic: topic of the messages.
        take: called with every message and its info; must be short.
        profile: QoS.
        most_bytes: larger messages are refused before they are unpacked; may be changed.
    """

    kind: type
    topic: str
    take: Take
    profile: QoSProfile
    most_bytes: int


class Inlet:
    """A node of its own with nothing but subscriptions, waited for by one thread.

    An executor looks after all entities of a node at every turn, in Python, while the working
    thread waits for the interpreter's lock; even with a single entity that is most of a millisecond
    per message. Here the thread itself waits for the subscriptions, as `rclpy.wait_for_message`
    does, and a frame goes from the network to the model without changing threads.

    Args:
        namespace: namespace of the node that this one belongs to.
        name: name of the node and of the thread.
        inputs: what to receive.
        refuse: called with the reason when a message is too large, cannot be read, or raises.
        work: called in the thread after messages were taken; does what they ask for.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        inputs: Sequence[Input],
        refuse: Refuse,
        work: Work = _nothing,
    ) -> None:
        self._work = work
        self._refuse = refuse
        self._node = rclpy.create_node(
            name, namespace=namespace, start_parameter_services=False, enable_rosout=False
        )
        # The callbacks are never called: the thread takes messages itself.
        self._inputs = [
            (
                entry,
                self._node.create_subscription(
                    entry.kind, entry.topic, lambda _: None, entry.profile, raw=True
                ),
            )
            for entry in inputs
        ]
        self._woken = self._node.create_guard_condition(lambda: None)
        self._open = True
        self._node.context.on_shutdown(self._end)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Take what has arrived, in the calling thread, while the other one is at work."""
        taken = False
        while self._take_round():
            taken = True
        if taken:
            self.wake()

    def wake(self) -> None:
        """Have the thread work, also without a message."""
        self._woken.trigger()

    def close(self) -> None:
        """Finish the work in hand and stop; messages that wait in the queue are dropped."""
        self._end()
        self._thread.join()
        self._node.destroy_node()

    def _end(self) -> None:
        self._open = False
        with contextlib.suppress(
            rclpy_implementation.InvalidHandle
        ):  # the interpreter ends, this node is gone already
            self._woken.trigger()

    def _do_work(self) -> None:
        try:
            self._work()
        except Exception:  # the thread must live on, whatever happens to one frame
            self._refuse(f'{self._node.get_name()}: work failed:\n{traceback.format_exc()}')

    def _unpack(self, source: Input, data: bytes, info: dict[str, Any]) -> None:
        if len(data) > source.most_bytes:
            self._refuse(f'{source.topic}: message of {len(data)} bytes; limit {source.most_bytes}')
            return
        try:
            source.take(deserialize_message(data, source.kind), info)
        except LapdtrError as error:
            self._refuse(f'{source.topic}: {error}')
        except Exception:  # as above
            self._refuse(
                f'{source.topic}: message of {len(data)} bytes cannot be handled:\n'
                f'{traceback.format_exc()}'
            )

    def _run(self) -> None:
        context = self._node.context
        interrupted = SignalHandlerGuardCondition(context)
        wait_set = rclpy_implementation.WaitSet(len(self._inputs), 2, 0, 0, 0, 0, context.handle)
        while self._open and context.ok():
            wait_set.clear_entities()
            for _, subscription in self._inputs:
                wait_set.add_subscription(subscription.handle)
            wait_set.add_guard_condition(self._woken.handle)
            wait_set.add_guard_condition(interrupted.handle)
            wait_set.wait(_FOR_EVER)
            self._turn()
        interrupted.destroy()

    def _turn(self) -> None:
        """Take and work by turns: what is done goes out before the next message is unpacked."""
        while self._open and self._take_round():
            self._do_work()
        if self._open:
            self._do_work()

    def _take_round(self) -> bool:
        """Take one message of each topic that has any."""
        taken = [self._take_one(entry, held) for entry, held in self._inputs]
        return any(taken)

    def _take_one(self, source: Input, subscription: Subscription) -> bool:
        handle = subscription.handle
        with handle:
            message = handle.take_message(source.kind, True)
        if message is None:
            return False
        self._unpack(source, *message)
        return True

"""Messages that are received in the thread that works on them."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerGuardCondition

from lapdtr_ros import qos
from lapdtr_ros.errors import LapdtrError

# (message, info); the info holds times in nanoseconds.
Take = Callable[[Any, dict[str, Any]], None]
Work = Callable[[], None]
Refuse = Callable[[str], None]

_FOR_EVER = -1


class Inlet:
    """A node of its own with one subscription, waited for by one thread.

    An executor looks after all entities of a node at every turn, in Python, while the working
    thread waits for the interpreter's lock; even with a single entity that is most of a millisecond
    per message. Here the thread itself waits for the one subscription, as `rclpy.wait_for_message`
    does, and a frame goes from the network to the model without changing threads.

    Args:
        namespace: namespace of the node that this one belongs to.
        name: name of the node and of the thread.
        kind: type of the messages.
        topic: topic of the messages.
        take: called with every message and its info; must be short.
        work: called in the thread after messages were taken; does what they ask for.
        refuse: called with the reason when a message is too large, cannot be read, or raises.

    Attributes:
        most_bytes: larger messages are refused before they are unpacked.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        kind: type,
        topic: str,
        take: Take,
        work: Work,
        refuse: Refuse,
        most_bytes: int,
    ) -> None:
        self.most_bytes = most_bytes
        self._kind = kind
        self._take = take
        self._work = work
        self._refuse = refuse
        self._node = rclpy.create_node(
            name, namespace=namespace, start_parameter_services=False, enable_rosout=False
        )
        # The callback is never called: the thread takes messages itself.
        self._subscription = self._node.create_subscription(
            kind, topic, lambda _: None, qos.frames(), raw=True
        )
        self._woken = self._node.create_guard_condition(lambda: None)
        self._open = True
        self._node.context.on_shutdown(self._end)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Take what has arrived, in the calling thread, while the other one is at work."""
        taken = False
        while self._take_one():
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
            self._refuse(f'{self._kind.__name__}: work failed:\n{traceback.format_exc()}')

    def _unpack(self, data: bytes, info: dict[str, Any]) -> None:
        if len(data) > self.most_bytes:
            self._refuse(f'message of {len(data)} bytes; limit {self.most_bytes}')
            return
        try:
            self._take(deserialize_message(data, self._kind), info)
        except LapdtrError as error:
            self._refuse(str(error))
        except Exception:  # as above
            self._refuse(
                f'{self._kind.__name__} of {len(data)} bytes cannot be handled:\n'
                f'{traceback.format_exc()}'
            )

    def _run(self) -> None:
        context = self._node.context
        interrupted = SignalHandlerGuardCondition(context)
        wait_set = rclpy_implementation.WaitSet(1, 2, 0, 0, 0, 0, context.handle)
        while self._open and context.ok():
            wait_set.clear_entities()
            wait_set.add_subscription(self._subscription.handle)
            wait_set.add_guard_condition(self._woken.handle)
            wait_set.add_guard_condition(interrupted.handle)
            wait_set.wait(_FOR_EVER)
            self._turn()
        interrupted.destroy()

    def _turn(self) -> None:
        """Take and work by turns: what is done goes out before the next message is unpacked."""
        while self._open and self._take_one():
            self._do_work()
        if self._open:
            self._do_work()

    def _take_one(self) -> bool:
        handle = self._subscription.handle
        with handle:
            message = handle.take_message(self._kind, True)
        if message is None:
            return False
        self._unpack(*message)
        return True

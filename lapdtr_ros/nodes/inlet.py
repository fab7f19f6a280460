"""Messages that are received in the thread that works on them."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.serialization import deserialize_message

from lapdtr_ros import qos
from lapdtr_ros.errors import LapdtrError

# (message, info); the info holds times in nanoseconds.
Take = Callable[[Any, dict[str, Any]], None]
Work = Callable[[], None]
Refuse = Callable[[str], None]


class Inlet:
    """A node of its own with one subscription, spun by one thread.

    The executor of a full node looks after some thirty entities at every turn, in Python, while the
    working thread waits for the interpreter's lock. This one has a single entity, and a frame goes
    from the network to the model without changing threads.

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
        # rclpy sees from its signature that the callback also takes the info; its stub does not.
        self._subscription = self._node.create_subscription(
            kind,
            topic,
            self._on_message,  # type: ignore[arg-type]
            qos.frames(),
            raw=True,
        )
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Take what has arrived, in the calling thread, while the other one is at work."""
        taken = False
        handle = self._subscription.handle
        with handle:
            while (message := handle.take_message(self._kind, True)) is not None:
                self._unpack(*message)
                taken = True
        if taken:
            self.wake()

    def wake(self) -> None:
        """Have the thread work, also without a message."""
        self._executor.create_task(self._do_work)

    def close(self) -> None:
        """Finish the work in hand and stop; messages that wait in the queue are dropped."""
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()

    def _on_message(self, data: bytes, info: dict[str, Any]) -> None:
        self._unpack(data, info)
        self._do_work()

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
        with contextlib.suppress(ExternalShutdownException, ShutdownException):
            self._executor.spin()

"""Feature maps that are received in the thread that runs them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor

from lapdtr_ros import qos
from lapdtr_ros.msg import FeatureMap

# (message, info); rclpy looks at the number of arguments.
Take = Callable[..., None]


class Inlet:
    """A node of its own with one subscription, spun by one thread.

    The executor of a full node looks after some thirty entities at every turn, in Python, while the
    inference thread waits for the interpreter's lock. This one has a single entity, and a frame
    goes from the network to the model without changing threads.

    Args:
        namespace: namespace of the node that this one belongs to.
        topic: topic of the feature maps.
        take: called in the thread with every message and its info (times in nanoseconds).
    """

    def __init__(self, namespace: str, topic: str, take: Take) -> None:
        self._node = rclpy.create_node(
            'features', namespace=namespace, start_parameter_services=False, enable_rosout=False
        )
        self._node.create_subscription(FeatureMap, topic, take, qos.frames())
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish the frame in hand and stop; frames that wait in the queue are dropped."""
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()

    def _run(self) -> None:
        with contextlib.suppress(ExternalShutdownException, ShutdownException):
            self._executor.spin()

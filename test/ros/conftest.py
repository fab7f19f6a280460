"""A node of the test's own beside the processes under test."""

from __future__ import annotations

import time

import pytest


class Peer:
    """Publishes and listens; spins only while it waits."""

    def __init__(self):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        rclpy.init()
        self.node = rclpy.create_node('peer')
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)

    def collect(self, kind, topic, profile):
        messages = []
        self.node.create_subscription(kind, topic, messages.append, profile)
        return messages

    def wait(self, condition, timeout_s=40.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.05)
            if condition():
                return
        raise AssertionError('timed out')

    def close(self):
        import rclpy

        self.node.destroy_node()
        rclpy.try_shutdown()


@pytest.fixture
def peer():
    peer = Peer()
    yield peer
    peer.close()

"""Work outside the executor thread, with results handed back to it.

rclpy's multi-threaded executor loses throughput, so every node spins one thread; heavy work runs
in a thread of its own and its results return as tasks of the executor. All node state is then
touched by one thread and needs no locks.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.node import Node

Work = Callable[[], Any]
Done = Callable[[Any, Exception | None], None]


class Handback:
    """One worker thread whose results are delivered in the node's executor thread.

    Args:
        node: node whose executor calls back.
        name: name of the thread, seen in debuggers and ``top -H``.
    """

    def __init__(self, node: Node, name: str) -> None:
        self._node = node
        self._work: queue.SimpleQueue[tuple[Work, Done] | None] = queue.SimpleQueue()
        self._finished: deque[tuple[Done, Any, Exception | None]] = deque()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Work, done: Done) -> None:
        """Run ``work()`` in the thread, then ``done(result, error)`` in the executor."""
        self._work.put((work, done))

    def close(self) -> None:
        """Finish the piece in hand and stop; what waits is dropped."""
        while not self._work.empty():
            self._work.get()
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            work, done = item
            result, failure = None, None
            try:
                result = work()
            except Exception as error:
                failure = error
            self._finished.append((done, result, failure))
            executor = self._node.executor
            assert executor is not None
            executor.create_task(self._deliver)

    def _deliver(self) -> None:
        while self._finished:
            done, result, failure = self._finished.popleft()
            done(result, failure)

"""Malformed messages of every type, thrown at a running fleet.

A fleet of four devices streams pictures of noise. Meanwhile messages that no node of ours would
send are published on every topic that its nodes listen to: absurd sizes and shapes, impossible
numbers, unknown names, epochs and units, frames that are played again. No process may end, every
frame must finish once with the output of the unsplit model, and memory must stay where it was.
Frames that a flood pushes out of a reader's queue stand still and are resumed.
"""

from __future__ import annotations

import argparse
import array
import json
import math
import random
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from fleet_under_test import FleetUnderTest
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from lapdtr_ros import qos, topics
from lapdtr_ros.msg import (
    CacheReport,
    CutSetting,
    DeviceTelemetry,
    FeatureMap,
    FrameResult,
    FrameTrace,
    PartitionPlan,
    ResumeRequest,
    StageAssignment,
    StageTrace,
    StreamPlan,
    StreamStatus,
)

# One message in so many is large: tens of thousands of elements, or a text of a megabyte.
_LARGE_EVERY = 500

# Messages in a row before the readers get a moment, as a flood over a network would leave them.
_BURST = 16


class Fuzzer:
    """Makes and publishes malformed messages.

    Args:
        node: node that publishes.
        fleet: namespace of the fleet.
        streams: its streams.
        devices: its devices.
        seed: of the random choices.
        largest: bytes of the largest payloads; DDS keeps a reader's buffers at the size of the
            largest message they have held, up to the depth of its queue.

    Attributes:
        sent: messages per type.
    """

    def __init__(
        self,
        node: Node,
        fleet: str,
        streams: list[str],
        devices: list[str],
        seed: int,
        largest: int = 8_000_000,
    ) -> None:
        self._largest = largest
        self._random = random.Random(seed)
        self._streams, self._devices = streams, devices
        self.sent: Counter[str] = Counter()
        publish = node.create_publisher
        self._plans = [
            publish(PartitionPlan, topics.plan(fleet), qos.plan()),
            publish(PartitionPlan, topics.active_plan(fleet), qos.active_plan()),
        ]
        self._status = publish(StreamStatus, topics.stream_status(fleet), qos.stream_status())
        self._requests = publish(ResumeRequest, topics.resume_requests(fleet), qos.recovery())
        self._reports = publish(CacheReport, topics.cache_reports(fleet), qos.recovery())
        self._traces = publish(FrameTrace, topics.frame_traces(fleet), qos.traces())
        self._results = [
            publish(FrameResult, topics.result(fleet, s), qos.frames()) for s in streams
        ]
        self._features = {
            d: publish(FeatureMap, topics.features(fleet, d), qos.frames()) for d in devices
        }
        self._telemetry = [
            publish(DeviceTelemetry, topics.telemetry(fleet, d), qos.telemetry()) for d in devices
        ]
        self._forged: set[int] = set()
        self._originals: dict[str, deque[FeatureMap]] = {d: deque(maxlen=64) for d in devices}
        for device in devices:
            topic = topics.features(fleet, device)
            node.create_subscription(FeatureMap, topic, partial(self._record, device), qos.frames())
        self._kinds: list[Callable[[], None]] = [
            self._send_feature,
            self._send_plan,
            self._send_result,
            self._send_telemetry,
            self._send_status,
            self._send_request,
            self._send_report,
            self._send_trace,
            self._replay,
        ]

    def send(self, count: int) -> None:
        """Publish ``count`` messages, of each type as many."""
        for number in range(count):
            self._kinds[number % len(self._kinds)]()

    def _record(self, device: str, msg: FeatureMap) -> None:
        if msg.session not in self._forged:
            self._originals[device].append(msg)

    def _publish(self, publisher: Any, message: Any) -> None:
        publisher.publish(message)
        self.sent[type(message).__name__] += 1

    def _text(self) -> str:
        if self._random.randrange(_LARGE_EVERY) == 0:
            return 'x' * (self._largest // 8)
        return self._random.choice(
            ['', 'nobody', '../../etc/passwd', '\u202e\U0001f697', "'; drop table", '%s' * 50]
        )

    def _stream(self) -> str:
        return self._random.choice([*self._streams, self._text()])

    def _integer(self, bits: int) -> int:
        chooser = self._random
        return chooser.choice([0, 1, 2**bits - 1, 2 ** (bits - 1), chooser.getrandbits(bits)])

    def _number(self) -> float:
        return self._random.choice([math.nan, math.inf, -math.inf, -1.0, 1e30, -0.0])

    def _length(self, usual: int = 6) -> int:
        large = self._random.randrange(_LARGE_EVERY) == 0
        return self._largest // 400 if large else self._random.randrange(usual)

    def _data(self) -> array.array[int]:
        large = self._random.randrange(_LARGE_EVERY) == 0
        return array.array('B', bytes(self._largest if large else self._random.randrange(2000)))

    def _trace(self) -> list[StageTrace]:
        return [
            StageTrace(device=self._text()[:50], start_unit=self._integer(16), queue_s=math.nan)
            for _ in range(self._length())
        ]

    def _cut(self) -> CutSetting:
        return CutSetting(keep=self._integer(16), bits=self._integer(8), form=self._text()[:50])

    def _send_feature(self) -> None:
        # Broken in its shape, so never a frame that could be run.
        message = FeatureMap(
            stream=self._stream(),
            seq=self._integer(64),
            session=self._integer(32),
            round=self._integer(32),
            epoch=self._random.choice([0, 1, 2, self._integer(32)]),
            unit=self._random.choice([0, 1, 3, self._integer(16)]),
            coding=self._integer(8),
            dtype=self._random.choice(['float32', 'uint8', 'object', self._text()[:50]]),
            shape=[self._integer(32) for _ in range(self._length())] or [7],
            cut=self._cut(),
            data=self._data(),
            trace=self._trace(),
        )
        message.header.frame_id = self._text()
        self._forged.add(message.session)
        self._publish(self._random.choice(list(self._features.values())), message)

    def _send_plan(self) -> None:
        # No stage of it starts at unit 0, so it is never one that could be carried out.
        stages = [
            StageAssignment(
                device=self._random.choice([*self._devices, self._text()[:50]]),
                start_unit=1 + self._integer(15),
                stop_unit=self._integer(16),
                level=self._integer(8),
                cut=self._cut(),
            )
            for _ in range(self._length())
        ]
        streams = [
            StreamPlan(
                stream=self._stream()[:100],
                model=self._random.choice(['test_vit', self._text()[:50]]),
                stages=stages,
                energy_j=self._number(),
                picture=self._text()[:50],
            )
            for _ in range(1 + self._random.randrange(3))
        ]
        message = PartitionPlan(
            epoch=self._integer(32), planner=self._text(), reason=self._text(), streams=streams
        )
        self._publish(self._random.choice(self._plans), message)

    def _send_result(self) -> None:
        message = FrameResult(
            stream=self._stream(),
            seq=self._random.choice([0, 5, self._integer(64)]),
            session=self._integer(32),
            epoch=self._integer(32),
            device=self._text(),
            dtype=self._random.choice(['float32', 'uint8', self._text()[:50]]),
            shape=[self._integer(32) for _ in range(self._length())] or [7],
            data=self._data(),
            trace=self._trace(),
        )
        self._publish(self._random.choice(self._results), message)

    def _send_telemetry(self) -> None:
        message = DeviceTelemetry(
            device=self._random.choice([*self._devices, self._text()]),
            session=self._text(),
            epoch=self._integer(32),
            soc=self._number(),
            battery_j=self._number(),
            energy_j=self._number(),
            power_w=self._number(),
            load=self._number(),
            unit_time_ratio=self._number(),
            ready_epochs=[self._integer(32) for _ in range(self._length())],
            link_targets=[self._text()[:50] for _ in range(self._length())],
            link_bytes_per_s=[self._number() for _ in range(self._length())],
            last_error=self._text(),
        )
        self._publish(self._random.choice(self._telemetry), message)

    def _send_status(self) -> None:
        message = StreamStatus(
            stream=self._stream(),
            session=self._integer(32),
            oldest_epoch=2**32 - 1 - self._random.randrange(1000),
            next_seq=self._integer(64),
            under_way=[self._integer(64) for _ in range(self._length())],
        )
        self._publish(self._status, message)

    def _send_request(self) -> None:
        count = self._length()
        message = ResumeRequest(
            stream=self._stream(),
            session=self._integer(32),
            epoch=self._integer(32),
            round=self._integer(32),
            seqs=[self._integer(64) for _ in range(count)],
            holders=[self._text()[:50] for _ in range(count + self._random.randrange(2))],
        )
        self._publish(self._requests, message)

    def _send_report(self) -> None:
        message = CacheReport(
            device=self._random.choice([*self._devices, self._text()]),
            stream=self._stream(),
            session=self._integer(32),
            round=self._integer(32),
            seqs=[self._integer(64) for _ in range(self._length())],
            units=[self._integer(16) for _ in range(self._length())],
            in_hand=[bool(self._random.randrange(2)) for _ in range(self._length())],
        )
        self._publish(self._reports, message)

    def _send_trace(self) -> None:
        message = FrameTrace(
            stream=self._text(),
            seq=self._integer(64),
            epoch=self._integer(32),
            outcome=self._integer(8),
            latency_s=self._number(),
            picture_bytes=self._integer(64),
            stages=self._trace(),
        )
        self._publish(self._traces, message)

    def _replay(self) -> None:
        """Send a genuine frame a second time."""
        device = self._random.choice(self._devices)
        if self._originals[device]:
            message = self._random.choice(self._originals[device])
            self._publish(self._features[device], message)


def measure(count: int, seed: int, folder: Path) -> dict[str, object]:
    """Flood a fleet with ``count`` messages and judge how it came through."""
    with FleetUnderTest(folder, rate_hz=10.0) as fleet:
        node = rclpy.create_node('fuzzer')
        fuzzer = Fuzzer(node, '', list(fleet.streams), list(fleet.devices), seed)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        fleet.wait_until_running()
        began = time.monotonic()
        flood(fuzzer, executor, fleet, count)
        seconds = time.monotonic() - began
        report = fleet.finish()
        node.destroy_node()
    memory = fleet.memory_growth()
    return {
        'messages': sum(fuzzer.sent.values()),
        'per_type': dict(sorted(fuzzer.sent.items())),
        'seconds': round(seconds, 1),
        **report,
        'memory_growth': max(memory.values()),
        'memory_growth_per_process': memory,
        'seed': seed,
        'level': 'measured',
    }


def flood(
    fuzzer: Fuzzer, executor: SingleThreadedExecutor, fleet: FleetUnderTest, count: int
) -> None:
    """Send malformed messages in bursts, while the fleet runs on."""
    for sent in range(0, count, _BURST):
        fuzzer.send(min(_BURST, count - sent))
        executor.spin_once(timeout_sec=0.0)
        fleet.spin(0.002)
        if sent % (100 * _BURST) == 0:
            fleet.check_alive()
            fleet.note_memory()
            print(f'{sent} messages, {fleet.finished} frames finished', flush=True)


def main() -> None:
    """Measure and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--messages', type=int, default=101_000)
    parser.add_argument('--seed', type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.messages, options.seed, Path(folder))
    print(json.dumps(figures))


if __name__ == '__main__':
    main()

"""A real fleet in processes, watched while a benchmark mistreats it."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
import yaml
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.bringup import (
    ProcessGroup,
    ProcessSpec,
    RunError,
    device_process,
    planner_process,
    source_process,
)
from lapdtr_ros.commands.run import isolated_environment
from lapdtr_ros.datasets.noise import write_noise_scene
from lapdtr_ros.datasets.pictures import PictureSequence
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.execution.source import check_result
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.models.facts import model_spec, profile_model
from lapdtr_ros.msg import DeviceTelemetry, FrameResult, FrameTrace, PartitionPlan
from lapdtr_ros.planning.cost import stage_memory
from lapdtr_ros.planning.plan import FleetPlan

CAMERA = 'cav_0'
STREAM = f'{CAMERA}/camera0'
DEVICES = ('cav_0', 'cav_1', 'cav_2', 'rsu_1')
WEIGHTS = 'random:3'
PICTURES = 8
TOLERANCE = 1e-5

# A busy machine may need long to start a dozen processes.
_PATIENCE_S = 90.0

# A process is warm after this time: all its code has run and its buffers have been made.
_WARM_S = 60.0

# More frames than any benchmark lasts.
_ENDLESS = 10_000_000


Sample = tuple[float, int]


def _growth(samples: list[Sample]) -> float:
    """Relative growth of a process' memory since it was warm; 0 for one that did not live long.

    Args:
        samples: (seconds since its first sample, bytes).
    """
    warm = [held for age_s, held in samples if age_s >= _WARM_S]
    if len(warm) < 6:
        return 0.0
    return float(np.median(warm[-3:]) / np.median(warm[:3]) - 1.0)


class FleetUnderTest:
    """Four devices, a planner, a source that never ends, and an observer in this process.

    Args:
        folder: scenario, pictures and logs.
        rate_hz: frames per second.
        model: name of the model.

    Attributes:
        traces: what became of each frame, by number; the first word counts.
        plans: plans heard, with the time on the steady clock.
        telemetry: newest report per device.
        samples: memory of each process, by name and process number.
    """

    streams = (STREAM,)
    devices = DEVICES

    def __init__(self, folder: Path, rate_hz: float, model: str = 'test_vit') -> None:
        self.folder = folder
        self.model = model
        self._profile = profile_model(model)
        write_noise_scene(folder / 'scene', frames=PICTURES)
        self.scenario = self._write_scenario(rate_hz)
        self.traces: dict[int, FrameTrace] = {}
        self.ended_s: dict[int, float] = {}
        self.plans: list[tuple[float, FleetPlan]] = []
        self.telemetry: dict[str, DeviceTelemetry] = {}
        self._heard_s: dict[str, float] = {}
        self.samples: dict[tuple[str, int], list[Sample]] = defaultdict(list)
        self._first_sample_s: dict[tuple[str, int], float] = {}
        self._units: dict[tuple[str, str], int] = defaultdict(int)
        self._copies: Counter[int] = Counter()
        self._repeated = self._wrong = self._foreign = 0
        self._references = self._run_whole_model()

    def _write_scenario(self, rate_hz: float) -> Path:
        # No device holds the whole model, so frames always travel, and any two can carry on.
        memory_mb = 0.6e-6 * stage_memory(self._profile, 0, len(self._profile))
        pairs = [[a, b] for i, a in enumerate(DEVICES) for b in DEVICES[i + 1 :]]
        content = {
            'name': 'mistreated',
            'model': {'name': self.model, 'weights': WEIGHTS},
            'devices': {
                name: {'class': 'jetson_xavier_nx', 'memory_mb': memory_mb} for name in DEVICES
            },
            'links': [{'between': pair, 'class': 'ethernet'} for pair in pairs],
            'streams': {STREAM: {'source': 'cav_0', 'dataset': 'scene', 'rate_hz': rate_hz}},
            'requirements': {'weights': {'energy': 0.0, 'latency': 0.0, 'period': 1.0}},
            'execution': {'max_in_flight': 4, 'frame_timeout_s': 60.0},
        }
        path = self.folder / 'scenario.yaml'
        path.write_text(yaml.safe_dump(content), encoding='utf-8')
        return path

    def _run_whole_model(self) -> list[np.ndarray]:
        whole = StageRunner(self.model, WEIGHTS, 0, len(self._profile))
        size = model_spec(self.model).picture_shape[:2]
        pictures = PictureSequence(self.folder / 'scene', None, 0, size)
        return [whole.run(pictures[index].pixels) for index in range(PICTURES)]

    # --- Processes -------------------------------------------------------------------------------

    def __enter__(self) -> FleetUnderTest:
        # The devices stand for computers of their own, which share no memory. Shared memory would
        # also leak a buffer of the sender with every receiver that is killed while it reads one.
        environment = isolated_environment() | {'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4'}
        os.environ |= environment
        rclpy.init()
        self.node = rclpy.create_node('observer')
        self._listen()
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self.group = ProcessGroup(self._specs(), self.folder / 'logs', environment)
        self.group.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for name in (spec.name for spec in self._specs()):
            self.signal(name, signal.SIGCONT)
        self.group.stop()
        self.node.destroy_node()
        rclpy.try_shutdown()

    def _specs(self) -> list[ProcessSpec]:
        path = self.scenario
        return [
            *(device_process(path, '', device) for device in DEVICES),
            planner_process(path, ''),
            source_process(path, '', STREAM, _ENDLESS, sinks=1),
        ]

    def start(self, name: str) -> None:
        """Start a process again."""
        spec = next(spec for spec in self._specs() if spec.name == name)
        self.group.start(spec)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process that still runs."""
        process = self.group.process(name)
        if process.poll() is None:
            os.kill(process.pid, number)

    def planner_is_up(self) -> bool:
        """Whether the planner that was started last has published a plan."""
        return self.plan.planner.endswith(f':{self.group.process("planner").pid}')

    def log(self, name: str) -> str:
        """What a process has written so far."""
        return (self.folder / 'logs' / f'{name}.log').read_text(encoding='utf-8')

    def check_alive(self) -> None:
        """Raise if a process has ended."""
        self.group.check()

    def memory(self) -> dict[str, int]:
        """Bytes of memory that each process holds for itself."""
        held = {}
        for spec in self._specs():
            process = self.group.process(spec.name)
            if process.poll() is None:
                fields = Path(f'/proc/{process.pid}/statm').read_text(encoding='ascii').split()
                held[spec.name] = (int(fields[1]) - int(fields[2])) * os.sysconf('SC_PAGE_SIZE')
        return held

    def note_memory(self) -> None:
        """Take one sample of the memory of each process."""
        now = time.monotonic()
        for name, held in self.memory().items():
            life = (name, self.group.process(name).pid)
            began = self._first_sample_s.setdefault(life, now)
            self.samples[life].append((now - began, held))

    def memory_growth(self) -> dict[str, float]:
        """Greatest growth among the lives of each process."""
        worst: dict[str, float] = defaultdict(lambda: -1.0)
        for (name, _), samples in self.samples.items():
            worst[name] = max(worst[name], round(_growth(samples), 4))
        return dict(worst)

    # --- What comes out --------------------------------------------------------------------------

    def _listen(self) -> None:
        listen = self.node.create_subscription
        listen(FrameTrace, topics.frame_traces(''), self._on_trace, qos.traces())
        listen(FrameResult, topics.result('', STREAM), self._on_result, qos.frames())
        listen(PartitionPlan, topics.plan(''), self._on_plan, qos.plan())
        for device in DEVICES:
            topic = topics.telemetry('', device)
            listen(DeviceTelemetry, topic, self._on_telemetry, qos.telemetry())

    def _on_trace(self, msg: FrameTrace) -> None:
        if msg.stream != STREAM:
            self._foreign += 1
            return
        if msg.seq in self.traces:
            self._repeated += 1
            return
        self.traces[msg.seq] = msg
        self.ended_s[msg.seq] = time.monotonic()

    def _on_result(self, msg: FrameResult) -> None:
        try:
            result = conversions.result_from_msg(msg)
            check_result(result, STREAM, self._profile)
        except LapdtrError:
            self._foreign += 1
            return
        self._copies[result.seq] += 1
        expected = self._references[result.seq % PICTURES]
        if np.abs(result.packet.to_array() - expected).max() > TOLERANCE:
            self._wrong += 1

    def _on_plan(self, msg: PartitionPlan) -> None:
        try:
            self.plans.append((time.monotonic(), conversions.fleet_plan_from_msg(msg)))
        except LapdtrError:
            self._foreign += 1

    def _on_telemetry(self, msg: DeviceTelemetry) -> None:
        if msg.device in DEVICES and '-' in msg.session:
            self.telemetry[msg.device] = msg
            self._heard_s[msg.device] = time.monotonic()
            key = (msg.device, msg.session)
            self._units[key] = max(self._units[key], msg.units)

    def add_node(self, node: Node) -> None:
        """Spin another node together with the observer."""
        self._executor.add_node(node)

    def heard_ago_s(self, device: str) -> float:
        """Time since the last report of a device."""
        return time.monotonic() - self._heard_s[device]

    def spin(self, seconds: float) -> None:
        """Listen for some time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def wait(self, condition: Callable[[], bool], patience_s: float = _PATIENCE_S) -> None:
        """Listen until a condition holds.

        Raises:
            RunError: it never does.
        """
        until = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > until:
                raise RunError(f'waited {patience_s:.0f} s in vain; the logs say why')
            self._executor.spin_once(timeout_sec=0.05)

    def wait_until_running(self) -> None:
        """Until frames come through."""
        self.wait(lambda: len(self.traces) >= 20)

    @property
    def finished(self) -> int:
        """Frames that have ended."""
        return len(self.traces)

    @property
    def plan(self) -> FleetPlan:
        """The plan that was heard last."""
        return self.plans[-1][1]

    def finish(self) -> dict[str, object]:
        """Wait for the frames that are under way and judge all of them."""
        sent = max(self.traces) + 1
        self.wait(lambda: all(seq in self.traces for seq in range(sent)))
        outcomes = Counter(self.traces[seq].outcome for seq in range(sent))
        done = [seq for seq in range(sent) if self.traces[seq].outcome == FrameTrace.FINISHED]
        units = sum(self._units.values())
        return {
            'frames_in': sent,
            'finished': outcomes[FrameTrace.FINISHED],
            'lost': outcomes[FrameTrace.LOST] + outcomes[FrameTrace.REFUSED],
            'duplicated': self._repeated,
            'wrong': self._wrong + sum(not self._is_complete(self.traces[seq]) for seq in done),
            'resumed_frames': sum(self.traces[seq].resumed > 0 for seq in done),
            'late_copies_dropped': sum(count - 1 for count in self._copies.values()),
            'recomputed_units': max(0, units - len(done) * len(self._profile)),
            'units': units,
        }

    def _is_complete(self, trace: FrameTrace) -> bool:
        """Whether a frame passed all units once, in order."""
        starts = [*(stage.start_unit for stage in trace.stages), len(self._profile)]
        return starts == [0, *(stage.stop_unit for stage in trace.stages)]

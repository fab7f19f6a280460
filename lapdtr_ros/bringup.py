"""From a scenario to processes: one description used by launch files and by the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from . import topics
from .errors import LapdtrError, UnknownNameError
from .scenario import Scenario

END_WITH_PARENT = 'LAPDTR_END_WITH_PARENT'


class ProcessFailedError(LapdtrError):
    """A process of the fleet ended although nobody asked it to."""


class RunError(LapdtrError):
    """A run that did not come to its end."""


@dataclass(frozen=True)
class Intervention:
    """What a user does while frames flow.

    Attributes:
        after: number of frames after which it happens.
        node: node whose parameters are set, e.g. ``planner``.
        parameters: the parameters.
    """

    after: int
    node: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Outage:
    """A process that dies without a word (SIGKILL) while frames flow, and starts again.

    Attributes:
        after: number of frames after which it dies.
        process: name of the process, see `ProcessSpec`.
        back_s: seconds until it is started again.
    """

    after: int
    process: str
    back_s: float


@dataclass(frozen=True)
class ProcessSpec:
    """One node in a process of its own.

    Attributes:
        name: unique in the fleet, used for the log file.
        executable: name of the node, a module of `lapdtr_ros.nodes`.
        namespace: ROS namespace of the node.
        parameters: ROS parameters.
    """

    name: str
    executable: str
    namespace: str
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def command(self) -> list[str]:
        """Arguments that start the node with this Python."""
        ros = ['--ros-args', '-r', f'__ns:={self.namespace}']
        for name, value in self.parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            ros += ['-p', f'{name}:={text}']
        return [sys.executable, '-m', f'lapdtr_ros.nodes.{self.executable}', *ros]


@dataclass(frozen=True)
class VerbSpec:
    """A verb of the ``lapdtr`` command in a process of its own; see `ProcessSpec`."""

    name: str
    arguments: tuple[str, ...]

    def command(self) -> list[str]:
        """Arguments that start the verb with this Python."""
        return [sys.executable, '-m', 'lapdtr_ros.cli', *self.arguments]


def device_process(
    scenario: Path, fleet: str, device: str, sinks: int = 0, device_class: str = ''
) -> ProcessSpec:
    """The device node of one device.

    Args:
        scenario: the scenario YAML.
        fleet: namespace of the fleet.
        device: name of the device in the scenario.
        sinks: listeners to results beside the source.
        device_class: hardware class if it is not the one in the scenario.
    """
    given = {'device_class': device_class} if device_class else {}
    return ProcessSpec(
        f'device_{device.replace("/", "_")}',
        'device',
        topics.namespace(fleet, device),
        {**_common(scenario, fleet), 'device': device, 'result_listeners': 1 + sinks, **given},
    )


def source_process(
    scenario: Path, fleet: str, stream: str, frames: int = 0, sinks: int = 0
) -> ProcessSpec:
    """The source node of one stream; ``sinks`` must hear its traces before it starts."""
    return ProcessSpec(
        f'source_{stream.replace("/", "_")}',
        'source',
        topics.namespace(fleet, stream),
        {
            **_common(scenario, fleet),
            'stream': stream,
            'frames': frames,
            'trace_listeners': sinks,
        },
    )


def planner_process(scenario: Path, fleet: str) -> ProcessSpec:
    """The planner node."""
    return ProcessSpec('planner', 'planner', topics.namespace(fleet), _common(scenario, fleet))


def fusion_process(scenario: Path, fleet: str, listeners: int = 0) -> ProcessSpec:
    """The fusion node; ``listeners`` must hear its detections before it takes results."""
    return ProcessSpec(
        'fusion',
        'fusion',
        topics.namespace(fleet),
        {**_common(scenario, fleet), 'listeners': listeners},
    )


def recorder_process(bag: Path, fleet: str) -> ProcessSpec:
    """The recorder node; it writes everything the fleet says into a new rosbag2 directory."""
    parameters = {'bag': str(bag), **({'fleet': fleet} if fleet else {})}
    return ProcessSpec('recorder', 'recorder', topics.namespace(fleet), parameters)


def view_process(fleet: str, port: int, save: Path | None) -> VerbSpec:
    """The live view: a page on ``port``, with its data on the next one, or a file to look at later.

    It is a process of its own, so that drawing never holds up a frame.
    """
    shown = ('--save', str(save)) if save else ('--view', '--port', str(port))
    return VerbSpec('view', ('watch', '--fleet', fleet, *shown))


def carla_bridge_process(cosimulation: Path, fleet: str, **given: str | int) -> ProcessSpec:
    """The CARLA bridge; ``given`` parameters win over the YAML where they are not empty."""
    parameters = {'cosimulation': str(cosimulation), **{k: v for k, v in given.items() if v}}
    if fleet:
        parameters['fleet'] = fleet
    return ProcessSpec('carla_bridge', 'carla_bridge', topics.namespace(fleet), parameters)


def evaluator_process(scenario: Path, fleet: str, out: str = '') -> ProcessSpec:
    """The evaluator node; it writes its figures to ``out`` if that is not empty."""
    parameters = {**_common(scenario, fleet), **({'out': out} if out else {})}
    return ProcessSpec('evaluator', 'evaluator', topics.namespace(fleet), parameters)


def fleet_processes(
    scenario: Scenario, fleet: str = '', frames: int = 0, sinks: int = 0
) -> list[ProcessSpec]:
    """All processes of a scenario: devices, planner, sources and, if described, the fusion.

    Args:
        scenario: the scenario.
        fleet: namespace of the fleet.
        frames: frames per stream; 0 as the scenario says.
        sinks: sinks that must not miss a frame; the fleet waits for them.
    """
    path, devices = scenario.path, tuple(scenario.fleet.devices)
    fusion = [fusion_process(path, fleet, sinks)] if scenario.file.fusion else []
    hearing = sinks + len(fusion)
    return [
        *(device_process(path, fleet, device, hearing) for device in devices),
        planner_process(path, fleet),
        *fusion,
        *(source_process(path, fleet, stream, frames, hearing) for stream in scenario.file.streams),
    ]


def _common(scenario: Path, fleet: str) -> dict[str, str]:
    return {'scenario': str(scenario), 'fleet': fleet} if fleet else {'scenario': str(scenario)}


class ProcessGroup:
    """Runs processes, writes their logs and ends them together.

    Args:
        specs: what to run.
        logs: directory for one log file per process.
        environment: additions to the environment of the processes.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec | VerbSpec],
        logs: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._specs = tuple(specs)
        self._logs = logs
        self._environment = {
            **os.environ,
            'PYTHONUNBUFFERED': '1',
            END_WITH_PARENT: '1',
            **(environment or {}),
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> ProcessGroup:
        self._logs.mkdir(parents=True, exist_ok=True)
        for spec in self._specs:
            self.start(spec)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, spec: ProcessSpec | VerbSpec) -> None:
        """Start one more process; it gets a process group of its own."""
        log = (self._logs / f'{spec.name}.log').open('ab')
        self._files.append(log)
        self._running[spec.name] = subprocess.Popen(
            spec.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )

    def kill(self, name: str) -> None:
        """End a process without a word; until `restart` nobody minds that it is gone.

        Raises:
            UnknownNameError: no such process.
        """
        if name not in self._running:
            raise UnknownNameError('process', name, self._running)
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def restart(self, name: str) -> None:
        """Start a process that was killed; it goes on with its log."""
        self.start(next(spec for spec in self._specs if spec.name == name))

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """The running process of a name."""
        return self._running[name]

    def check(self) -> None:
        """Raise if a process has ended.

        Raises:
            ProcessFailedError: with the end of its log.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                raise ProcessFailedError(
                    f'{name} ended with code {process.returncode}; the end of its log:\n'
                    f'{self._tail(name)}'
                )

    def stop(self, patience_s: float = 15.0) -> dict[str, int]:
        """Interrupt all processes, kill what does not end in time; exit codes by name."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + patience_s
        codes = {}
        for name, process in self._running.items():
            codes[name] = _wait_or_kill(process, deadline)
        for file in self._files:
            file.close()
        self._running, self._files = {}, []
        return codes

    def _tail(self, name: str, lines: int = 15) -> str:
        text = (self._logs / f'{name}.log').read_text(encoding='utf-8', errors='replace')
        return '\n'.join(text.splitlines()[-lines:])


def _wait_or_kill(process: subprocess.Popen[bytes], deadline: float) -> int:
    try:
        return process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()

"""How fast work moves when a battery runs low, and how calm the planner stays when it flickers.

Two vehicles run one camera stream each, in real processes over DDS. The battery of the first falls
below its reserve and recovers, again and again:

* falling moves its stream to the second vehicle, which holds the weights already (warm);
* recovering moves it back to the first one, which saves the radio and has to load them (cold).

The time runs from the telemetry that says so to the first frame that is finished under the new
plan, both as a bystander hears them. Then the gauge flickers around the reserve for a while, and
the plans are counted: one cause, the battery falling below its reserve, explains at most two.
Times are *measured*, the battery is *emulated*. Waiting frames do not count as overload here, so
that a busy machine does not bring plans of its own.

    python benchmarks/redistribution.py [--cycles 20] [--model deit_tiny_patch16_224]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
import yaml
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rich.console import Console
from rich.table import Table

from lapdtr_ros import qos, topics
from lapdtr_ros.bringup import ProcessGroup, fleet_processes
from lapdtr_ros.datasets.noise import write_noise_scene
from lapdtr_ros.msg import DeviceTelemetry, FrameTrace, PartitionPlan
from lapdtr_ros.nodes.operator import Operator
from lapdtr_ros.scenario import Scenario, load_scenario

FIRST, SECOND = 'cav_1', 'cav_2'
STREAMS = {f'{FIRST}/camera0': FIRST, f'{SECOND}/camera0': SECOND}
MOVING = f'{FIRST}/camera0'
RESERVE = 0.2
FULL_SOC, LOW_SOC = 0.9, 0.15
SETTLE_S = 1.0
PATIENCE_S = 60.0


class Watcher(Node):
    """Hears plans, telemetry and finished frames, and when."""

    def __init__(self) -> None:
        super().__init__('watcher')
        self.plans: list[PartitionPlan] = []
        self.outcomes: list[tuple[float, FrameTrace]] = []
        self.readings: list[tuple[float, DeviceTelemetry]] = []
        self.create_subscription(PartitionPlan, topics.plan(''), self.plans.append, qos.plan())
        self.create_subscription(
            FrameTrace,
            topics.frame_traces(''),
            lambda msg: self.outcomes.append((time.monotonic(), msg)),
            qos.traces(),
        )
        self.create_subscription(
            DeviceTelemetry,
            topics.telemetry('', FIRST),
            lambda msg: self.readings.append((time.monotonic(), msg)),
            qos.telemetry(),
        )

    def lost(self) -> int:
        """Frames that were not finished."""
        return sum(msg.outcome != FrameTrace.FINISHED for _, msg in self.outcomes)


class Trial:
    """The running fleet with a hand on its batteries."""

    def __init__(self, group: ProcessGroup) -> None:
        self.watcher = Watcher()
        self._operator = Operator()
        self._operator.connect(f'{FIRST}/device')
        self._operator.connect('planner')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.watcher)
        self._executor.add_node(self._operator)
        self._group = group

    def wait(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Spin until something is the case."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._executor.spin_once(timeout_sec=0.01)
            self._group.check()
            if time.monotonic() > deadline:
                raise SystemExit(f'nothing happened for {timeout_s:g} s')

    def rest(self, seconds: float) -> None:
        """Let the fleet run."""
        until = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > until)

    def ignore_queues(self) -> None:
        """Have the planner react to batteries only."""
        answer = self._operator.set_parameters_of('planner', {'queue_limit': 10**6})
        self.wait(answer.done)

    def set_battery(self, soc: float) -> None:
        """Set the gauge of the first vehicle; does not wait."""
        self._operator.set_parameters_of(f'{FIRST}/device', {'emulated_soc': float(soc)})

    def move(self, soc: float, place: str) -> float:
        """Seconds from the telemetry to the first frame finished where the work belongs now."""
        readings, outcomes = len(self.watcher.readings), len(self.watcher.outcomes)
        low = soc < RESERVE
        self.set_battery(soc)

        def told() -> list[float]:
            return [
                at for at, msg in self.watcher.readings[readings:] if (msg.soc < RESERVE) == low
            ]

        def done() -> list[float]:
            return [
                at
                for at, msg in self.watcher.outcomes[outcomes:]
                if msg.stream == MOVING and [stage.device for stage in msg.stages] == [place]
            ]

        self.wait(lambda: bool(told() and done()))
        return done()[0] - told()[0]


def write_fleet(folder: Path, model: str, rate_hz: float) -> Scenario:
    """Two equal vehicles, one stream each."""
    write_noise_scene(folder / 'scene', frames=8)
    battery = {'class': 'jetson_xavier_nx', 'battery_wh': 500, 'reserve_soc': RESERVE}
    content = {
        'name': 'redistribution',
        'model': {'name': model, 'weights': 'random:0'},
        'devices': {name: {**battery, 'soc': FULL_SOC} for name in (FIRST, SECOND)},
        'links': [{'between': [FIRST, SECOND], 'class': 'wifi6'}],
        'streams': {
            stream: {'source': device, 'dataset': 'scene', 'rate_hz': rate_hz, 'frames': 10**6}
            for stream, device in STREAMS.items()
        },
        'requirements': {'weights': {'energy': 1}},
    }
    path = folder / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content))
    return load_scenario(path)


def run(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """All trials; the figures."""
    scenario = write_fleet(folder, options.model, options.rate)
    processes = fleet_processes(scenario)
    with ProcessGroup(processes, folder / 'logs') as group:
        trial = Trial(group)
        watcher = trial.watcher
        trial.wait(lambda: {msg.stream for _, msg in watcher.outcomes} == set(STREAMS))
        trial.ignore_queues()
        trial.rest(SETTLE_S)
        warm, cold = [], []
        for _ in range(options.cycles):
            warm.append(trial.move(LOW_SOC, SECOND))
            trial.rest(options.dwell)
            cold.append(trial.move(FULL_SOC, FIRST))
            trial.rest(options.dwell)
        moved = len(watcher.plans)
        flicker(trial, options.flicker, options.seed)
        trial.rest(SETTLE_S)
        return {
            'warm_p50_s': float(np.percentile(warm, 50)),
            'warm_p95_s': float(np.percentile(warm, 95)),
            'cold_p50_s': float(np.percentile(cold, 50)),
            'cold_p95_s': float(np.percentile(cold, 95)),
            'moves': len(warm) + len(cold),
            'plans_per_move': (moved - 1) / (len(warm) + len(cold)),
            'plans_per_cause': len(watcher.plans) - moved,
            'frames': len(watcher.outcomes),
            'lost': watcher.lost(),
        }


def flicker(trial: Trial, seconds: float, seed: int) -> None:
    """A gauge that shows the reserve give or take 1 %, five times a second."""
    random = np.random.default_rng(seed)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        trial.set_battery(float(np.clip(random.normal(RESERVE, 0.01), 0.0, 1.0)))
        trial.rest(0.2)


def main() -> None:
    """Run, print a table and the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n', maxsplit=1)[0])
    parser.add_argument('--model', default='deit_tiny_patch16_224')
    parser.add_argument('--rate', type=float, default=10.0, help='frames per second and stream')
    parser.add_argument('--cycles', type=int, default=20, help='times the battery falls')
    parser.add_argument('--dwell', type=float, default=6.0, help='rest between two moves [s]')
    parser.add_argument('--flicker', type=float, default=60.0, help='noisy gauge [s]')
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    rclpy.init()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(options, Path(folder))
    rclpy.try_shutdown()
    table = Table('figure', 'value', title=f'{options.model}, {options.rate:g} frames/s per stream')
    for name, value in figures.items():
        table.add_row(name, f'{value:.3f}' if isinstance(value, float) else str(value))
    Console().print(table)
    print(json.dumps({'model': options.model, 'rate_hz': options.rate, **figures}))


if __name__ == '__main__':
    main()

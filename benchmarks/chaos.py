"""Minutes of mishaps: what becomes of the frames.

A fleet of four devices, a planner and a source streams pictures over DDS. One after the other,
drawn by a seed: a device is killed, or frozen and woken; the planner is killed; a battery falls off
a cliff; a link collapses or swallows everything; a flood of malformed messages comes in. What was
killed is started again. Losses come one at a time: the next one waits until all devices are back,
the newest plan runs and frames are as fast as usual.

The time of a resumption is from the fault until the first frame has come through that was under way
or was sent afterwards; it holds the 1 s lease after which a silent device counts as lost.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from fleet_under_test import CAMERA, DEVICES, STREAM, FleetUnderTest
from fuzz import Fuzzer

from lapdtr_ros.bringup import RunError
from lapdtr_ros.nodes.operator import Operator

PLANNER = 'planner'

# Time that a mishap is left to show, and pause after it.
_PAUSE_S = 1.0
_FROZEN_S = 3.0
_COLLAPSED_S = 2.0
_CHOKED_S = 6.0
_FLOOD = 400

# A frame that took longer still feels an earlier mishap.
_USUAL_LATENCY_S = 0.3
_USUAL_SILENCE_S = 0.5

# Larger ones than usual frames would make DDS keep larger buffers, which is no leak; fuzz.py sends
# them.
_LARGEST = 64_000


@dataclass(frozen=True)
class Resumption:
    """How long a loss took to overcome, seconds after the fault.

    Attributes:
        plan_s: until the new plan was heard.
        frame_s: until the first frame came through that the loss had held up.
    """

    plan_s: float
    frame_s: float


class Chaos:
    """Mishaps that befall a fleet.

    Args:
        fleet: the fleet.
        seed: of their order.
    """

    def __init__(self, fleet: FleetUnderTest, seed: int) -> None:
        self._fleet = fleet
        self._random = random.Random(seed)
        self._operator = Operator()
        fleet.add_node(self._operator)
        for device in DEVICES:
            self._operator.connect(f'{device}/device')
        self._fuzzer = Fuzzer(fleet.node, '', [STREAM], list(DEVICES), seed, _LARGEST)
        self.faults: Counter[str] = Counter()
        self.resumptions: list[Resumption] = []
        self._losses: list[Callable[[], None]] = [self.kill, self.freeze]
        self._others: list[Callable[[], None]] = [
            self.kill_planner,
            self.drop_battery,
            self.collapse_link,
            self.choke_link,
            self.flood,
        ]

    def close(self) -> None:
        """Put down the tools."""
        self._operator.destroy_node()

    def strike(self) -> None:
        """Let the next mishap happen."""
        losses = self._losses if self._all_well() else []
        # Losses are what matters most: they get every second turn that can be theirs.
        others = self._others if self._fleet.planner_is_up() else self._others[1:]
        choices = losses if losses and self._random.random() < 0.5 else others
        mishap = self._random.choice(choices)
        self.faults[mishap.__name__] += 1
        mishap()
        self._fleet.spin(_PAUSE_S)

    def kill(self) -> None:
        """Kill a device without warning and start it again."""
        victim = self._victim()
        self._lose(victim, signal.SIGKILL)
        self._fleet.start(f'device_{victim}')

    def freeze(self) -> None:
        """Stop a device in the middle of what it does, and let it go on later."""
        victim = self._victim()
        self._lose(victim, signal.SIGSTOP)
        self._fleet.spin(_FROZEN_S - _PAUSE_S)
        self._fleet.signal(f'device_{victim}', signal.SIGCONT)

    def kill_planner(self) -> None:
        """Kill the planner and start another one."""
        self._fleet.signal(PLANNER, signal.SIGKILL)
        self._fleet.spin(_PAUSE_S)
        self._fleet.start(PLANNER)

    def drop_battery(self) -> None:
        """A battery is suddenly almost empty, or full again."""
        device = self._random.choice(DEVICES)
        soc = self._random.choice([0.05, 0.3, 1.0])
        self._operator.set_parameters_of(f'{device}/device', {'emulated_soc': soc})

    def collapse_link(self) -> None:
        """What a device sends crawls for a while."""
        device = self._random.choice(DEVICES)
        node = f'{device}/device'
        self._operator.set_parameters_of(node, {'link_bytes_per_s': 50_000.0})
        self._fleet.spin(_COLLAPSED_S)
        self._operator.set_parameters_of(node, {'link_bytes_per_s': 0.0})

    def choke_link(self) -> None:
        """One link swallows everything for a while; both its ends and all others are well."""
        ways = list(pairwise(self._fleet.plan.devices(STREAM)))
        sender, receiver = self._random.choice(ways)
        node = f'{sender}/device'
        dead = {'link_target': receiver, 'link_bytes_per_s': 1e-3}
        self._operator.set_parameters_of(node, dead)
        self._fleet.spin(_CHOKED_S)
        whole = {'link_target': '', 'link_bytes_per_s': 0.0}
        self._operator.set_parameters_of(node, whole)

    def flood(self) -> None:
        """Malformed messages of every type."""
        for _ in range(_FLOOD // 16):
            self._fuzzer.send(16)
            self._fleet.spin(0.002)

    def _victim(self) -> str:
        """A device that frames pass; without its camera's device a stream ends."""
        return self._random.choice([d for d in self._fleet.plan.devices(STREAM) if d != CAMERA])

    def _all_well(self) -> bool:
        """Whether a planner leads, all devices are ready for its plan, and nothing is held up."""
        epoch = self._fleet.plan.epoch
        recent = [self._fleet.heard_ago_s(device) < 1.0 for device in DEVICES]
        ready = [epoch in self._fleet.telemetry[device].ready_epochs for device in DEVICES]
        newest = max(self._fleet.traces)
        silent_s = time.monotonic() - self._fleet.ended_s[newest]
        usual = self._fleet.traces[newest].latency_s < _USUAL_LATENCY_S
        flows = usual and silent_s < _USUAL_SILENCE_S
        return self._fleet.planner_is_up() and all(recent) and all(ready) and flows

    def _lose(self, victim: str, how: signal.Signals) -> None:
        """Strike a device and see how long its frames are held up."""
        fleet = self._fleet
        epoch = fleet.plan.epoch
        seen = max(fleet.traces)
        began = time.monotonic()
        fleet.signal(f'device_{victim}', how)

        def came_through() -> bool:
            return any(
                trace.epoch > epoch
                for seq, trace in fleet.traces.items()
                if seq > seen - 64 and fleet.ended_s[seq] > began
            )

        try:
            fleet.wait(came_through, 30.0)
        except RunError:
            print(f'{victim}: nothing came through for 30 s', flush=True)
        frames = [
            fleet.ended_s[seq]
            for seq, trace in fleet.traces.items()
            if trace.epoch > epoch and fleet.ended_s[seq] > began
        ]
        plans = [heard for heard, plan in fleet.plans if plan.epoch > epoch and heard > began]
        end = time.monotonic()
        entry = Resumption(min(plans, default=end) - began, min(frames, default=end) - began)
        self.resumptions.append(entry)
        print(
            f'{victim} lost ({how.name}): plan after {entry.plan_s:.2f} s, '
            f'frame after {entry.frame_s:.2f} s',
            flush=True,
        )


def measure(
    minutes: float, rate_hz: float, seed: int, model: str, folder: Path
) -> dict[str, object]:
    """Let mishaps happen for some minutes and judge how the fleet came through."""
    with FleetUnderTest(folder, rate_hz, model) as fleet:
        fleet.wait_until_running()
        chaos = Chaos(fleet, seed)
        until = time.monotonic() + 60.0 * minutes
        while time.monotonic() < until:
            chaos.strike()
            told = ', '.join(f'{name} {count}' for name, count in sorted(chaos.faults.items()))
            print(f'{fleet.finished} frames; {told}', flush=True)
            fleet.note_memory()
        report = fleet.finish()
        chaos.close()
    memory = fleet.memory_growth()
    return {
        'faults': sum(chaos.faults.values()),
        'per_kind': dict(sorted(chaos.faults.items())),
        **report,
        **_percentiles(chaos.resumptions),
        'memory_growth': max(memory.values()),
        'memory_growth_per_process': memory,
        'minutes': minutes,
        'model': model,
        'seed': seed,
        'level': 'measured',
    }


def _percentiles(resumptions: list[Resumption]) -> dict[str, object]:
    frames = [entry.frame_s for entry in resumptions]
    plans = [entry.plan_s for entry in resumptions]
    if not frames:
        return {'losses': 0}
    return {
        'losses': len(frames),
        'plan_p50_s': round(statistics.median(plans), 3),
        'plan_p95_s': round(float(np.percentile(plans, 95)), 3),
        'resume_p50_s': round(statistics.median(frames), 3),
        'resume_p95_s': round(float(np.percentile(frames, 95)), 3),
    }


def main() -> None:
    """Measure and print one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=5.0)
    parser.add_argument('--rate', type=float, default=10.0, help='frames per second')
    parser.add_argument('--model', default='test_vit')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--keep', type=Path, help='folder for logs; default: a temporary one')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(options.minutes, options.rate, options.seed, options.model, folder)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()

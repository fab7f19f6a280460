"""How long a fleet lives on its batteries, with LAP-DTR and with what one would do otherwise.

1. *Simulated*: the fleet of ``config/scenarios/endurance.yaml`` until its first battery is empty.
   Devices report their batteries, the planner's own monitor and rules decide (objective
   ``lifetime``), the cost model says what that drains. Against it: the energy-optimal plan of the
   first minute kept for ever (static), the same with the plan that is best for lifetime (static
   lifetime), the planner's default objective (cost), the paper's redistribution rule as printed
   (literal) and corrected, and every camera's whole model on its own vehicle (centralized).
2. *Simulated*: LAP-DTR against static on random convoys, for the spread.
3. *Emulated*: a short run of the same scenario in real processes over DDS, in slow motion; what its
   devices drain and what a frame takes is compared with the simulation of the same plans.

The last line is one JSON object::

    lifetime_vs_static      minutes alive, LAP-DTR over static (goal 1.3)
    limit_violations        frames of LAP-DTR under a plan that broke a limit, or not delivered
    strategies              minutes alive, frames, joules per frame ... of each
    random_...              median, smallest and largest ratio on random convoys; idle: no plan
                            can do better than a fleet that does no work at all
    live_power_ratio        emulated over simulated battery drain, the device that is furthest off
    live_frame_energy_ratio emulated over simulated joules per frame above idle

    python benchmarks/lifetime.py [--fleets 8] [--seed 0] [--live-frames 30] [--time-scale 0.1]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml

from lapdtr_ros.datasets.noise import write_noise_scene
from lapdtr_ros.evaluation.endurance import (
    Endurance,
    Fixed,
    Replanned,
    Strategy,
    as_task,
    simulate,
)
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.planning.classes import (
    device_from_class,
    link_from_class,
    load_device_class,
    load_link_class,
)
from lapdtr_ros.planning.cost import InfeasiblePlanError, PlanCost, evaluate
from lapdtr_ros.planning.fleet import Fleet, Requirements
from lapdtr_ros.planning.lifetime import plan_for_lifetime
from lapdtr_ros.planning.plan import Plan, Stage
from lapdtr_ros.planning.redistribution import DTR_CORRECTED, DTR_LITERAL, LIFETIME, Task
from lapdtr_ros.planning.streams import StreamRequest, plan_streams
from lapdtr_ros.scenario import Scenario, load_scenario

SCENARIO = Path(__file__).parents[1] / 'config' / 'scenarios' / 'endurance.yaml'
STEP_S = 5.0
RANDOM_STEP_S = 20.0
BOARDS = ('jetson_nano', 'jetson_tx2', 'jetson_xavier_nx', 'jetson_orin_nano', 'raspberry_pi_5')
PACK_J = 40 * 3600.0


def task_of(scenario: Scenario) -> Task:
    """What has to be planned in a scenario."""
    requests = {
        name: StreamRequest(section.source, scenario.sink(name), section.rate_hz)
        for name, section in scenario.file.streams.items()
    }
    model = scenario.file.model
    return Task(profile_model(model.name), requests, scenario.requirements, model.weights)


def static_plans(fleet: Fleet, task: Task) -> dict[str, Plan]:
    """The energy-optimal plans under all limits."""
    decisions = plan_streams(
        task.profile, fleet, task.requirements, task.requests, weights=task.weights
    )
    return {name: decision.plan for name, decision in decisions.items()}


def strategies(fleet: Fleet, task: Task) -> dict[str, Strategy]:
    """Who decides, by name."""
    whole = len(task.profile)
    centralized = {
        name: Plan(name, task.profile.model, r.source, r.sink, (Stage(r.source, 0, whole),))
        for name, r in task.requests.items()
    }
    longest = plan_for_lifetime(
        task.profile, fleet, task.requirements, task.requests, model_weights=task.weights
    )

    def replanned(objective: str) -> Replanned:
        return Replanned(fleet, as_task(task, objective), STEP_S)

    return {
        'lapdtr': replanned(LIFETIME),
        'lapdtr_cost': replanned(task.objective),
        'static': Fixed(static_plans(fleet, task)),
        'static_lifetime': Fixed(longest.plans),
        'literal': replanned(DTR_LITERAL),
        'corrected': replanned(DTR_CORRECTED),
        'centralized': Fixed(centralized),
    }


def compare(fleet: Fleet, task: Task) -> dict[str, Endurance]:
    """Run every strategy on the same fleet and print a table."""
    columns = ('alive', 'frames', 'missed', 'broken', 'mJ/frame', 'with idle', 'plans')
    widths = (9, 8, 7, 7, 9, 9, 5)
    titles = ' '.join(f'{title:>{width}}' for title, width in zip(columns, widths, strict=True))
    print(f'{"":16} {titles}  first empty')
    lived = {}
    for name, strategy in strategies(fleet, task).items():
        run = lived[name] = simulate(fleet, task, strategy, step_s=STEP_S)
        print(
            f'{name:16} {run.alive_s / 60:5.1f} min {run.frames:8.0f} {run.missed:7.0f} '
            f'{run.violations:7.0f} {run.frame_j * 1e3:9.0f} {run.total_j * 1e3:9.0f} '
            f'{run.plans:5}  {run.first_empty}',
            flush=True,
        )
    return lived


def random_convoy(seed: int, template: Task) -> tuple[Fleet, Task]:
    """Four vehicles with random boards and charges; two of them have cameras."""
    dice = random.Random(seed)
    names = [f'cav_{number}' for number in range(1, 5)]
    devices = {
        name: device_from_class(
            load_device_class(dice.choice(BOARDS)),
            name,
            battery_j=PACK_J,
            soc=round(dice.uniform(0.4, 1.0), 2),
            reserve_soc=0.2,
        )
        for name in names
    }
    radio = load_link_class('wifi6')
    links = {ends: link_from_class(radio, *ends) for ends in permutations(names, 2)}
    requests = {
        f'{name}/camera0': StreamRequest(name, name, dice.choice((2.0, 5.0))) for name in names[:2]
    }
    requirements = Requirements(max_latency_s=1.0)
    return Fleet(devices, links), Task(template.profile, requests, requirements, template.weights)


def random_ratios(count: int, seed: int, template: Task) -> tuple[list[float], list[float]]:
    """LAP-DTR against static on random convoys that have a plan at all.

    Returns:
        Minutes alive over those of static, of LAP-DTR and of a fleet that does nothing: idle power
        alone empties batteries, and no plan lives longer than that.
    """
    ratios: list[float] = []
    bounds: list[float] = []
    number = seed
    while len(ratios) < count:
        fleet, task = random_convoy(number, template)
        number += 1
        try:
            static = Fixed(static_plans(fleet, task))
        except InfeasiblePlanError:
            continue
        ours = Replanned(fleet, as_task(task, LIFETIME), RANDOM_STEP_S)
        ours_s, static_s, idle_s = (
            simulate(fleet, task, strategy, step_s=RANDOM_STEP_S).alive_s
            for strategy in (ours, static, Fixed({}))
        )
        ratios.append(ours_s / static_s)
        bounds.append(idle_s / static_s)
        minutes = f'{ours_s / 60:.0f} min, static {static_s / 60:.0f}, idle {idle_s / 60:.0f}'
        print(f'random convoy {number - 1}: {minutes}, ratio {ratios[-1]:.2f}', flush=True)
    return ratios, bounds


def live(frames: int, time_scale: float) -> dict[str, Any]:
    """Run the scenario in real processes and compare its drain with the simulation's.

    Args:
        frames: frames per stream.
        time_scale: seconds of the fleet per second of this machine.
    """
    # Needs ROS; the simulation does not.
    from lapdtr_ros.commands.run import run_scenario

    folder = Path(tempfile.mkdtemp(prefix='lifetime_'))
    try:
        write_noise_scene(folder / 'scene', frames=4)
        content = yaml.safe_load(SCENARIO.read_text(encoding='utf-8'))
        content['execution'] |= {'emulate': True, 'time_scale': time_scale}
        (folder / SCENARIO.name).write_text(yaml.safe_dump(content), encoding='utf-8')
        scenario = load_scenario(folder / SCENARIO.name)
        record = run_scenario(scenario, folder / 'run', frames=frames)
    finally:
        shutil.rmtree(folder)
    # A result that came twice has no stages.
    done = [frame for frame in record.frames if frame.outcome == 'finished' and frame.stages]
    epoch = max(plan.epoch for plan in record.plans)
    steady = [frame for frame in done if frame.epoch == epoch]
    plans = {
        stream.stream: Plan(
            stream.stream,
            record.model,
            stream.source,
            stream.sink,
            tuple(Stage(span.device, span.start, span.stop) for span in stream.stages),
            stream.picture,
        )
        for plan in record.plans
        if plan.epoch == epoch
        for stream in plan.streams
    }
    task = task_of(scenario)
    costs = {
        name: evaluate(plan, task.profile, scenario.fleet, task.requirements)
        for name, plan in plans.items()
    }
    begin, end = min(f.sent_s for f in steady), max(f.sent_s for f in steady)
    ratios = _power_ratios(scenario, task, costs, record.telemetry, begin, end)
    simulated_j = statistics.mean(costs[frame.stream].energy_j for frame in steady)
    ratio = statistics.mean(frame.energy_j for frame in steady) / simulated_j
    slow = max((t.time_ratio for t in record.telemetry if t.time_ratio == t.time_ratio), default=0)
    print(
        f'emulated run: {len(done)} frames, drain over simulated {ratios}, joules per frame over '
        f'simulated {ratio:.3f}, slowest device takes {slow:.2f} of the time of its class'
    )
    return {
        'live_power_ratio': round(max(ratios.values(), key=lambda r: abs(r - 1.0)), 3),
        'live_frame_energy_ratio': round(ratio, 3),
        'live_frames': len(done),
        'live_lost': sum(frame.outcome != 'finished' for frame in record.frames),
        'live_slowest_device': round(slow, 3),
        'live_time_scale': time_scale,
    }


def _power_ratios(
    scenario: Scenario,
    task: Task,
    costs: Mapping[str, PlanCost],
    telemetry: Any,
    begin: float,
    end: float,
) -> dict[str, float]:
    """Emulated over simulated power of every device while frames flowed."""
    ratios = {}
    for name, device in scenario.fleet.devices.items():
        readings = [t for t in telemetry if t.device == name and begin <= t.time_s <= end]
        span = readings[-1].time_s - readings[0].time_s
        emulated = (readings[-1].energy_j - readings[0].energy_j) / span
        simulated = device.idle_w + sum(
            task.requests[stream].rate_hz * cost.devices[name].energy_j
            for stream, cost in costs.items()
            if name in cost.devices
        )
        ratios[name] = round(emulated / simulated, 3)
    return ratios


def main() -> int:
    """Run all parts and print the JSON object; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--fleets', type=int, default=8, help='random convoys')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--live-frames', type=int, default=30, help='per stream; 0: no live run')
    parser.add_argument('--time-scale', type=float, default=0.1, help='of the live run')
    options = parser.parse_args()

    scenario = load_scenario(SCENARIO)
    task = task_of(scenario)
    lived = compare(scenario.fleet, task)
    ours, static = lived['lapdtr'], lived['static']
    result: dict[str, Any] = {
        'level': 'simulated',
        'lifetime_vs_static': round(ours.alive_s / static.alive_s, 3),
        'frames_vs_static': round(ours.frames / static.frames, 3),
        'limit_violations': round(ours.violations + ours.missed),
        'strategies': {name: _rounded(run) for name, run in lived.items()},
    }
    if options.fleets:
        ratios, bounds = random_ratios(options.fleets, options.seed, task)
        result |= {
            'random_fleets': len(ratios),
            'random_median': round(statistics.median(ratios), 3),
            'random_min': round(min(ratios), 3),
            'random_max': round(max(ratios), 3),
            'random_idle_median': round(statistics.median(bounds), 3),
        }
    if options.live_frames:
        result |= live(options.live_frames, options.time_scale)
    print(json.dumps(result))
    return int(result['lifetime_vs_static'] < 1.3 or result['limit_violations'] > 0)


def _rounded(run: Endurance) -> dict[str, Any]:
    figures = asdict(run)
    soc = {name: round(share, 3) for name, share in figures.pop('soc').items()}
    minutes = round(figures.pop('alive_s') / 60.0, 2)
    numbers = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    return {'minutes_alive': minutes, **numbers, 'soc': soc}


if __name__ == '__main__':
    sys.exit(main())

"""How well the accuracy table predicts plans that it was not fitted on.

Random plans combine levels and packed cuts in ways that nobody measured before. Each is predicted
from the table and then run as devices would run it, in one process without ROS:

* accuracy: AP50 over the moments of a data set, against the undisturbed model on the same moments.
  What is compared is the loss, in points, so that other scenes than those of the calibration may
  be used;
* bytes: of the packed features of all cuts;
* time: of all stages on this machine, with unit times taken here in the same minutes;
* energy: of emulated devices, from either time and either bytes.

Plans that are predicted to lose over ``--most-points`` are left out: nobody would run them.

    python benchmarks/profiles.py --table config/models/NAME.yaml --dataset OPV2V/validate
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lapdtr_ros.calibration.frames import ValidationFrames, load_moments
from lapdtr_ros.calibration.trials import Trial, TrialRunner
from lapdtr_ros.execution.frames import RAW, Packet
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.models.profiling import measure_unit_times
from lapdtr_ros.models.weights import load_units
from lapdtr_ros.planning.accuracy import AccuracyTable, AccuracyTableError, load_table
from lapdtr_ros.planning.cost import PlanCost, evaluate
from lapdtr_ros.planning.fleet import Device, Fleet, Link, Requirements
from lapdtr_ros.planning.plan import LOSSLESS, CutSetting, Plan, Stage, describe_cut
from lapdtr_ros.planning.profile import ModelProfile

HOST = 'host'
MOST_STAGES = 3
# An emulated device and radio: only the ratio of watts to joules per byte matters for the error.
ACTIVE_W = 10.0
LINK = {'bytes_per_s': 50e6, 'latency_s': 2e-3, 'tx_j_per_byte': 1.2e-7, 'rx_j_per_byte': 6.4e-8}


@dataclass(frozen=True)
class Comparison:
    """One plan, predicted and measured.

    Attributes:
        plan: the plan.
        lost: points of AP50 that it loses, predicted and measured.
        bytes: of all cuts, predicted and measured.
        seconds: of all stages, predicted and measured.
        energy_j: predicted and, from measured seconds and bytes, emulated.
    """

    plan: Plan
    lost: tuple[float, float]
    bytes: tuple[int, int]
    seconds: tuple[float, float]
    energy_j: tuple[float, float]


def draw_plans(
    profile: ModelProfile, count: int, most_lost: float, generator: np.random.Generator
) -> list[Plan]:
    """Different random plans with at least one loss and at most ``most_lost`` predicted."""
    fleet, plans = host_fleet(profile, 1.0), {}
    while len(plans) < count:
        plan = _draw(profile, generator)
        try:
            cost = evaluate(plan, profile, fleet, Requirements())
        except AccuracyTableError:
            continue  # passes kept tokens on with bits that were not calibrated for so many
        if cost.error > 0.0 and cost.accuracy_lost <= most_lost:
            plans[plan] = None
    return list(plans)


def _draw(profile: ModelProfile, generator: np.random.Generator) -> Plan:
    table, units = profile.accuracy, len(profile)
    by_cut: dict[int, list[CutSetting]] = {}
    for effect in table.cuts:
        by_cut.setdefault(effect.cut, [LOSSLESS]).append(effect.setting)
    stages = int(generator.integers(1, MOST_STAGES + 1))
    cuts = sorted(generator.choice(sorted(by_cut), stages - 1, replace=False).tolist())
    levels = (0, *sorted(table.level_effects))
    kept, parts = 0, []
    edges = (0, *cuts, units)
    for number, (start, stop) in enumerate(pairwise(edges)):
        setting = LOSSLESS
        if stop < units:
            # Tokens are only ever chosen from more than are kept.
            fits = [s for s in by_cut[stop] if not (kept and s.keep) or s.keep < kept]
            setting = fits[generator.integers(len(fits))]
            kept = setting.keep or kept
        level = levels[generator.integers(len(levels))]
        parts.append(Stage(f'{HOST}_{number}', start, stop, int(level), setting))
    return Plan('s', profile.model, parts[0].device, parts[-1].device, tuple(parts))


def host_fleet(profile: ModelProfile, seconds: float) -> Fleet:
    """As many of this machine as a plan has stages; it takes ``seconds`` for the whole model."""
    names = [f'{HOST}_{number}' for number in range(MOST_STAGES)]
    devices = {
        name: Device(name, HOST, profile.flops / seconds, float('inf'), 0.0, ACTIVE_W)
        for name in names
    }
    return Fleet(devices, {(a, b): Link(a, b, **LINK) for a in names for b in names if a != b})


class HostTimer:
    """Least time of units and of plans on this machine, measured in turns so that load cancels."""

    def __init__(self, table: AccuracyTable, weights: str, picture: np.ndarray) -> None:
        units = table.units
        self._stage = load_units(table.model, 0, units, weights)
        self._picture = Packet.of_array(picture, RAW)
        full = StageRunner(table.model, weights, 0, units, calibration=table.calibration)
        levels = sorted(table.level_effects)
        self._runners = {0: full} | {level: full.with_level(level) for level in levels}

    def measure(self, plans: Sequence[Plan], rounds: int) -> tuple[tuple[float, ...], list[float]]:
        """Seconds of each unit, and of all stages of each plan."""
        unit_rows, plan_rows = [], []
        for _ in tqdm(range(rounds), desc='times', leave=False):
            unit_rows.append(measure_unit_times(self._stage, repeats=1, warmup=1))
            plan_rows.append([self._seconds(plan) for plan in plans])
        return tuple(np.min(unit_rows, axis=0).tolist()), np.min(plan_rows, axis=0).tolist()

    def _seconds(self, plan: Plan) -> float:
        packet, begin = self._picture, time.perf_counter()
        for stage in plan.stages:
            runner = self._runners[stage.level]
            packet = runner.run_packet(packet, stage.start, stage.stop, stage.cut)
        return time.perf_counter() - begin


def measure_accuracy(
    runner: TrialRunner, validation: ValidationFrames, plans: Sequence[Plan]
) -> tuple[list[float], list[int]]:
    """AP50 of the undisturbed model and of each plan; mean bytes of the cuts of each plan."""
    units = plans[0].units
    trials = [Trial((Stage(HOST, 0, units),)), *(Trial(plan.stages) for plan in plans)]
    found: list[list[list]] = [[] for _ in trials]
    sizes = []
    for moment in tqdm(validation.moments, desc='accuracies', leave=False):
        outcomes = [runner.run(view.picture, trials) for view in moment.views]
        for place in range(len(trials)):
            found[place].append(
                [
                    validation.boxes(of_view[place].values, view)
                    for of_view, view in zip(outcomes, moment.views, strict=True)
                ]
            )
        sizes += [[sum(outcome.cut_bytes) for outcome in of_view] for of_view in outcomes]
    accuracies = [validation.accuracy(boxes).ap50 for boxes in found]
    return accuracies, np.mean(sizes, axis=0)[1:].round().astype(int).tolist()


def compare(options: argparse.Namespace) -> list[Comparison]:
    """Draw plans, predict and measure them."""
    table = load_table(options.table)
    weights = options.weights or table.weights
    profile = replace(profile_model(table.model), accuracy=table)
    generator = np.random.default_rng(options.seed)
    plans = draw_plans(profile, options.plans, options.most_points / 100.0, generator)
    moments = load_moments(
        options.dataset,
        table.model,
        options.frames,
        options.seed,
        lambda items, title: tqdm(list(items), desc=title, leave=False),
    )
    levels = sorted(table.level_effects)
    runner = TrialRunner(table.model, weights, table.calibration, levels, options.threads)
    validation = ValidationFrames(table.model, moments, options.dataset.name)
    accuracies, sizes = measure_accuracy(runner, validation, plans)
    torch.set_num_threads(1)
    timer = HostTimer(table, weights, moments[0].views[0].picture)
    unit_times, seconds = timer.measure(plans, options.rounds)
    profile = replace(profile, measured_s={HOST: unit_times})
    fleet = host_fleet(profile, sum(unit_times))
    return [
        _comparison(
            plan,
            evaluate(plan, profile, fleet, Requirements()),
            (accuracies[0] - accuracy) * 100.0,
            size,
            taken,
        )
        for plan, accuracy, size, taken in zip(plans, accuracies[1:], sizes, seconds, strict=True)
    ]


def _comparison(plan: Plan, cost: PlanCost, lost: float, size: int, seconds: float) -> Comparison:
    radio = LINK['tx_j_per_byte'] + LINK['rx_j_per_byte']
    predicted_s = sum(share.busy_s for share in cost.devices.values())
    return Comparison(
        plan,
        (cost.accuracy_lost * 100.0, lost),
        (sum(hop.bytes for hop in cost.hops), size),
        (predicted_s, seconds),
        (cost.energy_j, ACTIVE_W * seconds + radio * size),
    )


def relative_errors(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """|predicted - measured| / measured, of pairs where anything was measured."""
    return [abs(predicted - measured) / measured for predicted, measured in pairs if measured]


def show(comparisons: Sequence[Comparison]) -> None:
    """Print all plans."""
    table = Table(title='predicted / measured')
    for heading in ('stages', 'AP50 points lost', 'kB', 'ms'):
        table.add_column(heading, overflow='fold')
    for c in comparisons:
        stages = ' | '.join(
            f'{s.start}-{s.stop - 1} l{s.level} {describe_cut(s.cut)}' for s in c.plan.stages
        )
        table.add_row(
            stages,
            f'{c.lost[0]:.2f} / {c.lost[1]:.2f}',
            f'{c.bytes[0] / 1e3:.1f} / {c.bytes[1] / 1e3:.1f}',
            f'{c.seconds[0] * 1e3:.0f} / {c.seconds[1] * 1e3:.0f}',
        )
    Console().print(table)


def summarise(comparisons: Sequence[Comparison], options: argparse.Namespace) -> dict[str, object]:
    """Figures for the last line."""
    points = [abs(c.lost[0] - c.lost[1]) for c in comparisons]
    margin = load_table(options.table).margin * 100.0
    return {
        'level': 'accuracy, bytes and time measured; energy emulated from time and bytes',
        'plans': len(comparisons),
        'frames': options.frames,
        'dataset': options.dataset.name,
        'median_error_ap50': round(statistics.median(points), 3),
        'worst_error_ap50': round(max(points), 3),
        'margin_ap50': round(margin, 3),
        'within_margin': round(sum(p <= margin for p in points) / len(points), 3),
        'median_error_bytes': _median(relative_errors([c.bytes for c in comparisons])),
        'median_error_time': _median(relative_errors([c.seconds for c in comparisons])),
        'median_error_energy': _median(relative_errors([c.energy_j for c in comparisons])),
    }


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 4)


def main() -> None:
    """Compare, print a table and the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--table', type=Path, required=True, help='accuracy table, YAML')
    parser.add_argument('--weights', help='instead of those named in the table')
    parser.add_argument('--dataset', type=Path, required=True, help='OPV2V directory')
    parser.add_argument('--frames', type=int, default=12, help='moments to measure accuracy on')
    parser.add_argument('--plans', type=int, default=24)
    parser.add_argument('--most-points', type=float, default=5.0, help='largest predicted loss')
    parser.add_argument('--rounds', type=int, default=5, help='of the timing')
    parser.add_argument('--threads', type=int, default=2, help='for the accuracy; timing uses 1')
    parser.add_argument('--seed', type=int, default=101, help='of plans and moments')
    options = parser.parse_args()
    comparisons = compare(options)
    show(comparisons)
    print(json.dumps(summarise(comparisons, options)))


if __name__ == '__main__':
    main()

r"""What LAP-DTR saves: joules per frame and latency of one stream of a fleet, and what it costs.

Four ways to run the stream are compared:

* centralized: the whole model on the vehicle that takes the picture;
* best device: the whole model on the one device that scores best;
* lossless split: the best plan that loses no accuracy;
* lap_dtr: levels, cut settings and stages chosen together, losing at most ``--most-points``.

Plans cost what the cost model says of the device classes (*modelled*). With ``--live`` each also
runs through real nodes over DDS on emulated devices (*emulated*). Points lost are *measured*: AP50
of the plan against the undisturbed model, over the moments of ``--dataset``.

The comparison is made twice: under the scenario's own requirements, and with pictures that may
leave the vehicle, so that it may be cheaper to send the picture than features.

    tools/run python benchmarks/savings.py config/scenarios/demo.yaml \
        --table config/models/NAME.yaml --dataset OPV2V/test [--live 20]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lapdtr_ros.calibration.frames import ValidationFrames, load_moments
from lapdtr_ros.calibration.trials import Trial, TrialRunner
from lapdtr_ros.evaluation.summary import summarise
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.planning.accuracy import AccuracyTable, load_table
from lapdtr_ros.planning.cost import PlanCost, evaluate, reference, score, violations
from lapdtr_ros.planning.fleet import Fleet, Requirements, Weights
from lapdtr_ros.planning.plan import JPEG, Plan, Stage, describe_plan
from lapdtr_ros.planning.profile import ModelProfile
from lapdtr_ros.planning.solvers import solve
from lapdtr_ros.scenario import Scenario, load_scenario

CENTRALIZED, BEST_DEVICE, LOSSLESS, LAP_DTR = (
    'centralized',
    'best device',
    'lossless split',
    'lap_dtr',
)
# Pictures and devices that a forced plan must not use.
NO_MEMORY_MB = 1e-3
# What the paper reports at best (Table 2), in percent and points.
PAPER = {'energy_saved': 0.169, 'latency_saved': 0.324, 'points_lost': 1.7}

Ways = dict[str, tuple[Plan, PlanCost]]


def plan_ways(
    profile: ModelProfile, fleet: Fleet, requirements: Requirements, ends: Mapping[str, str]
) -> Ways:
    """The four plans with their modelled costs; ``requirements`` allow the loss."""
    lossless = replace(requirements, min_accuracy=None)
    plans = {
        CENTRALIZED: whole_on(profile, ends, ends['source']),
        BEST_DEVICE: best_device(profile, fleet, lossless, ends),
        LOSSLESS: solve(profile, fleet, lossless, **ends).plan,
        LAP_DTR: solve(profile, fleet, requirements, **ends).plan,
    }
    return {
        name: (plan, evaluate(plan, profile, fleet, requirements)) for name, plan in plans.items()
    }


def whole_on(profile: ModelProfile, ends: Mapping[str, str], device: str) -> Plan:
    """The whole model on one device; the picture travels as it is."""
    return Plan(
        ends['stream'],
        profile.model,
        ends['source'],
        ends['sink'],
        (Stage(device, 0, len(profile)),),
    )


def best_device(
    profile: ModelProfile, fleet: Fleet, requirements: Requirements, ends: Mapping[str, str]
) -> Plan:
    """The legal one-device plan of least score."""
    yardstick = reference(profile, fleet, requirements, ends['source'])
    best: tuple[float, Plan] | None = None
    for device in fleet.devices:
        if device != ends['source'] and (ends['source'], device) not in fleet.links:
            continue
        plan = whole_on(profile, ends, device)
        cost = evaluate(plan, profile, fleet, requirements)
        value = score(cost, requirements, yardstick)
        legal = not violations(plan, cost, fleet, requirements)
        if legal and (best is None or value < best[0]):
            best = value, plan
    if best is None:
        raise SystemExit('no device of the fleet may run the whole model alone')
    return best[1]


def points_lost(
    table: AccuracyTable, plans: list[Plan], options: argparse.Namespace
) -> list[float]:
    """AP50 points that each plan loses over the moments of the data set."""
    moments = load_moments(
        options.dataset,
        table.model,
        options.frames,
        options.seed,
        lambda items, title: tqdm(list(items), desc=title, leave=False),
    )
    levels = sorted(table.level_effects)
    weights = options.weights or table.weights
    runner = TrialRunner(table.model, weights, table.calibration, levels, options.threads)
    validation = ValidationFrames(table.model, moments, options.dataset.name)
    trials = [Trial((Stage('whole', 0, table.units),))]
    trials += [Trial(p.stages, options.quality if p.picture == JPEG else 0) for p in plans]
    found: list[list[list]] = [[] for _ in trials]
    for moment in tqdm(validation.moments, desc='accuracies', leave=False):
        outcomes = [runner.run(view.picture, trials) for view in moment.views]
        for place in range(len(trials)):
            found[place].append(
                [
                    validation.boxes(of_view[place].values, view)
                    for of_view, view in zip(outcomes, moment.views, strict=True)
                ]
            )
    undisturbed, *rest = [validation.accuracy(boxes).ap50 for boxes in found]
    return [(undisturbed - accuracy) * 100.0 for accuracy in rest]


def emulate(
    scenario: Scenario,
    name: str,
    plan: Plan,
    requirements: Requirements,
    options: argparse.Namespace,
) -> tuple[float, float]:
    """Joules and seconds per frame of a plan through real nodes on emulated devices.

    Raises:
        SystemExit: the planner chose another plan than the one to measure.
    """
    from lapdtr_ros.commands.run import run_scenario

    stays = 'stay' if requirements.pictures_stay else 'free'
    path = options.out / f'pictures_{stays}' / name.replace(' ', '_') / 'scenario.yaml'
    path.parent.mkdir(parents=True, exist_ok=True)
    content = forced(scenario, name, plan, requirements, options)
    path.write_text(yaml.safe_dump(content), encoding='utf-8')
    record = run_scenario(load_scenario(path), path.parent, frames=options.live)
    ran = [(s.device, s.start, s.stop) for s in record.plans[-1].streams[0].stages]
    if ran != [(s.device, s.start, s.stop) for s in plan.stages]:
        raise SystemExit(f'{name}: ran as {ran}, should be {describe_plan(plan)}')
    summary = summarise(record)
    energy, latency = summary.energy_mj.value, summary.latency_p50_ms.value
    if energy is None or latency is None:
        raise SystemExit(f'{name}: no frame with known energy and latency came through')
    return energy * 1e-3, latency * 1e-3


def forced(
    scenario: Scenario,
    name: str,
    plan: Plan,
    requirements: Requirements,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """A scenario of one stream whose best plan is ``plan``."""
    content = yaml.safe_load(scenario.path.read_text(encoding='utf-8'))
    content.pop('fusion', None)
    stream = content['streams'][plan.stream]
    stream['dataset'] = str(scenario.dataset(plan.stream))
    content['streams'] = {plan.stream: stream}
    content.setdefault('execution', {}).update(emulate=True, max_in_flight=1)
    asked = content.setdefault('requirements', {})
    weights = requirements.weights
    asked['weights'] = {'energy': weights.energy, 'latency': weights.latency}
    asked['pictures_stay'] = requirements.pictures_stay
    if name == LAP_DTR:
        content['model']['profile'] = str(options.table.resolve())
        content['execution']['jpeg_quality'] = options.quality
        asked['min_accuracy'] = requirements.min_accuracy
        asked['allow_jpeg'] = requirements.jpeg_bytes is not None
    else:
        asked.pop('min_accuracy', None)
        asked.pop('allow_jpeg', None)
    if name in (CENTRALIZED, BEST_DEVICE):
        wanted = {plan.source, plan.sink, plan.stages[0].device}
        devices = {key: value for key, value in content['devices'].items() if key in wanted}
        for key in wanted - {plan.stages[0].device}:
            devices[key]['memory_mb'] = NO_MEMORY_MB
        content['devices'] = devices
        content['links'] = [
            link for link in content.get('links', []) if set(link['between']) <= wanted
        ]
    return content


def compare(
    scenario: Scenario,
    requirements: Requirements,
    table: AccuracyTable,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Plan, measure and print one comparison."""
    stream = options.stream or next(iter(scenario.file.streams))
    source = scenario.stream(stream).source
    ends = {'stream': stream, 'source': source, 'sink': scenario.sink(stream)}
    profile = replace(profile_model(table.model), accuracy=table)
    ways = plan_ways(profile, scenario.fleet, requirements, ends)
    lost = dict.fromkeys(ways, 0.0)
    lost[LAP_DTR] = points_lost(table, [ways[LAP_DTR][0]], options)[0]
    stays = 'stay' if requirements.pictures_stay else 'may leave'
    result: dict[str, Any] = {
        'level': 'modelled',
        'pictures': stays,
        **_figures({name: (c.energy_j, c.latency_s) for name, (_, c) in ways.items()}, lost),
        'predicted_points_lost': round(ways[LAP_DTR][1].accuracy_lost * 100.0, 3),
        'plans': {name: describe_plan(plan) for name, (plan, _) in ways.items()},
        'sends_picture': ways[LAP_DTR][0].stages[0].device != source,
    }
    _show(ways, lost, f'{stream}, pictures {stays}')
    if options.live:
        live = {
            name: emulate(scenario, name, plan, requirements, options)
            for name, (plan, _) in ways.items()
        }
        result['live'] = {'level': 'emulated', 'frames': options.live, **_figures(live, lost)}
    return result


def _figures(costs: Mapping[str, tuple[float, float]], lost: Mapping[str, float]) -> dict[str, Any]:
    """Savings of LAP-DTR against each other way."""
    energy, latency = costs[LAP_DTR]
    figures: dict[str, Any] = {}
    for name, key in (
        (CENTRALIZED, ''),
        (BEST_DEVICE, '_vs_best_device'),
        (LOSSLESS, '_vs_lossless'),
    ):
        figures[f'energy_saved{key}'] = round(1.0 - energy / costs[name][0], 4)
        figures[f'latency_saved{key}'] = round(1.0 - latency / costs[name][1], 4)
    figures['points_lost'] = round(lost[LAP_DTR], 3)
    figures['joules'] = {name: round(joules, 5) for name, (joules, _) in costs.items()}
    figures['seconds'] = {name: round(seconds, 5) for name, (_, seconds) in costs.items()}
    return figures


def _show(ways: Ways, lost: Mapping[str, float], title: str) -> None:
    table = Table(title=f'{title}: modelled per frame, points of AP50 measured')
    for heading in ('', 'plan', 'mJ', 'ms', 'points lost'):
        table.add_column(heading, overflow='fold')
    for name, (plan, cost) in ways.items():
        table.add_row(
            name,
            describe_plan(plan),
            f'{cost.energy_j * 1e3:.1f}',
            f'{cost.latency_s * 1e3:.1f}',
            f'{lost[name]:.2f}',
        )
    Console().print(table)


def main() -> None:
    """Compare under the scenario's requirements and with free pictures; print the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('scenario', type=Path, help='scenario YAML')
    parser.add_argument('--table', type=Path, required=True, help='accuracy table, YAML')
    parser.add_argument('--weights', help='instead of those named in the table')
    parser.add_argument('--dataset', type=Path, required=True, help='OPV2V directory')
    parser.add_argument('--stream', help='default: the first of the scenario')
    parser.add_argument('--frames', type=int, default=12, help='moments to measure accuracy on')
    parser.add_argument('--most-points', type=float, default=PAPER['points_lost'])
    parser.add_argument('--quality', type=int, default=85, help='of JPEG pictures')
    parser.add_argument('--live', type=int, default=0, help='frames through emulated devices')
    parser.add_argument('--out', type=Path, default=Path('out/savings'), help='of live runs')
    parser.add_argument('--threads', type=int, default=2, help='for the accuracy')
    parser.add_argument('--seed', type=int, default=201, help='of the moments')
    options = parser.parse_args()
    scenario, table = load_scenario(options.scenario), load_table(options.table)
    jpeg = table.picture(options.quality)
    base = replace(
        scenario.requirements,
        weights=Weights(energy=1.0, latency=1.0),
        min_accuracy=table.accuracy - options.most_points / 100.0,
        max_period_s=math.inf,
    )
    free = replace(base, pictures_stay=False, jpeg_bytes=jpeg.bytes, jpeg_error=jpeg.error)
    result = compare(scenario, base, table, options)
    result['goals'] = {'energy_saved': 0.20, 'latency_saved': 0.33, 'points_lost': 1.7}
    result['paper_best'] = PAPER
    result['pictures_free'] = compare(scenario, free, table, options)
    result |= {'frames': options.frames, 'dataset': options.dataset.name}
    print(json.dumps(result))


if __name__ == '__main__':
    main()

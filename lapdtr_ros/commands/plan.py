"""``lapdtr plan``: which plan a scenario gets, and what the alternatives cost."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

from rich.console import Console

from lapdtr_ros.evaluation.tables import PlanRow, print_plan_table
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.planning.cost import PlanCost
from lapdtr_ros.planning.fleet import Requirements, Weights
from lapdtr_ros.planning.plan import Plan, describe_plan
from lapdtr_ros.planning.solvers import SOLVERS, solve
from lapdtr_ros.scenario import Scenario, load_scenario


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        'plan',
        help='show the plan of a scenario and its alternatives',
        description='Solves the assignment of a scenario without starting anything and shows '
        'what the alternatives would cost. All figures are modelled from device classes.',
    )
    parser.add_argument('scenario', type=Path, help='scenario YAML')
    parser.add_argument('--solver', choices=SOLVERS, help='instead of the one in the scenario')
    parser.add_argument(
        '--weights',
        type=float,
        nargs=3,
        metavar=('ENERGY', 'LATENCY', 'PERIOD'),
        help='weights of the objectives, instead of those in the scenario',
    )
    parser.add_argument(
        '--min-accuracy',
        type=float,
        metavar='SHARE',
        help='least predicted accuracy, 0 to 1, instead of that in the scenario',
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb."""
    scenario = load_scenario(options.scenario)
    for stream in scenario.file.streams:
        _show(scenario, stream, options)
    return 0


def _show(scenario: Scenario, stream: str, options: argparse.Namespace) -> None:
    section = scenario.stream(stream)
    solution = solve(
        scenario.with_accuracy(profile_model(scenario.file.model.name)),
        scenario.fleet,
        _requirements(scenario, options),
        stream=stream,
        source=section.source,
        sink=scenario.sink(stream),
        solver=options.solver or scenario.file.solver,
    )
    rows = [_row('chosen', solution.plan, solution.cost, chosen=True)]
    rows += [_row(other.name, other.plan, other.cost) for other in solution.alternatives]
    console = Console()
    print_plan_table(rows, console, title=f'{scenario.file.model.name} for {stream}')
    for text in (f'why: {solution.reason}', *_accuracy_lines(scenario, solution.cost)):
        console.print(text, markup=False, highlight=False)
    console.print(
        f'{solution.solver} solver, {solution.seconds * 1e3:.1f} ms; energy above idle, '
        f'modelled from the device classes'
    )


def _requirements(scenario: Scenario, options: argparse.Namespace) -> Requirements:
    requirements = scenario.requirements
    if options.weights:
        energy, latency, period = options.weights
        weights = Weights(energy, latency, period, requirements.weights.accuracy)
        requirements = dataclasses.replace(requirements, weights=weights)
    if options.min_accuracy is not None:
        requirements = dataclasses.replace(requirements, min_accuracy=options.min_accuracy)
    return requirements


def _accuracy_lines(scenario: Scenario, cost: PlanCost) -> list[str]:
    """What the predicted accuracy means."""
    table = scenario.table
    if table is None:
        return []
    margin = f' (90 % error {cost.accuracy_margin:.3f})' if cost.accuracy_margin else ''
    return [
        f'accuracy {cost.accuracy:.3f}{margin} of {table.accuracy:.3f} without loss: '
        f'{table.metric}, {table.frames} frames of {table.dataset}'
    ]


def _row(label: str, plan: Plan, cost: PlanCost, chosen: bool = False) -> PlanRow:
    return PlanRow(
        label=label,
        stages_text=describe_plan(plan),
        energy_j=cost.energy_j,
        latency_s=cost.latency_s,
        period_s=cost.period_s,
        note='' if math.isnan(cost.accuracy) else f'accuracy {cost.accuracy:.3f}',
        chosen=chosen,
    )

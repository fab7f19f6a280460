"""``lapdtr plan``: which plan a scenario gets, and what the alternatives cost."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from rich.console import Console

from lapdtr_ros.evaluation.run_record import describe_stages
from lapdtr_ros.evaluation.tables import PlanRow, print_plan_table
from lapdtr_ros.models.profiling import profile_model
from lapdtr_ros.planning.cost import PlanCost
from lapdtr_ros.planning.fleet import Weights
from lapdtr_ros.planning.plan import Plan
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
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb."""
    scenario = load_scenario(options.scenario)
    for stream in scenario.file.streams:
        _show(scenario, stream, options)
    return 0


def _show(scenario: Scenario, stream: str, options: argparse.Namespace) -> None:
    requirements = scenario.requirements
    if options.weights:
        requirements = dataclasses.replace(requirements, weights=Weights(*options.weights))
    section = scenario.stream(stream)
    solution = solve(
        profile_model(scenario.file.model.name),
        scenario.fleet,
        requirements,
        stream=stream,
        source=section.source,
        sink=scenario.sink(stream),
        solver=options.solver or scenario.file.solver,
    )
    rows = [_row('chosen', solution.plan, solution.cost, chosen=True)]
    rows += [_row(_label(plan), plan, cost) for plan, cost in solution.alternatives]
    console = Console()
    print_plan_table(rows, console, title=f'{scenario.file.model.name} for {stream}')
    console.print(
        f'{solution.solver} solver, {solution.seconds * 1e3:.1f} ms; energy above idle, '
        f'modelled from the device classes'
    )


def _label(plan: Plan) -> str:
    if len(plan.stages) > 1:
        return 'two stages'
    return 'source alone' if plan.stages[0].device == plan.source else 'one device'


def _row(label: str, plan: Plan, cost: PlanCost, chosen: bool = False) -> PlanRow:
    return PlanRow(
        label=label,
        stages_text=describe_stages(plan.stages),
        energy_j=cost.energy_j,
        latency_s=cost.latency_s,
        period_s=cost.period_s,
        chosen=chosen,
    )

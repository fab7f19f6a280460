"""Find the best plan of a stream: one entry for all solvers."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lapdtr_ros.errors import UnknownNameError

from .bounds import Goal
from .cost import (
    InfeasiblePlanError,
    PlanCost,
    Reference,
    evaluate,
    reference,
    score,
    violations,
)
from .exact import BEAM_WIDTH, best_chain
from .fleet import Fleet, Requirements
from .front import FrontSearch
from .greedy import corrected_price, greedy_stages, literal_price
from .infeasible import explain
from .plan import JPEG, RAW, Plan, Stage
from .profile import ModelProfile
from .search import Chain, Search
from .tables import Tables, build_tables
from .validation import validate

EXACT, BEAM, CORRECTED, LITERAL = 'exact', 'beam', 'corrected', 'literal'
SOLVERS = (EXACT, BEAM, CORRECTED, LITERAL)


@dataclass(frozen=True)
class Solution:
    """A plan and how it was found.

    Attributes:
        plan: the chosen plan.
        cost: its cost.
        score: its score (`cost.score`), less is better.
        alternatives: plans to compare with, without the chosen one: the whole model on the
            source, then the best on one device and the best with two stages as far as such
            plans meet the constraints. The first may break limits, see `cost.violations`.
        seconds: time the solver took, without the alternatives.
        solver: name of the solver.
    """

    plan: Plan
    cost: PlanCost
    score: float
    alternatives: tuple[tuple[Plan, PlanCost], ...]
    seconds: float
    solver: str


def solve(
    profile: ModelProfile,
    fleet: Fleet,
    requirements: Requirements,
    *,
    stream: str,
    source: str,
    sink: str,
    solver: str = EXACT,
) -> Solution:
    """The best plan for one stream.

    Args:
        profile: the model.
        fleet: devices and links, with capacities that are left for this stream.
        requirements: weights and limits.
        stream: name of the stream, goes into the plan.
        source: device whose camera takes the picture.
        sink: device that needs the result.
        solver: ``exact`` (optimal over consecutive ranges on distinct devices), ``beam`` (near
            optimal, for large fleets), ``corrected`` or ``literal`` (greedy of the paper's
            Algorithm 2, see `greedy`).

    Raises:
        InfeasiblePlanError: no plan meets the constraints, or the greedy found none; the text
            says which constraint binds and by how much.
        PlanningInputError: an input value makes no sense.
        UnknownNameError: unknown solver or device.
        SearchTooLargeError: the fleet is too large for ``exact``.
    """
    if solver not in SOLVERS:
        raise UnknownNameError('solver', solver, SOLVERS)
    begin = time.perf_counter()
    validate(profile, fleet, requirements, source, sink)
    task = _Task(profile, fleet, requirements, stream, source, sink)
    search = solver in (EXACT, BEAM)
    plan = task.searched(exact=solver == EXACT) if search else task.greedy(solver)
    cost = task.evaluate(plan)
    seconds = time.perf_counter() - begin
    return Solution(
        plan=plan,
        cost=cost,
        score=score(cost, requirements, task.reference),
        alternatives=task.alternatives(plan),
        seconds=seconds,
        solver=solver,
    )


class _Task:
    """One call of `solve`."""

    def __init__(
        self,
        profile: ModelProfile,
        fleet: Fleet,
        requirements: Requirements,
        stream: str,
        source: str,
        sink: str,
    ) -> None:
        self.profile = profile
        self.fleet = fleet
        self.requirements = requirements
        self.stream, self.source, self.sink = stream, source, sink
        self.reference = reference(profile, fleet, requirements, source)
        self.goal = goal_of(requirements, self.reference)
        self._tables: Tables | None = None

    @property
    def tables(self) -> Tables:
        if self._tables is None:
            self._tables = build_tables(
                self.profile, self.fleet, self.requirements, self.source, self.sink
            )
        return self._tables

    def evaluate(self, plan: Plan) -> PlanCost:
        return evaluate(plan, self.profile, self.fleet, self.requirements)

    def plan(self, stages: tuple[Stage, ...], picture: str = RAW) -> Plan:
        if stages[0].device == self.source:
            picture = RAW
        return Plan(self.stream, self.profile.model, self.source, self.sink, stages, picture)

    def searched(self, *, exact: bool) -> Plan:
        chain = best_chain(self.tables, self.goal, exact=exact)
        if chain is None:
            raise InfeasiblePlanError(
                explain(self.tables, self.profile, self.goal, self.source, self.sink, exact=exact)
            )
        return self.plan(*unfold(chain, self.tables))

    def greedy(self, solver: str) -> Plan:
        price = literal_price if solver == LITERAL else corrected_price(self.requirements)
        stages = greedy_stages(
            self.profile, self.fleet, self.requirements, self.source, self.sink, price
        )
        plans = [self.plan(stages)]
        if stages[0].device != self.source and self.requirements.jpeg_bytes is not None:
            plans.append(self.plan(stages, JPEG))
        costs = [self.evaluate(plan) for plan in plans]
        broken = [
            violations(plan, cost, self.fleet, self.requirements)
            for plan, cost in zip(plans, costs, strict=True)
        ]
        legal = [i for i, texts in enumerate(broken) if not texts]
        if not legal:
            raise InfeasiblePlanError(
                f'the {solver} greedy does not look at limits and its plan breaks '
                f"{'; '.join(broken[0])}: relax the limit or use solver 'exact'"
            )
        return plans[min(legal, key=lambda i: score(costs[i], self.requirements, self.reference))]

    def alternatives(self, chosen: Plan) -> tuple[tuple[Plan, PlanCost], ...]:
        plans = [self.plan((Stage(self.source, 0, len(self.profile)),))]
        search = Search(self.tables, self.goal)
        for stages in (1, 2):
            chain = search.run(width=BEAM_WIDTH, max_stages=stages)
            if chain is not None:
                plans.append(self.plan(*unfold(chain, self.tables)))
        found: dict[Plan, PlanCost] = {}
        for plan in plans:
            if plan != chosen and plan not in found:
                try:
                    found[plan] = self.evaluate(plan)
                except InfeasiblePlanError:
                    continue  # the source has no link to the sink
        return tuple(found.items())


@dataclass(frozen=True)
class Front:
    """Plans of which none is beaten in energy, latency and period at once.

    Attributes:
        plans: the plans with their costs, least energy first.
        complete: whether these are all; large fleets give a selection.
    """

    plans: tuple[tuple[Plan, PlanCost], ...]
    complete: bool


def pareto_front(
    profile: ModelProfile,
    fleet: Fleet,
    requirements: Requirements,
    *,
    stream: str,
    source: str,
    sink: str,
    width: int = 400,
) -> Front:
    """The Pareto front over energy, latency and period under the limits of ``requirements``.

    Weights and battery prices do not matter here. Of plans with equal costs one is returned.

    Args:
        profile: the model.
        fleet: devices and links.
        requirements: limits.
        stream: name of the stream, goes into the plans.
        source: device whose camera takes the picture.
        sink: device that needs the result.
        width: partial plans kept per cut; where more are worth keeping the most balanced stay
            and the front is not `Front.complete`.

    Raises:
        InfeasiblePlanError: no plan meets the limits; the text says which one binds.
        PlanningInputError: an input value makes no sense.
        UnknownNameError: unknown device.
    """
    validate(profile, fleet, requirements, source, sink)
    task = _Task(profile, fleet, requirements, stream, source, sink)
    search = FrontSearch(task.tables, task.goal)
    chains = search.front(width)
    if not chains:
        raise InfeasiblePlanError(
            explain(task.tables, profile, task.goal, source, sink, exact=not search.truncated)
        )
    plans = [task.plan(*unfold(chain, task.tables)) for chain in chains]
    return Front(tuple((plan, task.evaluate(plan)) for plan in plans), not search.truncated)


def goal_of(requirements: Requirements, reference: Reference) -> Goal:
    """The search's goal: `cost.score` as weights per joule and second, and the limits."""
    weights = requirements.weights
    return Goal(
        energy=weights.energy / reference.energy_j,
        latency=weights.latency / reference.latency_s,
        period=weights.period / reference.period_s,
        max_energy_j=requirements.max_energy_j,
        max_latency_s=requirements.max_latency_s,
        max_period_s=requirements.max_period_s,
        pictures_stay=requirements.pictures_stay,
        jpeg_bytes=requirements.jpeg_bytes,
    )


def unfold(chain: Chain, tables: Tables) -> tuple[tuple[Stage, ...], str]:
    """Stages on devices instead of kinds, first members first, and the picture's coding."""
    members = [iter(names) for names in tables.members]
    stages = tuple(Stage(next(members[kind]), start, stop) for kind, start, stop in chain.stages)
    return stages, chain.picture

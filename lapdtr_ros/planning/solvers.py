"""Find the best plan of a stream: one entry for all solvers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

from lapdtr_ros.errors import UnknownNameError

from .accuracy import AccuracyTable
from .bounds import Goal
from .choices import most_error
from .cost import (
    InfeasiblePlanError,
    PlanCost,
    Reference,
    evaluate,
    reference,
    score,
    violations,
)
from .exact import BEAM_WIDTH, best_chain, least_chain
from .fleet import Fleet, Requirements
from .front import FrontSearch
from .greedy import corrected_price, greedy_stages, literal_price
from .infeasible import explain
from .plan import JPEG, RAW, Plan, Stage
from .profile import ModelProfile
from .search import Chain, Search
from .tables import Floats, Tables, build_tables
from .validation import validate

EXACT, BEAM, CORRECTED, LITERAL = 'exact', 'beam', 'corrected', 'literal'
SOLVERS = (EXACT, BEAM, CORRECTED, LITERAL)


@dataclass(frozen=True)
class Contender:
    """A plan to compare with; it may break limits, see `cost.violations`.

    Attributes:
        name: what it is, e.g. ``best without loss``.
        plan: the plan.
        cost: its cost.
    """

    name: str
    plan: Plan
    cost: PlanCost


@dataclass(frozen=True)
class Solution:
    """A plan and how it was found.

    Attributes:
        plan: the chosen plan.
        cost: its cost.
        score: its score (`cost.score`), less is better.
        seconds: time the solver took.
        solver: name of the solver.
    """

    plan: Plan
    cost: PlanCost
    score: float
    seconds: float
    solver: str
    _task: _Task = field(repr=False, compare=False)

    @cached_property
    def alternatives(self) -> tuple[Contender, ...]:
        """Other plans, each once and without the chosen one; found when first asked for.

        The whole model on the source, which may break limits; then, as far as such plans meet the
        constraints, the best on one device, the best with two stages, the best without loss and
        the best that keeps the picture on the source.
        """
        return self._task.alternatives(self.plan)

    @property
    def reason(self) -> str:
        """Why this plan, for people: what it saves against the closest other ways."""
        return self._task.reason(self)


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

    ``exact`` and ``beam`` choose levels, cut settings and the coding of the picture together with
    the stages, from the profile's accuracy table and as far as ``requirements`` allow a loss.
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
        seconds=seconds,
        solver=solver,
        _task=task,
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
        self.goal = goal_of(profile, requirements, self.reference)
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
            ends = self.source, self.sink
            text = explain(self.tables, self.profile, self.goal, *ends, exact=exact)
            raise InfeasiblePlanError(text + self._remedy_by_loss(exact=exact))
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

    def _remedy_by_loss(self, *, exact: bool) -> str:
        """The accuracy at which there would be a plan, if that would help."""
        table = self.profile.accuracy
        if table is None or not math.isfinite(self.goal.max_error):
            return ''
        free = replace(self.requirements, min_accuracy=0.0)
        tables = build_tables(self.profile, self.fleet, free, self.source, self.sink)
        goal = replace(
            self.goal, energy=0.0, latency=0.0, period=0.0, error=1.0, loss=None, max_error=math.inf
        )
        chain = least_chain(tables, goal, exact=exact)
        if chain is None:
            return ''
        reached = float(table.accuracy_at(chain.score)) - table.margin
        wanted = self.requirements.min_accuracy
        now = 'nothing may be lost' if wanted is None else f'min_accuracy = {wanted:.4g}'
        return f'; {now}, with min_accuracy = {reached:.4g} there is a plan'

    def alternatives(self, chosen: Plan) -> tuple[Contender, ...]:
        """See `Solution.alternatives`."""
        plans = {'source alone': self.plan((Stage(self.source, 0, len(self.profile)),))}
        for name, stages in (('one device', 1), ('two stages', 2)):
            self._add(plans, name, self.tables, self.goal, stages)
        if self.tables.choices.lossy:
            lossless = replace(
                self.requirements,
                min_accuracy=None,
                weights=replace(self.requirements.weights, accuracy=0.0),
            )
            tables = build_tables(self.profile, self.fleet, lossless, self.source, self.sink)
            goal = replace(self.goal, loss=None, max_error=0.0)
            self._add(plans, 'best without loss', tables, goal)
        if chosen.stages[0].device != self.source:
            goal = replace(self.goal, pictures_stay=True)
            self._add(plans, 'picture stays', self.tables, goal)
        found: dict[Plan, Contender] = {}
        for name, plan in plans.items():
            if plan != chosen and plan not in found:
                try:
                    found[plan] = Contender(name, plan, self.evaluate(plan))
                except InfeasiblePlanError:
                    continue  # the source has no link to the sink
        return tuple(found.values())

    def _add(
        self,
        plans: dict[str, Plan],
        name: str,
        tables: Tables,
        goal: Goal,
        stages: int | None = None,
    ) -> None:
        """Put the best plan of a narrower search into ``plans`` if there is one."""
        chain = Search(tables, goal).run(width=BEAM_WIDTH, max_stages=stages)
        if chain is not None:
            plans[name] = self.plan(*unfold(chain, tables))

    def reason(self, solution: Solution) -> str:
        """See `Solution.reason`."""
        plan, cost = solution.plan, solution.cost
        others = {other.name: other.cost for other in solution.alternatives}
        parts = []
        if plan.stages[0].device != self.source:
            parts.append(self._picture_reason(plan, cost, others.get('picture stays')))
        lossless = others.get('best without loss')
        if cost.error > 0.0 and lossless is not None:
            lost = f'gives up {cost.accuracy_lost * 100.0:.1f} points of accuracy'
            parts.append(f'{lost}: {_compared(cost, lossless)} the best plan without loss')
        alone = others.get('source alone')
        if not parts and alone is not None:
            parts.append(f'{_compared(cost, alone)} {self.source} alone')
        return '; '.join(parts) or f'{plan.stages[0].device} alone is best'

    def _picture_reason(self, plan: Plan, cost: PlanCost, stays: PlanCost | None) -> str:
        """Why the picture is sent instead of features."""
        size = cost.hops[0].bytes / 1e3
        text = f'the {plan.picture} picture ({size:.1f} kB) goes to {plan.stages[0].device}'
        if stays is None:
            return f'{text}: no plan that keeps it on {self.source} meets the constraints'
        return f'{text}: {_compared(cost, stays)} the best plan that keeps it on {self.source}'


def _compared(cost: PlanCost, other: PlanCost) -> str:
    return (
        f'{cost.energy_j * 1e3:.0f} mJ and {cost.latency_s * 1e3:.0f} ms instead of '
        f'{other.energy_j * 1e3:.0f} mJ and {other.latency_s * 1e3:.0f} ms with'
    )


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


def goal_of(profile: ModelProfile, requirements: Requirements, reference: Reference) -> Goal:
    """The search's goal: `cost.score` as weights per joule and second, and the limits."""
    weights, table = requirements.weights, profile.accuracy
    loss = None
    if table is not None and weights.accuracy > 0.0:
        loss = accuracy_loss(table, weights.accuracy)
    return Goal(
        energy=weights.energy / reference.energy_j,
        latency=weights.latency / reference.latency_s,
        period=weights.period / reference.period_s,
        loss=loss,
        max_error=most_error(profile, requirements),
        max_energy_j=requirements.max_energy_j,
        max_latency_s=requirements.max_latency_s,
        max_period_s=requirements.max_period_s,
        pictures_stay=requirements.pictures_stay,
        jpeg_bytes=requirements.jpeg_bytes,
        jpeg_error=requirements.jpeg_error,
    )


def accuracy_loss(table: AccuracyTable, weight: float) -> Callable[[Floats], Floats]:
    """Score of the accuracy that a sum of errors loses."""
    return lambda total: weight * (table.accuracy - table.accuracy_at(total))


def unfold(chain: Chain, tables: Tables) -> tuple[tuple[Stage, ...], str]:
    """Stages on devices instead of kinds, first members first, and the picture's coding."""
    members = [iter(names) for names in tables.members]
    stages = tuple(
        Stage(next(members[stage.kind]), stage.start, stage.stop, stage.level, stage.cut)
        for stage in chain.stages
    )
    return stages, chain.picture

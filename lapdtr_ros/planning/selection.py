"""Algorithm 1 of the paper: choose among profiles of one partition by accuracy, energy and latency.

A *candidate* is the partition at one elastic level with one setting for all its cuts. Candidates
that keep all three limits are scored, and the highest score wins; if none keeps them, the most
accurate candidate does (lines 10 to 12). The score is

* ``literal``, as printed: w_A * Acc + w_E * E / E_max + w_L * L / L_max, which rewards spending
  energy and time;
* ``corrected``, as meant: w_A * Acc - w_E * E / E_max - w_L * L / L_max.

E_max and L_max, which the print leaves open, are the largest of the candidates that are scored.
Unlike the solvers it takes the partition as given; `solvers.solve` is the planner's way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lapdtr_ros.errors import LapdtrError, UnknownNameError

from .accuracy import AccuracyTableError
from .cost import PlanCost, evaluate, within
from .effects import require_table
from .fleet import Fleet, Requirements
from .plan import LOSSLESS, CutSetting, Plan
from .profile import ModelProfile

CORRECTED, LITERAL = 'corrected', 'literal'
SCORES = (CORRECTED, LITERAL)


class SelectionError(LapdtrError):
    """There is nothing to choose from."""


@dataclass(frozen=True)
class Candidate:
    """A partition at one level with one cut setting.

    Attributes:
        plan: the plan.
        cost: its predicted cost; accuracy, energy and latency are read from here.
    """

    plan: Plan
    cost: PlanCost


@dataclass(frozen=True)
class Selection:
    """What Algorithm 1 chose.

    Attributes:
        candidate: the choice.
        fits: whether it keeps the limits; otherwise it is the most accurate of all.
        score: its score; the accuracy where nothing fits.
        fitting: how many candidates keep the limits.
    """

    candidate: Candidate
    fits: bool
    score: float
    fitting: int


def list_candidates(
    partition: Plan, profile: ModelProfile, fleet: Fleet, requirements: Requirements
) -> tuple[Candidate, ...]:
    """Every calibrated level with every setting that is calibrated at all cuts of ``partition``.

    Args:
        partition: who runs which units; its own levels and settings do not matter.
        profile: the model with its accuracy table.
        fleet: devices and links.
        requirements: battery price and JPEG picture; limits do not matter here.

    Raises:
        AccuracyTableError: the model has no accuracy table.
        InfeasiblePlanError: a link that the partition needs is missing.
        UnknownNameError: the partition names a device that the fleet lacks.
    """
    table = require_table(profile)
    settings = dict.fromkeys((LOSSLESS, *(effect.setting for effect in table.cuts)))
    candidates = []
    for level in (0, *sorted(table.level_effects)):
        for setting in settings:
            plan = _with(partition, level, setting)
            try:
                candidates.append(Candidate(plan, evaluate(plan, profile, fleet, requirements)))
            except AccuracyTableError:
                continue  # this setting was not calibrated at one of the cuts
            if len(partition.stages) == 1:
                break  # no cut, so all settings are the same plan
    return tuple(candidates)


def select(
    candidates: Sequence[Candidate], requirements: Requirements, form: str = CORRECTED
) -> Selection:
    """Algorithm 1.

    Args:
        candidates: what to choose from, see `list_candidates`.
        requirements: `min_accuracy`, `max_energy_j` and `max_latency_s` are the printed Acc, E
            and L, the weights w_A, w_E and w_L; the rest does not matter.
        form: ``corrected`` or ``literal``.

    Raises:
        SelectionError: no candidates.
        UnknownNameError: unknown form.
    """
    if form not in SCORES:
        raise UnknownNameError('form of Algorithm 1', form, SCORES)
    if not candidates:
        raise SelectionError('no candidate profiles: calibrate levels or cut settings')
    fitting = [candidate for candidate in candidates if _fits(candidate.cost, requirements)]
    if not fitting:
        best = max(candidates, key=lambda candidate: candidate.cost.accuracy)
        return Selection(best, False, best.cost.accuracy, 0)
    scores = list(_scores(fitting, requirements, 1.0 if form == LITERAL else -1.0))
    best_score = max(scores)
    return Selection(fitting[scores.index(best_score)], True, best_score, len(fitting))


def _with(partition: Plan, level: int, setting: CutSetting) -> Plan:
    """The partition at one level with one setting; the result is never packed."""
    stages = [replace(stage, level=level, cut=setting) for stage in partition.stages]
    stages[-1] = replace(stages[-1], cut=LOSSLESS)
    return replace(partition, stages=tuple(stages))


def _fits(cost: PlanCost, requirements: Requirements) -> bool:
    """Line 6."""
    return (
        within(requirements.min_accuracy or 0.0, cost.accuracy)
        and within(cost.energy_j, requirements.max_energy_j)
        and within(cost.latency_s, requirements.max_latency_s)
    )


def _scores(
    candidates: Sequence[Candidate], requirements: Requirements, sign: float
) -> Iterator[float]:
    """Lines 16 to 22, with the sign of the energy and latency terms."""
    weights = requirements.weights
    # A free plan scores no energy, whatever it is divided by.
    most_energy = max(candidate.cost.energy_j for candidate in candidates) or 1.0
    most_latency = max(candidate.cost.latency_s for candidate in candidates) or 1.0
    for candidate in candidates:
        cost = candidate.cost
        spent = weights.energy * cost.energy_j / most_energy
        spent += weights.latency * cost.latency_s / most_latency
        yield weights.accuracy * cost.accuracy + sign * spent

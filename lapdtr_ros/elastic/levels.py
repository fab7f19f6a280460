"""Elastic levels: which parts of a model are how narrow, chosen by what that costs and saves.

Which layers contribute little is measured, not assumed (paper §4.1 leaves it open): every part is
narrowed alone, the error of the last features against the FLOPs saved ranks the steps, and a level
is a prefix of that list. Levels are therefore nested, from 0 (full width) upwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from .parts import HEADS, Part

PartKey = tuple[int, str]  # number of the unit in the model, path of the part in the unit
Widths = Mapping[PartKey, int]

NEURON_SHARES = (0.75, 0.5, 0.25)
_LEAST_HEADS_SHARE = 0.5
_MOST_HEAD_STEPS = 4


@dataclass(frozen=True)
class Step:
    """One part at one smaller width.

    Attributes:
        part: which part.
        width: groups that stay.
        error: NMSE of the last features when only this part is narrower, compensated.
        flops: FLOPs per frame that it saves.
    """

    part: PartKey
    width: int
    error: float
    flops: float


def candidate_widths(part: Part) -> list[int]:
    """Smaller widths of a part that are worth measuring, falling.

    Neurons: three quarters, half and a quarter. Heads: down to half of them, in at most four steps;
    attention with less is worth less than what it costs.
    """
    if part.kind != HEADS:
        return [round(part.width * share) for share in NEURON_SHARES]
    least = max(1, round(part.width * _LEAST_HEADS_SHARE))
    step = max(1, -(-(part.width - least) // _MOST_HEAD_STEPS))
    return list(range(part.width - step, least - 1, -step))


def rank_steps(steps: Iterable[Step]) -> list[Step]:
    """Order in which to narrow parts, greedily by error per FLOP that the next step adds.

    A step may pass over a width of its part when going further at once is the better bargain.
    """
    open_steps: dict[PartKey, list[Step]] = {}
    for step in steps:
        open_steps.setdefault(step.part, []).append(step)
    taken: dict[PartKey, Step] = {}
    ranked: list[Step] = []
    while open_steps:
        offered = itertools.chain.from_iterable(open_steps.values())
        best = min(offered, key=partial(_price, taken))
        taken[best.part] = best
        ranked.append(best)
        narrower = [s for s in open_steps.pop(best.part) if s.width < best.width]
        if narrower:
            open_steps[best.part] = narrower
    return ranked


def _price(taken: Mapping[PartKey, Step], step: Step) -> float:
    """Error per FLOP of going to this step from where its part is."""
    before = taken.get(step.part)
    error, flops = (before.error, before.flops) if before else (0.0, 0.0)
    return max(0.0, step.error - error) / (step.flops - flops)


def choose_levels(ranked: Sequence[Step], flops: float, savings: Sequence[float]) -> list[Widths]:
    """Cut the ranked list into levels.

    Args:
        ranked: see `rank_steps`.
        flops: of the whole model for one frame.
        savings: share of them that each level is to save, rising; those beyond what the list can
            save are left out, but for the first of them, which gets the whole list.

    Returns:
        Widths of the parts that are narrower, for levels 1, 2, ...
    """
    levels: list[Widths] = []
    widths: dict[PartKey, Step] = {}
    rest = iter(ranked)
    for share in savings:
        before = len(levels) and dict(levels[-1])
        while sum(step.flops for step in widths.values()) < share * flops:
            step = next(rest, None)
            if step is None:
                break
            widths[step.part] = step
        level = {part: step.width for part, step in widths.items()}
        if not level or level == before:
            break
        levels.append(level)
    return levels


def describe(level: Widths, unit_names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Widths of a level by name of unit and part, for people."""
    described: dict[str, dict[str, int]] = {}
    for (unit, path), width in sorted(level.items()):
        described.setdefault(unit_names[unit], {})[path] = width
    return described

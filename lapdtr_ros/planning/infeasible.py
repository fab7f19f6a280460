"""Why there is no plan: relax one constraint at a time and say which one binds, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .bounds import Goal
from .cost import within
from .exact import least_chain
from .profile import ModelProfile
from .tables import Tables


@dataclass(frozen=True)
class _Limit:
    """A limit in `Goal`.

    Attributes:
        field: its name.
        isolate: makes a goal without weights minimise the limited quantity without the limit.
        unit: unit of the quantity.
        best: words for the least value.
        remedy: what devices or links would help.
    """

    field: str
    isolate: Callable[[Goal], Goal]
    unit: str
    best: str
    remedy: str


_LIMITS = (
    _Limit(
        'max_latency_s',
        lambda goal: replace(goal, latency=1.0, max_latency_s=math.inf),
        's',
        'the fastest possible takes',
        'faster',
    ),
    _Limit(
        'max_period_s',
        lambda goal: replace(goal, period=1.0, max_period_s=math.inf),
        's',
        'the shortest possible period is',
        'faster or more',
    ),
    _Limit(
        'max_energy_j',
        lambda goal: replace(goal, energy=1.0, max_energy_j=math.inf),
        'J',
        'the thriftiest possible needs',
        'more efficient',
    ),
)


def explain(
    tables: Tables, profile: ModelProfile, goal: Goal, source: str, sink: str, *, exact: bool
) -> str:
    """Text for users about why no plan satisfies ``goal``.

    Args:
        tables: arrays of fleet and model.
        profile: the model.
        goal: the goal without a plan.
        source: name of the source device.
        sink: name of the sink device.
        exact: whether to search exactly; a beam may overlook plans, and the text says so.
    """
    free = Goal(
        latency=1.0,
        max_error=goal.max_error,
        pictures_stay=goal.pictures_stay,
        jpeg_bytes=goal.jpeg_bytes,
        jpeg_error=goal.jpeg_error,
    )
    if least_chain(tables, free, exact=exact) is None:
        return _structure(tables, profile, free, source, sink, exact=exact)
    # Limits are about joules, whatever their price.
    honest = replace(tables, price=np.ones_like(tables.price), byte_priced=tables.byte_joules)
    limits = [limit for limit in _LIMITS if math.isfinite(getattr(goal, limit.field))]
    texts = _too_tight(honest, free, goal, limits, exact=exact)
    if texts:
        return '; '.join(texts)
    texts = _conflicts(honest, goal, limits, exact=exact)
    if texts:
        return '; '.join(texts)
    if not exact:
        return "the beam found no plan that keeps all limits: relax one or use solver 'exact'"
    names = ', '.join(f'{limit.field} = {getattr(goal, limit.field):.4g}' for limit in limits)
    return f'no plan keeps {names} together, nor when one of them is dropped: relax several'


def _least(tables: Tables, goal: Goal, limit: _Limit, *, exact: bool) -> float:
    """Least value of the limited quantity under the other limits of ``goal``."""
    alone = replace(goal, energy=0.0, latency=0.0, period=0.0, loss=None)
    chain = least_chain(tables, limit.isolate(alone), exact=exact)
    return math.inf if chain is None else chain.score


def _too_tight(
    tables: Tables, free: Goal, goal: Goal, limits: list[_Limit], *, exact: bool
) -> list[str]:
    """Limits that no plan meets even if all others are dropped."""
    texts = []
    for limit in limits:
        wanted = getattr(goal, limit.field)
        least = _least(tables, free, limit, exact=exact)
        if not within(least, wanted):
            texts.append(
                f'no plan meets {limit.field} = {wanted:.4g} {limit.unit}: {limit.best} '
                f'{least:.4g} {limit.unit} (+{least - wanted:.4g} {limit.unit}); relax the limit '
                f'or add {limit.remedy} devices or links'
            )
    return texts


def _conflicts(tables: Tables, goal: Goal, limits: list[_Limit], *, exact: bool) -> list[str]:
    """What each limit would have to be if the others are kept."""
    texts = []
    for limit in limits:
        wanted = getattr(goal, limit.field)
        least = _least(tables, goal, limit, exact=exact)
        if math.isfinite(least) and not within(least, wanted):
            texts.append(
                f'{limit.field} = {wanted:.4g} {limit.unit} conflicts with the other limits: '
                f'while they hold, {limit.best} {least:.4g} {limit.unit} '
                f'(+{least - wanted:.4g} {limit.unit}); relax one of them'
            )
    return texts


def _structure(
    tables: Tables, profile: ModelProfile, free: Goal, source: str, sink: str, *, exact: bool
) -> str:
    """No plan even without limits: memory, pictures that stay, or links."""
    roomy = replace(tables, memory=np.full_like(tables.memory, np.inf))
    if least_chain(roomy, free, exact=exact) is not None:
        return _memory_text(tables, profile, free, source, exact=exact)
    sending = replace(free, pictures_stay=False)
    if free.pictures_stay and least_chain(roomy, sending, exact=exact) is not None:
        return (
            f'pictures_stay keeps unit 0 ({profile.units[0].name}) on {source}, and no chain of '
            f'links with at most {tables.units} stages leads on to the sink {sink}: '
            f'add links or let pictures leave'
        )
    reached = sorted(_reached(tables) - {source})
    return (
        f'no chain of at most {tables.units} stages leads from the source {source} to the sink '
        f'{sink}: links reach {", ".join(reached) if reached else "no other device"} from '
        f'{source}; add a link on the way to {sink}'
    )


def _memory_text(
    tables: Tables, profile: ModelProfile, free: Goal, source: str, *, exact: bool
) -> str:
    reached = _reached(tables)
    offers = {
        name: float(memory)
        for names, memory in zip(tables.members, tables.memory, strict=True)
        for name in names
        if name in reached
    }
    total = sum(offers.values())
    roomiest = max(offers, key=lambda name: offers[name])
    largest = max(profile.units, key=lambda unit: unit.parameter_bytes)
    text = (
        f'{profile.model} does not fit: its weights need {_mb(profile.parameter_bytes)}, the '
        f'{len(offers)} devices in reach of {source} offer {_mb(total)} together and {roomiest} '
        f'{_mb(offers[roomiest])} alone; the largest unit {largest.name} needs '
        f'{_mb(largest.parameter_bytes)}'
    )
    sending = replace(free, pictures_stay=False)
    if free.pictures_stay and least_chain(tables, sending, exact=exact) is not None:
        return (
            f'{text}. pictures_stay keeps unit 0 ({profile.units[0].name}, '
            f'{_mb(profile.units[0].parameter_bytes)}) on {source} with {_mb(offers[source])}: '
            f'let pictures leave or give {source} more memory_bytes'
        )
    return f'{text}: raise memory_bytes, add devices or links, or take a smaller model'


def _mb(size: float) -> str:
    return f'{size / 1e6:.1f} MB'


def _reached(tables: Tables) -> set[str]:
    """Names of the devices that links lead to from the source, itself included."""
    reached, border = {tables.source}, [tables.source]
    linked = np.isfinite(tables.delay)
    while border:
        for kind in np.flatnonzero(linked[border.pop()]).tolist():
            if kind not in reached:
                reached.add(kind)
                border.append(kind)
    return {name for kind in reached for name in tables.members[kind]}

"""Levels and cut settings that a plan may use, as arrays for the label search.

Tokens are tracked as *sets*: set 0 is the grid, every other set is a number of kept tokens in one
run of token-global units. A set counts only up to the end of its run; beyond it every array treats
it as the grid, so a search need not look where a unit puts the grid back.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from .accuracy import AccuracyTable, AccuracyTableError
from .effects import GRID, CutCost, Held, cut_cost, time_factors
from .fleet import Requirements
from .plan import LOSSLESS, CutSetting
from .profile import ModelProfile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Choices:
    """What a search may choose from: V levels, T sets of tokens, S settings per cut, L units.

    Attributes:
        levels: numbers of the levels; the first is 0.
        settings: setting by set, cut and option; the first of each is without loss.
        ends: (T,) last cut at which a set differs from the grid.
        time_factors: (V, T, L) time of each unit, relative to full width and grid.
        weight_factors: (V, L) bytes of weights, relative to full width.
        level_error: (V, L + 1) error of the units before each cut.
        bytes: (T, L + 1, S) bytes that cross a cut; infinite where there is no such option.
        received: (T, L + 1, S) set of tokens that the receiver gets.
        cut_error: (T, L + 1, S) error.
        pack_s: (T, L + 1, S) seconds to pack, on the machine of the accuracy table.
        unpack_s: (T, L + 1, S) seconds to unpack.
    """

    levels: tuple[int, ...]
    settings: tuple[tuple[tuple[CutSetting, ...], ...], ...]
    ends: Ints
    time_factors: Floats
    weight_factors: Floats
    level_error: Floats
    bytes: Floats
    received: Ints
    cut_error: Floats
    pack_s: Floats
    unpack_s: Floats

    @property
    def packs(self) -> bool:
        """Whether packing takes any time."""
        return bool(self.pack_s.any() or self.unpack_s.any())

    @property
    def lossy(self) -> bool:
        """Whether any choice has an error."""
        return bool(self.level_error.any() or self.cut_error.any())


@dataclass(frozen=True)
class _TokenSet:
    """Kept tokens between the cuts ``start`` and ``end``."""

    held: Held
    start: int
    end: int


@dataclass(frozen=True)
class _Option:
    """A setting with its cost and the set that the receiver gets."""

    setting: CutSetting
    cost: CutCost
    received: int

    def beats(self, other: _Option) -> bool:
        """Whether nobody needs ``other`` beside this one."""
        mine, its = self.cost, other.cost
        return (
            self.received == other.received
            and mine.bytes <= its.bytes
            and mine.error <= its.error
            and mine.pack_s <= its.pack_s
            and mine.unpack_s <= its.unpack_s
        )


def most_error(profile: ModelProfile, requirements: Requirements) -> float:
    """Largest sum of errors that the requirements allow."""
    table = profile.accuracy
    if table is None or not requirements.lossy:
        return 0.0
    if requirements.min_accuracy is None:
        return np.inf
    return table.largest_total(requirements.min_accuracy)


def list_choices(profile: ModelProfile, requirements: Requirements) -> Choices:
    """All that the model's accuracy table offers and ``requirements`` allow.

    Options of a cut that another one beats in every respect are left out; no best plan needs them.
    """
    table, limit = profile.accuracy, most_error(profile, requirements)
    levels: tuple[int, ...] = (0,)
    offered: dict[int, list[CutSetting]] = {}
    if table is not None and limit > 0.0:
        levels += tuple(n for n, e in sorted(table.level_effects.items()) if min(e.error) <= limit)
        for effect in table.cuts:
            if effect.error <= limit:
                offered.setdefault(effect.cut, []).append(effect.setting)
    sets = _token_sets(profile, offered)
    options = [
        [
            _options(profile, sets, held, cut, offered.get(cut, []))
            for cut in range(len(profile) + 1)
        ]
        for held in sets
    ]
    return Choices(
        levels=levels,
        settings=tuple(tuple(tuple(o.setting for o in cut) for cut in row) for row in options),
        ends=np.array([held.end for held in sets]),
        time_factors=np.array(
            [[_factors(profile, level, held) for held in sets] for level in levels]
        ),
        weight_factors=np.array([_weights(profile, table, level) for level in levels]),
        level_error=np.array([_errors(profile, table, level) for level in levels]),
        **_arrays(options),
    )


def _token_sets(profile: ModelProfile, offered: dict[int, list[CutSetting]]) -> list[_TokenSet]:
    """The grid, then every number of kept tokens in every run of token-global units."""
    sets = [_TokenSet(GRID, 0, 0)]
    runs = _global_runs(profile)
    for cut, settings in sorted(offered.items()):
        for setting in settings:
            for start, end in runs:
                held = _TokenSet(Held(setting.keep, setting.form), start, end)
                if setting.keep and start <= cut < end and held not in sets:
                    sets.append(held)
    return sets


def _global_runs(profile: ModelProfile) -> list[tuple[int, int]]:
    """(first, one past the last) of each run of token-global units."""
    runs: list[tuple[int, int]] = []
    for place, unit in enumerate(profile.units):
        if unit.token_global and runs and runs[-1][1] == place:
            runs[-1] = runs[-1][0], place + 1
        elif unit.token_global:
            runs.append((place, place + 1))
    return runs


def _options(
    profile: ModelProfile,
    sets: list[_TokenSet],
    current: _TokenSet,
    cut: int,
    settings: list[CutSetting],
) -> list[_Option]:
    """What can be made of the features at ``cut`` by a device that holds ``current``."""
    held = current.held if current.start < cut <= current.end else GRID
    if cut in (0, len(profile)):
        return [_Option(LOSSLESS, CutCost(profile.cut_bytes(cut)), 0)]
    options: list[_Option] = []
    for setting in (LOSSLESS, *settings):
        try:
            cost = cut_cost(profile, cut, setting, held)
        except AccuracyTableError:
            continue  # so many tokens were not calibrated with these bits at this cut
        received = next(
            (
                i
                for i, other in enumerate(sets)
                if i and other.held == cost.held and other.start <= cut < other.end
            ),
            0,
        )
        passed_on = held != GRID and cost.held == held
        keep, form = (held.keep, held.form) if passed_on else (setting.keep, setting.form)
        explicit = CutSetting(keep, form, setting.bits, setting.transfer)
        option = _Option(explicit, cost, received)
        if not any(other.beats(option) for other in options):
            options = [other for other in options if not option.beats(other)] + [option]
    return options


def _factors(profile: ModelProfile, level: int, tokens: _TokenSet) -> tuple[float, ...]:
    """(L,) relative times at ``level`` with ``tokens`` in their run."""
    before = time_factors(profile, level, GRID, 0)[: tokens.start]
    return before + time_factors(profile, level, tokens.held, tokens.start)


def _weights(profile: ModelProfile, table: AccuracyTable | None, level: int) -> tuple[float, ...]:
    if table is None or level == 0:
        return (1.0,) * len(profile)
    return table.level(level).parameter_bytes


def _errors(profile: ModelProfile, table: AccuracyTable | None, level: int) -> tuple[float, ...]:
    if table is None or level == 0:
        return (0.0,) * (len(profile) + 1)
    return tuple(accumulate(table.level(level).error, initial=0.0))


def _arrays(options: list[list[list[_Option]]]) -> dict[str, NDArray]:
    """Costs of the options, filled up to the largest number of them."""
    most = max(len(cut) for row in options for cut in row)
    shape = len(options), len(options[0]), most
    floats = {name: np.zeros(shape) for name in ('cut_error', 'pack_s', 'unpack_s')}
    sizes = np.full(shape, np.inf)
    received = np.zeros(shape, dtype=np.int64)
    for t, row in enumerate(options):
        for cut, of_cut in enumerate(row):
            for s, option in enumerate(of_cut):
                place = t, cut, s
                sizes[place] = option.cost.bytes
                received[place] = option.received
                floats['cut_error'][place] = option.cost.error
                floats['pack_s'][place] = option.cost.pack_s
                floats['unpack_s'][place] = option.cost.unpack_s
    return {'bytes': sizes, 'received': received, **floats}

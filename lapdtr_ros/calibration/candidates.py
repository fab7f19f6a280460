"""Which settings are tried: every effect alone, and random plans that combine them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lapdtr_ros.models.layout import TOKENS, FeatureLayout
from lapdtr_ros.planning.plan import CLUSTER, LOSSLESS, CutSetting

from .trials import Trial, trial_of

# (share of the patch tokens, bits) of the packings that are worth a row in the table.
PACKINGS = (
    (1.0, 8),
    (1.0, 4),
    (1.0, 3),
    (1.0, 2),
    (0.75, 4),
    (0.5, 4),
    (0.5, 2),
    (0.25, 4),
    (0.25, 2),
)
QUALITIES = (95, 85, 70, 50, 30)

# Sums of single errors that a combined plan is drawn from: less is lost in the noise of the
# accuracy, more is of no use to anyone.
_LEAST_TOTAL = 0.002
_MOST_TOTAL = 0.4
_DRAWS_PER_PLAN = 200


def cut_settings(layout: FeatureLayout, tokens: int) -> list[CutSetting]:
    """Ways to pack one cut.

    Args:
        layout: of the model's features; only tokens are summarised here, a map would have to be
            put back on its grid before the next unit and saves no computing.
        tokens: patch tokens.
    """
    settings = []
    for share, bits in PACKINGS:
        if share == 1.0:
            settings.append(CutSetting(bits=bits))
        elif layout.kind == TOKENS:
            settings.append(CutSetting(keep=round(share * tokens), form=CLUSTER, bits=bits))
    return settings


def whole(units: int, level: int = 0, quality: int = 0) -> Trial:
    """All units at one level."""
    return trial_of((units, level, LOSSLESS), quality=quality)


def packed_cut(units: int, cut: int, setting: CutSetting) -> Trial:
    """Full width with one packed cut."""
    return trial_of((cut, 0, setting), (units, 0, LOSSLESS))


def narrow_unit(units: int, unit: int, level: int) -> Trial:
    """Full width but for one unit."""
    pieces = [(unit, 0, LOSSLESS)] if unit else []
    pieces.append((unit + 1, level, LOSSLESS))
    if unit + 1 < units:
        pieces.append((units, 0, LOSSLESS))
    return trial_of(*pieces)


def combined(
    units: int,
    levels: Sequence[int],
    settings: Mapping[int, Sequence[CutSetting]],
    single_errors: Mapping[Trial, float],
    count: int,
    seed: int,
) -> list[Trial]:
    """Random plans of two or three stages with levels and packed cuts.

    Args:
        units: of the model.
        levels: levels to choose from, 0 included.
        settings: packings to choose from, by cut.
        single_errors: error of every effect alone, see `total_error`.
        count: number of plans; fewer if the model has not as many.
        seed: which.
    """
    generator = np.random.default_rng(seed)
    plans: dict[Trial, None] = {}
    for _ in range(_DRAWS_PER_PLAN * count):
        if len(plans) == count:
            break
        cuts = sorted(generator.choice(sorted(settings), min(2, len(settings)), replace=False))
        cuts = [int(cut) for cut in cuts][: int(generator.integers(1, 3))]
        pieces = [
            (cut, int(generator.choice(levels)), _pick(generator, [LOSSLESS, *settings[cut]]))
            for cut in cuts
        ]
        trial = trial_of(*pieces, (units, int(generator.choice(levels)), LOSSLESS))
        keeps = [stage.cut.keep for stage in trial.stages if stage.cut.keep]
        if keeps == sorted(set(keeps), reverse=True) and (
            _LEAST_TOTAL <= total_error(trial, single_errors) <= _MOST_TOTAL
        ):
            plans[trial] = None
    return list(plans)


def total_error(trial: Trial, single_errors: Mapping[Trial, float]) -> float:
    """Sum of the errors that each effect of a trial has alone.

    Args:
        trial: any trial.
        single_errors: by the trial of the single effect: `packed_cut`, `narrow_unit` and
            `whole` pictures.
    """
    units = trial.stages[-1].stop
    return sum(single_errors[effect] for effect in _effects(trial, units))


def _effects(trial: Trial, units: int) -> Iterable[Trial]:
    if trial.quality:
        yield whole(units, quality=trial.quality)
    for stage in trial.stages:
        if stage.cut != LOSSLESS:
            yield packed_cut(units, stage.stop, stage.cut)
        if stage.level:
            for unit in range(stage.start, stage.stop):
                yield narrow_unit(units, unit, stage.level)


def _pick(generator: np.random.Generator, options: Sequence[CutSetting]) -> CutSetting:
    return options[int(generator.integers(len(options)))]

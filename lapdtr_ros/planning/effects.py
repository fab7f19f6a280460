"""What levels and cut settings of a plan do to tokens, bytes, time and accuracy.

A cut that keeps k tokens leaves the next devices k tokens to run, until a unit needs the grid
again (`UnitProfile.token_global`). What a stage holds travels on by itself: a later cut that keeps
as many or more only packs it, and only a smaller number summarizes anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .accuracy import AccuracyTable, AccuracyTableError, Prediction
from .fleet import Requirements
from .plan import JPEG, LOSSLESS, CutSetting, Plan
from .profile import FLOAT_BYTES, ModelProfile

# Layout of packed features: a header, and per patch token the number of its kept one, as uint8 up
# to so many kept tokens and else as uint16.
_HEADER_BYTES = 12
_MOST_IN_A_BYTE = 256


@dataclass(frozen=True)
class Held:
    """Patch tokens that a device holds.

    Attributes:
        keep: how many, 0 for the whole grid.
        form: how they were chosen, empty for the whole grid.
    """

    keep: int = 0
    form: str = ''


GRID = Held()


@dataclass(frozen=True)
class CutCost:
    """What a setting makes of the features at a cut.

    Attributes:
        bytes: bytes that travel.
        held: tokens that the receiver gets.
        error: error that the packing adds.
        pack_s: seconds to pack on the machine of the accuracy table.
        unpack_s: the same to unpack.
        estimated: whether a figure was derived from others instead of measured.
    """

    bytes: int
    held: Held = GRID
    error: float = 0.0
    pack_s: float = 0.0
    unpack_s: float = 0.0
    estimated: bool = False


@dataclass(frozen=True)
class StageEffect:
    """A stage of a plan and what it gets and sends.

    Attributes:
        received: tokens that it holds when it starts.
        error: error of its level.
        sent: its output on the way to the next stage or the sink.
    """

    received: Held
    error: float
    sent: CutCost


def require_table(profile: ModelProfile) -> AccuracyTable:
    """The accuracy table of a model.

    Raises:
        AccuracyTableError: the model has none.
    """
    if profile.accuracy is None:
        raise AccuracyTableError(
            f'{profile.model} has no accuracy table, which levels and packed cuts need: make one '
            f"with 'lapdtr calibrate {profile.model}' and name it in model.profile"
        )
    return profile.accuracy


def held_after(profile: ModelProfile, held: Held, start: int, stop: int) -> Held:
    """Tokens after units ``start`` to ``stop - 1``."""
    return held if all(unit.token_global for unit in profile.units[start:stop]) else GRID


def time_factors(profile: ModelProfile, level: int, held: Held, start: int) -> tuple[float, ...]:
    """Time of each unit from ``start`` on, relative to full width and the whole grid.

    Args:
        profile: the model.
        level: elastic level.
        held: tokens that unit ``start`` gets.
        start: first unit.

    Raises:
        AccuracyTableError: the level was not calibrated.
    """
    widths = require_table(profile).level(level).seconds[start:] if level else None
    factors = []
    for place, unit in enumerate(profile.units[start:]):
        held = held if unit.token_global else GRID
        tokens = 1.0
        if held != GRID and unit.flops > 0.0:
            tokens = unit.flops_at(held.keep + profile.prefix_tokens) / unit.flops
        factors.append(tokens * (widths[place] if widths else 1.0))
    return tuple(factors)


def cut_cost(profile: ModelProfile, cut: int, setting: CutSetting, held: Held) -> CutCost:
    """What ``setting`` makes of the features before unit ``cut`` on a device that holds ``held``.

    Raises:
        AccuracyTableError: the setting was not calibrated.
    """
    if setting == LOSSLESS and held == GRID:
        return CutCost(profile.cut_bytes(cut))
    if held == GRID or 0 < setting.keep < held.keep:
        effect = require_table(profile).cut(cut, setting)
        sent = Held(setting.keep, setting.form)
        times = effect.pack_s, effect.unpack_s
        return CutCost(effect.bytes, sent, effect.error, *times, estimated=held != GRID)
    if setting.bits == 0 and not setting.transfer:
        return CutCost(_plain_bytes(profile, cut, held), held)
    return _passed_on(profile, cut, setting, held)


def stage_effects(plan: Plan, profile: ModelProfile) -> tuple[StageEffect, ...]:
    """What every stage of ``plan`` gets and sends.

    Raises:
        AccuracyTableError: the plan uses a level or setting that was not calibrated.
    """
    effects = []
    held = GRID
    for stage in plan.stages:
        error = 0.0
        if stage.level:
            before = require_table(profile).level(stage.level).error_before
            error = before[stage.stop] - before[stage.start]
        left = held_after(profile, held, stage.start, stage.stop)
        if stage.stop == len(profile):
            sent = CutCost(profile.cut_bytes(stage.stop))
        else:
            sent = cut_cost(profile, stage.stop, stage.cut, left)
        effects.append(StageEffect(held, error, sent))
        held = sent.held
    return tuple(effects)


def total_error(plan: Plan, profile: ModelProfile, requirements: Requirements) -> float:
    """Sum of the single errors of ``plan``; errors as `stage_effects`."""
    error = sum(effect.error + effect.sent.error for effect in stage_effects(plan, profile))
    return error + (requirements.jpeg_error if sends_jpeg(plan) else 0.0)


def sends_jpeg(plan: Plan) -> bool:
    """Whether the picture travels as JPEG."""
    return plan.picture == JPEG and plan.stages[0].device != plan.source


def predict(plan: Plan, profile: ModelProfile, requirements: Requirements) -> Prediction:
    """Accuracy of ``plan`` by the model's table; NaN without a table.

    Raises:
        AccuracyTableError: the plan uses a level or setting that was not calibrated.
    """
    effects = stage_effects(plan, profile)
    total = total_error(plan, profile, requirements)
    table = profile.accuracy
    if table is None:
        return Prediction(math.nan, 0.0, False)
    return Prediction(
        accuracy=float(table.accuracy_at(total)),
        margin=table.margin if total > 0.0 else 0.0,
        estimated=any(effect.sent.estimated for effect in effects),
    )


def _plain_bytes(profile: ModelProfile, cut: int, held: Held) -> int:
    """Float32 tokens that were summarized before."""
    unit = profile.units[cut - 1]
    per_token = FLOAT_BYTES * unit.embedding_dim
    index = 1 if held.keep <= _MOST_IN_A_BYTE else 2
    assignment = (unit.tokens - profile.prefix_tokens) * index
    return _HEADER_BYTES + assignment + (held.keep + profile.prefix_tokens) * per_token


def _passed_on(profile: ModelProfile, cut: int, setting: CutSetting, held: Held) -> CutCost:
    """Packing of tokens that were chosen before: the bytes of as many, the error of the bits."""
    table = require_table(profile)
    alike = CutSetting(held.keep, held.form, setting.bits, setting.transfer)
    effect = table.cut(cut, alike)
    alone = table.cut_effects.get((cut, CutSetting(bits=setting.bits, transfer=setting.transfer)))
    error = effect.error if alone is None else min(alone.error, effect.error)
    return CutCost(effect.bytes, held, error, effect.pack_s, effect.unpack_s, estimated=True)

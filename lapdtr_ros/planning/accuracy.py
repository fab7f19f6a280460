"""What a model loses by running narrower and by sending less, measured once and predicted after.

`lapdtr calibrate` writes one `AccuracyTable` per model and weights, ``config/models/<name>.yaml``.
Every effect has one figure, its *error* (the NMSE of the last features against the undisturbed
model). Errors add up while they are small, so a plan's accuracy is predicted in three steps::

    total = sum of the errors of its picture, levels and cuts
    joint = exp(alpha + gamma * log(total))          (fitted on measured joint plans)
    accuracy = monotone curve(joint)

Each step rises or falls steadily, so a limit on the accuracy is a limit on the total, which is what
lets the solvers treat it as one more cost that adds up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lapdtr_ros.errors import LapdtrError

from .plan import BITS, FORMS, LOSSLESS, MAX_LEVEL, CutSetting, PlanError

# Version of the file's layout.
FORMAT = 1

Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class AccuracyTableError(LapdtrError):
    """A table that cannot be read or does not fit the model, or an effect it does not hold."""


class _Record(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True)


class LevelEffect(_Record):
    """All units at one elastic level; every list has an entry per unit of the model.

    Attributes:
        level: number of the level; level 0 is full width and has no record.
        flops: FLOPs of the unit at this level / at full width.
        seconds: the same of its measured time.
        parameter_bytes: the same of the weights a device holds for it.
        error: error when this unit alone runs at this level.
        accuracy: measured with all units at this level; None when it was not measured.
    """

    level: Annotated[int, Field(ge=1, le=MAX_LEVEL)]
    flops: tuple[Positive, ...]
    seconds: tuple[Positive, ...]
    parameter_bytes: tuple[Positive, ...]
    error: tuple[NonNegative, ...]
    accuracy: Share | None = None

    @cached_property
    def error_before(self) -> tuple[float, ...]:
        """Running sum of `error`: entry ``k`` covers units ``0..k-1``."""
        return tuple(accumulate(self.error, initial=0.0))


class CutEffect(_Record):
    """One way to pack the features of one cut.

    Attributes:
        cut: cut ``k`` lies before unit ``k``.
        keep: patch tokens that are sent, 0 for all; see `CutSetting`, also for the next three.
        form: how they are chosen.
        bits: bits per value, 0 for float32.
        transfer: adapter of the receiver.
        bytes: measured bytes of the packed features, with scales, assignment and prefix tokens.
        error: error when this cut alone is packed so.
        pack_s: seconds to pack at the sender, on the machine of `AccuracyTable.flops_per_s`.
        unpack_s: the same at the receiver.
        accuracy: measured with this setting alone; None when it was not measured.
    """

    cut: Annotated[int, Field(ge=1)]
    keep: Annotated[int, Field(ge=0)] = 0
    form: str = ''
    bits: int = 0
    transfer: str = ''
    bytes: Annotated[int, Field(gt=0)]
    error: NonNegative
    pack_s: NonNegative = 0.0
    unpack_s: NonNegative = 0.0
    accuracy: Share | None = None

    @model_validator(mode='after')
    def _is_a_setting(self) -> CutEffect:
        try:
            setting = self.setting
        except PlanError as error:
            raise ValueError(str(error)) from None
        if setting == LOSSLESS:
            raise ValueError(
                f'cut {self.cut} lists the lossless setting, which needs no record: remove it, '
                f'or give keep (with a form of {", ".join(FORMS)}), bits (of {BITS}) or transfer'
            )
        return self

    @property
    def setting(self) -> CutSetting:
        """The same as a part of a plan."""
        return CutSetting(self.keep, self.form, self.bits, self.transfer)


class PictureEffect(_Record):
    """The camera picture as JPEG, which is a legal thing to send at cut 0.

    Attributes:
        quality: JPEG quality, 1 to 100.
        bytes: mean bytes of a picture.
        error: error when the picture is sent so.
        accuracy: measured with this setting alone; None when it was not measured.
    """

    quality: Annotated[int, Field(ge=1, le=100)]
    bytes: Annotated[int, Field(gt=0)]
    error: NonNegative
    accuracy: Share | None = None


class JointFit(_Record):
    """How single errors become a joint one: ``log(joint) = alpha + gamma * log(total)``.

    Attributes:
        alpha: offset; 0 where errors simply add.
        gamma: slope, above 1 where they add up faster than that.
        plans: measured joint plans that it was fitted on.
    """

    alpha: float = 0.0
    gamma: Positive = 1.0
    plans: Annotated[int, Field(ge=0)] = 0


class Curve(_Record):
    """Joint error to accuracy, linear between points and flat beyond the last.

    Attributes:
        error: rising, from 0.
        accuracy: never rising; the first is that of the undisturbed model.
    """

    error: tuple[NonNegative, ...]
    accuracy: tuple[Share, ...]

    @model_validator(mode='after')
    def _is_monotone(self) -> Curve:
        if len(self.error) != len(self.accuracy) or len(self.error) < 2:
            raise ValueError('error and accuracy need the same number of points, at least 2')
        if self.error[0] != 0.0 or any(np.diff(self.error) <= 0.0):
            raise ValueError('error must start at 0 and rise')
        if any(np.diff(self.accuracy) > 0.0):
            raise ValueError('accuracy must not rise with the error')
        return self


@dataclass(frozen=True)
class Prediction:
    """Accuracy of a plan.

    Attributes:
        accuracy: predicted, 0 to 1.
        margin: 90 % error of such predictions; 0 for a plan without loss.
        estimated: whether an effect was derived from others instead of measured.
    """

    accuracy: float
    margin: float
    estimated: bool


class AccuracyTable(_Record):
    """All measured effects on one model with one set of weights.

    Attributes:
        format: `FORMAT`.
        model: name of the model.
        weights: weights identifier that was measured.
        weights_digest: SHA-256 of the weight file, hexadecimal; empty for weights without a file.
        calibration: calibration file that levels and cuts need; empty when there is none.
        calibration_digest: its SHA-256, hexadecimal.
        units: number of units of the model.
        metric: what `accuracy` is, e.g. ``AP50 of all vehicles, global sort``.
        dataset: what it was measured on, for people.
        frames: frames (moments) of that.
        command: command that wrote the file.
        accuracy: of the undisturbed model, 0 to 1.
        flops_per_s: effective rate of the machine that packing times were taken on (FLOPs of the
            model / its time), which carries them over to other devices.
        levels: elastic levels.
        cuts: ways to pack features.
        pictures: ways to send the picture.
        joint: joint error from single ones.
        curve: accuracy from the joint error.
        margin: 90 % error of the predicted accuracy on plans that were not fitted.
    """

    format: int = FORMAT
    model: str
    weights: str
    weights_digest: str = ''
    calibration: str = ''
    calibration_digest: str = ''
    units: Annotated[int, Field(ge=1)]
    metric: str
    dataset: str
    frames: Annotated[int, Field(ge=1)]
    command: str
    accuracy: Share
    flops_per_s: Positive
    levels: tuple[LevelEffect, ...] = ()
    cuts: tuple[CutEffect, ...] = ()
    pictures: tuple[PictureEffect, ...] = ()
    joint: JointFit = JointFit()
    curve: Curve
    margin: Share = 0.0

    @model_validator(mode='after')
    def _fits_together(self) -> AccuracyTable:
        if self.format != FORMAT:
            raise ValueError(f'format is {self.format}, this version reads {FORMAT}: recalibrate')
        if self.curve.accuracy[0] != self.accuracy:
            raise ValueError(
                f'curve.accuracy starts at {self.curve.accuracy[0]}, but accuracy is '
                f'{self.accuracy}: the curve starts with the undisturbed model'
            )
        for level in self.levels:
            for key in ('flops', 'seconds', 'parameter_bytes', 'error'):
                if len(getattr(level, key)) != self.units:
                    raise ValueError(
                        f'level {level.level}: {key} has {len(getattr(level, key))} entries for '
                        f'{self.units} units'
                    )
        for effect in self.cuts:
            if effect.cut >= self.units:
                raise ValueError(f'cut {effect.cut} of a model of {self.units} units')
        _refuse_twice('level', [level.level for level in self.levels])
        _refuse_twice('cut setting', [(e.cut, e.setting) for e in self.cuts])
        _refuse_twice('picture quality', [p.quality for p in self.pictures])
        return self

    def check_fits(self, model: str, units: int) -> None:
        """Refuse a table of another model.

        Raises:
            AccuracyTableError: other name or number of units.
        """
        if (self.model, self.units) != (model, units):
            raise AccuracyTableError(
                f'the accuracy table is of {self.model} with {self.units} units, the model is '
                f"{model} with {units}: make one with 'lapdtr calibrate {model}'"
            )

    @cached_property
    def level_effects(self) -> dict[int, LevelEffect]:
        """Levels by number."""
        return {level.level: level for level in self.levels}

    @cached_property
    def cut_effects(self) -> dict[tuple[int, CutSetting], CutEffect]:
        """Ways to pack by cut and setting."""
        return {(effect.cut, effect.setting): effect for effect in self.cuts}

    def level(self, number: int) -> LevelEffect:
        """The record of an elastic level other than 0.

        Raises:
            AccuracyTableError: the level was not calibrated.
        """
        try:
            return self.level_effects[number]
        except KeyError:
            known = ', '.join(map(str, (0, *sorted(self.level_effects))))
            raise AccuracyTableError(
                f'elastic level {number} of {self.model} was not calibrated: use one of {known}'
            ) from None

    def cut(self, cut: int, setting: CutSetting) -> CutEffect:
        """The record of a way to pack the features of ``cut``.

        Raises:
            AccuracyTableError: it was not calibrated.
        """
        try:
            return self.cut_effects[cut, setting]
        except KeyError:
            raise AccuracyTableError(
                f'cut {cut} of {self.model}, keep {setting.keep}, form {setting.form!r}, bits '
                f'{setting.bits}, transfer {setting.transfer!r} was not calibrated: calibrate it '
                f'or use another setting'
            ) from None

    def picture(self, quality: int) -> PictureEffect:
        """The record of JPEG pictures of ``quality``.

        Raises:
            AccuracyTableError: it was not calibrated.
        """
        for effect in self.pictures:
            if effect.quality == quality:
                return effect
        known = ', '.join(str(effect.quality) for effect in self.pictures) or 'none'
        raise AccuracyTableError(
            f'JPEG quality {quality} of {self.model} was not calibrated: use one of {known}'
        )

    def accuracy_at(self, total: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Accuracy at a sum of single errors; never rises with it."""
        total = np.maximum(total, 0.0)
        with np.errstate(divide='ignore'):
            joint = np.exp(self.joint.alpha + self.joint.gamma * np.log(total))
        return np.interp(joint, self.curve.error, self.curve.accuracy)

    def largest_total(self, min_accuracy: float) -> float:
        """Largest sum of errors whose accuracy, less the margin, is at least ``min_accuracy``.

        Returns:
            0 when nothing may be lost, infinity when everything may.
        """
        wanted = min_accuracy + self.margin
        if wanted > self.accuracy:
            return 0.0
        errors, accuracies = self.curve.error, self.curve.accuracy
        if accuracies[-1] >= wanted:
            return math.inf
        # The last point that is good enough, and the straight line down from it.
        last = max(i for i, accuracy in enumerate(accuracies) if accuracy >= wanted)
        fall = accuracies[last] - accuracies[last + 1]
        share = (accuracies[last] - wanted) / fall
        joint = errors[last] + share * (errors[last + 1] - errors[last])
        if joint <= 0.0:
            return 0.0
        return math.exp((math.log(joint) - self.joint.alpha) / self.joint.gamma)


def load_table(path: Path | str) -> AccuracyTable:
    """Read a table.

    Raises:
        AccuracyTableError: no such file, not YAML, or a missing, unknown or bad entry.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise AccuracyTableError(
            f"{path}: {error.strerror}; make it with 'lapdtr calibrate'"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AccuracyTableError(f'{path}: not a YAML file: {error}') from None
    try:
        return AccuracyTable.model_validate(content)
    except ValidationError as error:
        lines = [f'{path}: the accuracy table cannot be used:']
        for problem in error.errors():
            key = '.'.join(str(part) for part in problem['loc']) or 'file'
            lines.append(f'  {key}: {problem["msg"].removeprefix("Value error, ")}')
        raise AccuracyTableError('\n'.join(lines)) from None


def save_table(table: AccuracyTable, path: Path | str) -> None:
    """Write a table as readable YAML, one effect a line."""
    text = yaml.safe_dump(
        _plain(table.model_dump(exclude_none=True)),
        sort_keys=False,
        default_flow_style=None,
        width=100_000,
    )
    Path(path).write_text(text, encoding='utf-8')


def _plain(value: Any) -> Any:
    """Tuples as lists, floats with as many digits as are worth reading."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return float(f'{value:.6g}') if isinstance(value, float) else value


def _refuse_twice(kind: str, keys: list[Any]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f'{kind} {key} is listed twice: keep one')

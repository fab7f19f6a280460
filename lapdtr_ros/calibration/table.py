"""Put measured effects together as an accuracy table."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lapdtr_ros.elastic.measure import unit_flops
from lapdtr_ros.elastic.store import apply_level
from lapdtr_ros.features.calibration import Calibration
from lapdtr_ros.features.packing import packed_bytes
from lapdtr_ros.models.facts import input_shape, model_spec, profile_model
from lapdtr_ros.models.preprocess import encode_jpeg
from lapdtr_ros.models.profiling import measure_unit_times
from lapdtr_ros.models.weights import FileWeights, StageModule, load_units, open_weights
from lapdtr_ros.planning.accuracy import AccuracyTable, CutEffect, LevelEffect, PictureEffect
from lapdtr_ros.planning.plan import CutSetting

from . import candidates
from .frames import Picture
from .options import CalibrationOptions
from .prediction import fit_curve, fit_joint, margin
from .trials import Trial, TrialRunner

METRIC = 'AP50 of all vehicles, seen from above, x and y within 51.2 m, ranked over all frames'
_TIMING_ROUNDS = 5


@dataclass(frozen=True)
class Measured:
    """Results of all trials.

    Attributes:
        errors: NMSE of the last features by trial.
        accuracies: AP50 of those that were rated; the first is the undisturbed model.
        joint: trials that combine several effects.
    """

    errors: Mapping[Trial, float]
    accuracies: Mapping[Trial, float]
    joint: Sequence[Trial]


def make_table(
    options: CalibrationOptions,
    runner: TrialRunner,
    pictures: Sequence[Picture],
    levels: Sequence[int],
    settings: Mapping[int, Sequence[CutSetting]],
    measured: Measured,
) -> AccuracyTable:
    """Fit the predictor and collect all effects.

    Args:
        options: of the run.
        runner: ran the trials.
        pictures: trial pictures.
        levels: elastic levels but 0.
        settings: packings by cut.
        measured: results.
    """
    units = runner.units
    undisturbed, *lossy = measured.accuracies
    # Four digits of an accuracy are more than its noise leaves; the table is read by people.
    baseline = round(measured.accuracies[undisturbed], 6)
    totals = {t: candidates.total_error(t, measured.errors) for t in measured.joint}
    joint = fit_joint(list(totals.values()), [measured.errors[t] for t in totals])
    errors = [measured.errors[trial] for trial in lossy]
    accuracies = [measured.accuracies[trial] for trial in lossy]
    lossy_totals = [candidates.total_error(trial, measured.errors) for trial in lossy]
    path = options.out / options.calibration
    stages = _stages(options, levels)
    times = _unit_times(stages)
    weights = open_weights(options.model, options.weights)
    return AccuracyTable(
        model=options.model,
        weights=_shipped_name(options.weights),
        weights_digest=_sha256(weights.path) if isinstance(weights, FileWeights) else '',
        calibration=options.calibration,
        calibration_digest=_sha256(path),
        units=units,
        metric=METRIC,
        dataset=options.dataset.name,
        frames=options.frames,
        command=options.command,
        accuracy=baseline,
        flops_per_s=profile_model(options.model).flops / sum(times[0]),
        levels=tuple(_level_effect(level, stages, times, measured, units) for level in levels),
        cuts=tuple(_cut_effects(options, runner, pictures[0], settings, measured)),
        pictures=tuple(_picture_effects(pictures, measured, units)),
        joint=joint,
        curve=fit_curve(baseline, errors, accuracies),
        margin=margin(baseline, joint, lossy_totals, errors, accuracies),
    )


def _stages(options: CalibrationOptions, levels: Sequence[int]) -> dict[int, StageModule]:
    """The whole model at every level."""
    units = len(model_spec(options.model).unit_names)
    stage = load_units(options.model, 0, units, options.weights)
    source = Calibration(options.out / options.calibration, options.model, options.weights)
    return {level: apply_level(stage, level, source) for level in (0, *levels)}


def _unit_times(stages: Mapping[int, StageModule]) -> dict[int, np.ndarray]:
    """Seconds of each unit by level: least of several rounds, in turns, so that load cancels."""
    rounds = [
        {level: measure_unit_times(stage, repeats=1, warmup=1) for level, stage in stages.items()}
        for _ in range(_TIMING_ROUNDS)
    ]
    return {level: np.min([times[level] for times in rounds], axis=0) for level in stages}


def _level_effect(
    level: int,
    stages: Mapping[int, StageModule],
    times: Mapping[int, np.ndarray],
    measured: Measured,
    units: int,
) -> LevelEffect:
    flops, seconds, parameter_bytes, errors = [], [], [], []
    for number in range(units):
        full, narrow = stages[0].units[number], stages[level].units[number]
        features = torch.zeros(input_shape(stages[0].model, number))
        same = narrow is full
        flops.append(1.0 if same else unit_flops(narrow, features) / unit_flops(full, features))
        seconds.append(1.0 if same else float(times[level][number] / times[0][number]))
        parameter_bytes.append(_bytes(narrow) / _bytes(full))
        errors.append(measured.errors[candidates.narrow_unit(units, number, level)])
    return LevelEffect(
        level=level,
        flops=tuple(flops),
        seconds=tuple(seconds),
        parameter_bytes=tuple(parameter_bytes),
        error=tuple(errors),
        accuracy=measured.accuracies.get(candidates.whole(units, level)),
    )


def _cut_effects(
    options: CalibrationOptions,
    runner: TrialRunner,
    picture: Picture,
    settings: Mapping[int, Sequence[CutSetting]],
    measured: Measured,
) -> list[CutEffect]:
    features = runner.cut_features(picture)
    layout = model_spec(options.model).layout
    effects = []
    for cut, ways in settings.items():
        for setting in ways:
            trial = candidates.packed_cut(runner.units, cut, setting)
            pack_s, unpack_s = runner.pack_times(features[cut], cut, setting)
            effects.append(
                CutEffect(
                    cut=cut,
                    keep=setting.keep,
                    form=setting.form,
                    bits=setting.bits,
                    bytes=packed_bytes(features[cut].shape, layout, setting),
                    error=measured.errors[trial],
                    pack_s=pack_s,
                    unpack_s=unpack_s,
                    accuracy=measured.accuracies.get(trial),
                )
            )
    return effects


def _picture_effects(
    pictures: Sequence[Picture], measured: Measured, units: int
) -> list[PictureEffect]:
    effects = []
    for quality in candidates.QUALITIES:
        trial = candidates.whole(units, quality=quality)
        sizes = [len(encode_jpeg(picture, quality)) for picture in pictures]
        effects.append(
            PictureEffect(
                quality=quality,
                bytes=round(sum(sizes) / len(sizes)),
                error=measured.errors[trial],
                accuracy=measured.accuracies.get(trial),
            )
        )
    return effects


def _bytes(unit: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in unit.state_dict().values())


def _shipped_name(weights: str) -> str:
    """The identifier without this machine's folders: installed weights are found by their name."""
    return weights.rpartition('/')[2]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

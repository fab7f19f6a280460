"""What ``lapdtr calibrate`` does: make the calibration file and the accuracy table of a detector.

1. Fit on calibration pictures: static means of all cuts and the elastic levels.
2. On a few validation pictures: the error of every effect alone and of random combined plans.
3. On all validation moments: the accuracy of a selection of them.
4. Fit the predictor and write the table.

Every picture's results are kept at once; a run that was stopped goes on there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from lapdtr_ros.elastic.measure import FeatureError
from lapdtr_ros.elastic.store import known_levels
from lapdtr_ros.evaluation.average_precision import ApResult
from lapdtr_ros.features.calibration import Calibration
from lapdtr_ros.models.facts import DETECTION, model_spec
from lapdtr_ros.models.layout import NCHW
from lapdtr_ros.models.weights import weights_digest
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.planning.accuracy import AccuracyTable, save_table
from lapdtr_ros.planning.plan import CutSetting

from . import candidates
from .build import build_calibration
from .checkpoint import Arrays, Checkpoint
from .errors import CalibrateError
from .frames import Moment, Picture, Progress, ValidationFrames, load_moments
from .options import CalibrationOptions
from .table import Measured, make_table
from .trials import Trial, TrialRunner


@dataclass(frozen=True)
class CalibrationReport:
    """What a run found.

    Attributes:
        table: the accuracy table, as written.
        rated: AP of every trial whose accuracy was measured; the first is the undisturbed model.
        errors: NMSE of the last features by trial.
    """

    table: AccuracyTable
    rated: Mapping[Trial, ApResult]
    errors: Mapping[Trial, float]


def calibrate(options: CalibrationOptions, progress: Progress) -> CalibrationReport:
    """Run all steps and write both files.

    Args:
        options: see there.
        progress: wraps a loop with a title.

    Raises:
        CalibrateError: a model without detections, or data that do not suffice.
        ElasticError: a model that cannot shrink.
        DatasetError: scenes that cannot be read.
        WeightsError: the weights cannot be had or do not fit.
    """
    spec = model_spec(options.model)
    if spec.head != DETECTION:
        raise CalibrateError(
            f'{options.model} has head {spec.head!r}: accuracies are measured of detections, add '
            f'+{DETECTION} and give weights that fit'
        )
    moments = load_moments(options.dataset, options.model, options.frames, options.seed, progress)
    trial_pictures = spread_pictures(moments, options.trial_pictures)
    path = options.out / options.calibration
    checkpoint = Checkpoint(
        path.with_suffix('.partial'),
        {**vars(options), 'digest': weights_digest(options.model, options.weights)},
    )
    checkpoint.get('built', lambda: _built(options, trial_pictures, progress))
    calibration = Calibration(path, options.model, options.weights)
    levels = known_levels(calibration)
    runner = TrialRunner(options.model, options.weights, path, levels, options.threads)
    settings = {
        cut: candidates.cut_settings(spec.layout, _patch_tokens(options.model))
        for cut in range(1, runner.units)
    }
    singles = _single_trials(runner.units, levels, settings)
    errors = _errors(options, runner, trial_pictures, singles, checkpoint, 'single', progress)
    combined = candidates.combined(
        runner.units, (0, *levels), settings, errors, options.plans, options.seed
    )
    whole = [candidates.whole(runner.units, level) for level in levels]
    errors |= _errors(
        options, runner, trial_pictures, [*whole, *combined], checkpoint, 'joint', progress
    )
    rated_trials = _rated_trials(options, runner.units, levels, settings, combined)
    validation = ValidationFrames(options.model, moments, options.dataset.name)
    rated = _rate(runner, validation, rated_trials, checkpoint, progress)
    measured = Measured(errors, {t: r.ap50 for t, r in rated.items()}, [*whole, *combined])
    table = make_table(options, runner, trial_pictures, levels, settings, measured)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    save_table(table, options.table)
    checkpoint.remove()
    return CalibrationReport(table, rated, errors)


def spread_pictures(moments: Sequence[Moment], count: int) -> list[Picture]:
    """Single pictures of as many moments as possible, of all cameras in turn.

    Raises:
        CalibrateError: there are fewer moments.
    """
    if count > len(moments):
        raise CalibrateError(
            f'{count} trial pictures of {len(moments)} moments: give more frames or fewer pictures'
        )
    return [moments[i].views[i % len(moments[i].views)].picture for i in range(count)]


def _built(
    options: CalibrationOptions, trial_pictures: Sequence[Picture], progress: Progress
) -> Arrays:
    build_calibration(options, trial_pictures, options.out / options.calibration, progress)
    return {}


def _patch_tokens(model: str) -> int:
    height, width = model_spec(model).layout.grid
    return height * width


def _single_trials(
    units: int, levels: Sequence[int], settings: Mapping[int, Sequence[CutSetting]]
) -> list[Trial]:
    packed = [candidates.packed_cut(units, cut, s) for cut, ways in settings.items() for s in ways]
    narrow = [
        candidates.narrow_unit(units, unit, level) for level in levels for unit in range(units)
    ]
    pictures = [candidates.whole(units, quality=quality) for quality in candidates.QUALITIES]
    return [*packed, *narrow, *pictures]


def _rated_trials(
    options: CalibrationOptions,
    units: int,
    levels: Sequence[int],
    settings: Mapping[int, Sequence[CutSetting]],
    combined: Sequence[Trial],
) -> list[Trial]:
    """The undisturbed model first; then whole levels, a middle cut, pictures, combined plans."""
    middle = units // 2
    return [
        candidates.whole(units),
        *(candidates.whole(units, level) for level in levels),
        *(candidates.packed_cut(units, middle, setting) for setting in settings[middle][1::2]),
        *(candidates.whole(units, quality=quality) for quality in candidates.QUALITIES[1::2]),
        *combined[: options.rated_plans],
    ]


def _errors(
    options: CalibrationOptions,
    runner: TrialRunner,
    pictures: Sequence[Picture],
    trials: Sequence[Trial],
    checkpoint: Checkpoint,
    name: str,
    progress: Progress,
) -> dict[Trial, float]:
    """Mean error of the last features by trial."""
    undisturbed = candidates.whole(runner.units)
    reference = [runner.run(picture, [undisturbed])[0].features for picture in pictures]
    error = FeatureError(reference, model_spec(options.model).layout.kind == NCHW)

    def of_picture(index: int) -> Arrays:
        outcomes = runner.run(pictures[index], trials)
        return {'errors': np.array([error.of(index, o.features) for o in outcomes])}

    rows = [
        checkpoint.get(f'{name}_{index}', partial(of_picture, index))['errors']
        for index in progress(range(len(pictures)), f'errors ({name}, {len(trials)} plans)')
    ]
    return dict(zip(trials, np.mean(rows, axis=0).tolist(), strict=True))


def _rate(
    runner: TrialRunner,
    validation: ValidationFrames,
    trials: Sequence[Trial],
    checkpoint: Checkpoint,
    progress: Progress,
) -> dict[Trial, ApResult]:
    """AP of every trial on all moments."""

    def of_moment(moment: Moment) -> Arrays:
        found = [
            [validation.boxes(o.values, view) for o in runner.run(view.picture, trials)]
            for view in moment.views
        ]
        flat = [boxes for of_view in found for boxes in of_view]
        together = Boxes.concatenate(flat)
        return {
            'vectors': together.vectors,
            'scores': together.scores,
            'counts': np.array([len(boxes) for boxes in flat]),
        }

    kept = [
        checkpoint.get(f'moment_{index}', partial(of_moment, moment))
        for index, moment in enumerate(
            progress(validation.moments, f'accuracies ({len(trials)} plans)')
        )
    ]
    found = [_boxes_by_trial(arrays, len(trials)) for arrays in kept]
    return {
        trial: validation.accuracy([moment[place] for moment in found])
        for place, trial in enumerate(trials)
    }


def _boxes_by_trial(arrays: Arrays, trials: int) -> list[list[Boxes]]:
    """Boxes by trial and view, from what was kept of a moment."""
    ends = np.cumsum(arrays['counts'])
    parts = [
        Boxes.from_vectors(
            arrays['vectors'][end - count : end], arrays['scores'][end - count : end]
        )
        for end, count in zip(ends, arrays['counts'], strict=True)
    ]
    return [parts[place::trials] for place in range(trials)]

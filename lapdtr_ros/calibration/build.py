"""Make the calibration file: static means of the cuts and elastic levels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lapdtr_ros.elastic.fit import ElasticLevels, fit_levels
from lapdtr_ros.elastic.levels import describe
from lapdtr_ros.elastic.measure import run_frames
from lapdtr_ros.features.calibration import RunningMean, mean_name, write_calibration
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.preprocess import picture_to_input
from lapdtr_ros.models.weights import StageModule, load_units

from .frames import Picture, Progress, load_moments
from .options import CalibrationOptions


def build_calibration(
    options: CalibrationOptions, trial: Sequence[Picture], path: Path, progress: Progress
) -> None:
    """Fit and write the calibration file.

    Args:
        options: of the run.
        trial: validation pictures, on which the steps of the levels are ranked.
        path: file to write.
        progress: wraps a loop with a title.
    """
    units = len(model_spec(options.model).unit_names)
    stage = load_units(options.model, 0, units, options.weights)
    torch.set_num_threads(options.threads)
    frames = _inputs(options.model, _fit_pictures(options, progress))
    means = cut_means(stage, frames, progress)
    levels = fit_levels(stage, frames, _inputs(options.model, trial), options.savings, progress)
    write_calibration(
        path,
        options.model,
        options.weights,
        means | levels.tensors,
        command=options.command,
        data=f'{options.fit_pictures} pictures of {options.fit_dataset.name}, seed {options.seed}',
        notes={'elastic': json.dumps(_readable(stage, levels))},
    )


def cut_means(
    stage: StageModule, frames: Sequence[Tensor], progress: Progress
) -> dict[str, Tensor]:
    """Mean input of every unit but the first, float16, by its name in the calibration file."""
    means = [RunningMean() for _ in stage.units[1:]]
    for picture in progress(frames, 'means of cuts'):
        features = picture
        for unit, mean in zip(stage.units, means, strict=False):
            (features,) = run_frames([unit], [features])
            mean.add(features)
    return {mean_name(cut): mean.mean() for cut, mean in enumerate(means, start=1)}


def _fit_pictures(options: CalibrationOptions, progress: Progress) -> list[Picture]:
    """Pictures to fit on, one of each of many moments rather than all of a few."""
    moments = load_moments(
        options.fit_dataset, options.model, options.fit_pictures, options.seed, progress
    )
    return [moment.views[place % len(moment.views)].picture for place, moment in enumerate(moments)]


def _inputs(model: str, pictures: Sequence[Picture]) -> list[Tensor]:
    spec = model_spec(model)
    return [torch.from_numpy(picture_to_input(picture, spec)) for picture in pictures]


def _readable(stage: StageModule, levels: ElasticLevels) -> dict[str, object]:
    """What people may want to know of the levels, for the metadata of the file."""
    return {
        'levels': {
            str(number): describe(widths, stage.unit_names)
            for number, widths in enumerate(levels.levels, start=1)
        },
        'full_width_at_every_level': levels.rigid,
        'steps': [
            {
                'unit': stage.unit_names[step.part[0]],
                'part': step.part[1],
                'width': step.width,
                'nmse': float(f'{step.error:.3g}'),
                'saved_flops': step.flops,
            }
            for step in levels.steps
        ],
    }

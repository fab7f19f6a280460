"""``lapdtr calibrate``: measure what a detector loses by running narrower and sending less."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lapdtr_ros.calibration.options import CalibrationOptions


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command."""
    defaults = {
        field: value for field, value in vars(CalibrationOptions).items() if field[0] != '_'
    }
    parser = verbs.add_parser(
        'calibrate',
        help='measure what elastic levels and packed cuts cost in accuracy',
        description='Fits the elastic levels of a detector and measures, on validation scenes, '
        'what levels, packed cuts and JPEG pictures do to its accuracy, bytes and time. Writes '
        'OUT/weights/NAME.calibration.safetensors, which devices need, and '
        'OUT/config/models/NAME.yaml, from which plans are made. A run that was stopped goes on '
        'where it was.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('model', help='e.g. vit_small_patch14_focus:blocks.8@308x420+detection')
    add('--weights', required=True, help='weights identifier')
    add('--dataset', type=Path, required=True, help='OPV2V directory to measure on')
    add(
        '--fit-dataset',
        type=Path,
        required=True,
        help='OPV2V directory to fit on, other scenes than --dataset',
    )
    add('--out', type=Path, required=True, help='folder for both files')
    add('--name', help='of both files; default: that of the weights')
    add('--frames', type=int, default=defaults['frames'], help='moments to measure accuracy on')
    add('--fit-pictures', type=int, default=defaults['fit_pictures'])
    add('--trial-pictures', type=int, default=defaults['trial_pictures'])
    add('--plans', type=int, default=defaults['plans'], help='combined plans to measure')
    add('--rated-plans', type=int, default=defaults['rated_plans'], help='of these, with accuracy')
    add('--seed', type=int, default=defaults['seed'])
    add('--threads', type=int, default=defaults['threads'], help='of torch')
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb."""
    from lapdtr_ros.calibration.run import CalibrationReport, calibrate

    names = set(CalibrationOptions.__dataclass_fields__) & set(vars(options))
    chosen = {name: getattr(options, name) for name in names}
    chosen['name'] = options.name or Path(options.weights).stem.replace(':', '_')
    settings = CalibrationOptions(**chosen)

    def progress(items: Iterable[Any], title: str) -> Iterable[Any]:
        return tqdm(list(items), desc=title, leave=False)

    report: CalibrationReport = calibrate(settings, progress)
    Console().print(_rated(report))
    print(f'{settings.table}\n{settings.out / settings.calibration}')
    return 0


def _rated(report: Any) -> Table:
    table = Table(title=f'{report.table.model}: {report.table.metric}')
    for heading in ('plan', 'NMSE', 'AP30', 'AP50', 'AP70'):
        table.add_column(heading)
    for trial, result in report.rated.items():
        error = report.errors.get(trial, 0.0)
        values = (f'{value:.3f}' for value in (result.ap30, result.ap50, result.ap70))
        table.add_row(str(trial), f'{error:.4f}', *values)
    return table

"""``lapdtr train``: train the camera-based 3D detector on an OPV2V directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from lapdtr_ros.training.trainer import PRECISIONS, TrainingOptions, train


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command."""
    defaults = {field: value for field, value in vars(TrainingOptions).items() if field[0] != '_'}
    parser = verbs.add_parser(
        'train',
        help='train the camera-based 3D detector',
        description='Trains the detection head, with all or the last units of its backbone, on the '
        'camera pictures of an OPV2V directory. After every epoch the weights are written, with a '
        'log of the metrics next to them.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--model', required=True, help='e.g. efficientvit_m4:stages.1.blocks.1@384x512+detection')
    add('--dataset', type=Path, required=True, help='OPV2V directory to train on')
    add('--validate', type=Path, required=True, help='OPV2V directory to validate on')
    add('--out', type=Path, required=True, help='.safetensors file to write')
    add(
        '--weights',
        default=defaults['weights'],
        help='at the start, of the backbone or of the whole model',
    )
    frozen = parser.add_mutually_exclusive_group()
    frozen.add_argument(
        '--frozen-units', type=int, default=0, metavar='N', help='train only what follows N units'
    )
    frozen.add_argument(
        '--frozen-backbone',
        action='store_const',
        const=-1,
        default=argparse.SUPPRESS,
        dest='frozen_units',
        help='train only the head',
    )
    add('--epochs', type=int, default=defaults['epochs'])
    add('--batch', type=int, default=defaults['batch'], help='pictures per step')
    add('--lr', type=float, default=defaults['learning_rate'], dest='learning_rate')
    add('--weight-decay', type=float, default=defaults['weight_decay'])
    add('--ema', type=float, default=defaults['ema'], help='decay of the average of weights')
    add('--seed', type=int, default=defaults['seed'])
    add('--device', default=defaults['device'], help='auto, cpu, cuda, cuda:1, ...')
    add('--threads', type=int, default=defaults['threads'], help='of torch; 0: its default')
    add('--workers', type=int, default=defaults['workers'], help='processes that load pictures')
    add('--precision', choices=PRECISIONS, default=defaults['precision'])
    add('--frame-step', type=int, default=defaults['frame_step'], help='use every Nth timestamp')
    add('--cache', type=Path, default=defaults['cache'], help='folder for frozen features')
    add('--resume', action='store_true', help='go on from the last complete epoch')
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb."""
    names = set(TrainingOptions.__dataclass_fields__) & set(vars(options))
    log = train(TrainingOptions(**{n: getattr(options, n) for n in names}), options.resume)
    print(f'{options.out}: validation AP50 {log["epochs"][-1]["validation_ap50"]:.3f}')
    return 0

"""The ``lapdtr`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__
from .commands import bag, calibrate, demo, evaluate, generate, meters, plan, run, train, watch
from .errors import LapdtrError

_VERBS = (generate, plan, run, demo, train, calibrate, evaluate, bag, watch, meters)


def build_parser() -> argparse.ArgumentParser:
    """Parser with one verb per module of `lapdtr_ros.commands`."""
    parser = argparse.ArgumentParser(
        prog='lapdtr',
        description='Vision transformers split over connected vehicles by energy (LAP-DTR).',
        epilog='lapdtr VERB --help explains a verb. The ROS nodes are started with ros2 launch.',
    )
    parser.add_argument('--version', action='version', version=f'lapdtr {__version__}')
    verbs = parser.add_subparsers(title='verbs', metavar='VERB', required=True)
    for module in _VERBS:
        module.add_parser(verbs)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        0 on success, 1 when something failed, 2 for wrong arguments, 130 after Ctrl-C.
    """
    options = build_parser().parse_args(args)
    try:
        return int(options.execute(options))
    except LapdtrError as error:
        print(f'lapdtr: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('lapdtr: interrupted', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())

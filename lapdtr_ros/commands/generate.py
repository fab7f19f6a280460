"""``lapdtr generate``: render a cooperative driving scene in the OPV2V layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from lapdtr_ros.datasets.generator import generate
from lapdtr_ros.datasets.roads import ROADS
from lapdtr_ros.datasets.scene import SceneConfig


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        'generate',
        help='render a cooperative driving scene in the OPV2V layout',
        description='Renders a small driving scene with several connected vehicles, four cameras '
        'each, into the directory layout of OPV2V, with exact boxes. Needs no GPU and no screen.',
    )
    parser.add_argument('out', type=Path, help='directory that gets the scene')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--frames', type=int, default=60, help='frames at 10 Hz')
    parser.add_argument('--vehicles', type=int, default=3, help='connected vehicles, 1 to 7')
    parser.add_argument('--road', choices=ROADS, default='crossing')
    parser.add_argument('--width', type=int, default=800, help='pixels')
    parser.add_argument('--height', type=int, default=600, help='pixels')
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb."""
    config = SceneConfig(
        seed=options.seed,
        frames=options.frames,
        vehicles=options.vehicles,
        road=options.road,
        width=options.width,
        height=options.height,
    )
    print(generate(config, options.out))
    return 0

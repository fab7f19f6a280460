"""``lapdtr bag``: scenes as rosbag2 recordings and back."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from lapdtr_ros.datasets.opv2v import open_dataset


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        'bag',
        help='turn scenes into rosbag2 recordings and back',
        description='Turns an OPV2V scene into a recording that ros2 bag plays, and a recording '
        'of the same topics into a scene. Nothing is lost on the way.',
    )
    ways = parser.add_subparsers(title='ways', metavar='WAY', required=True)
    export = ways.add_parser('write', help='OPV2V scene to bag')
    export.add_argument('scene', type=Path, help='directory of a scene, or of a data set with one')
    export.add_argument('bag', type=Path, help='directory to make')
    export.add_argument('--fleet', default='', help='namespace of the topics')
    export.set_defaults(execute=write)
    extract = ways.add_parser('read', help='bag to OPV2V scene')
    extract.add_argument('bag', type=Path, help='directory of the recording')
    extract.add_argument('scene', type=Path, help='directory of the scene to make')
    extract.set_defaults(execute=read)


def write(options: argparse.Namespace) -> int:
    """Run ``lapdtr bag write``."""
    from lapdtr_ros.nodes.bags.scenes import scene_to_bag

    with _bar('moment') as bar:
        scene_to_bag(open_dataset(options.scene)[0], options.bag, fleet=options.fleet, progress=bar)
    print(options.bag)
    return 0


def read(options: argparse.Namespace) -> int:
    """Run ``lapdtr bag read``."""
    from lapdtr_ros.nodes.bags.scenes import bag_to_scene

    with _bar('message') as bar:
        result = bag_to_scene(options.bag, options.scene, progress=bar)
    left_out = f', {result.incomplete} incomplete ones left out' if result.incomplete else ''
    print(f'{result.path}: {result.moments} moments{left_out}')
    return 0


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar as a function that takes what is done and what there is in all."""
    with tqdm(unit=unit, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show

"""``lapdtr watch``: a running fleet in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from lapdtr_ros.evaluation.live_view import VIEW_PORT, LiveView


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        'watch',
        help='watch a running fleet: plans, batteries, latency, energy, decisions',
        description='Shows what a running fleet does, until Ctrl-C. It only listens; the fleet '
        'neither waits for it nor notices when it goes.',
    )
    parser.add_argument('--fleet', default='', help='namespace of the fleet')
    parser.add_argument(
        '--seconds', type=float, default=float('inf'), help='end after so many seconds'
    )
    parser.add_argument(
        '--view', action='store_true', help='also serve a page with pictures (rerun)'
    )
    parser.add_argument('--save', type=Path, metavar='RRD', help='write the view to a file instead')
    parser.add_argument('--port', type=int, default=VIEW_PORT, help='port of the page')
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb."""
    # Imported late: the other verbs work without ROS.
    from lapdtr_ros.nodes.watch import watch

    view = None
    if options.view or options.save:
        view = LiveView(save=options.save, web_port=options.port, grpc_port=options.port + 1)
        print(f'view: {view.address}', flush=True)
    try:
        watch(options.fleet, view, options.seconds)
    finally:
        if view is not None:
            view.close()
    return 0

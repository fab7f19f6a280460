"""``lapdtr meters``: which energy meters this machine has, and why it lacks the others."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lapdtr_ros.energy.detection import Found, find_meters
from lapdtr_ros.energy.errors import MeterError
from lapdtr_ros.energy.host import memory_share, temperature_c
from lapdtr_ros.energy.ina3221 import SYSFS
from lapdtr_ros.energy.meter import Meter, watts_between
from lapdtr_ros.energy.rails import ROLES, split_rail


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command."""
    parser = verbs.add_parser(
        'meters',
        help='show the energy meters of this machine',
        description='Looks for every kind of energy meter, shows the mean power of each rail over '
        'a short time, and says why the other kinds were not found.',
    )
    parser.add_argument('--seconds', type=float, default=1.0, help='how long to measure')
    parser.add_argument(
        '--split',
        type=_share,
        nargs='+',
        default=[],
        metavar='PART=SHARE',
        help='divide rails that feed exactly these parts, e.g. cpu=0.3 gpu=0.7 accelerator=0; '
        'the parts are labelled as modelled',
    )
    parser.add_argument('--sysfs', type=Path, default=SYSFS, help='root of sysfs')
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the verb."""
    console = Console()
    found = find_meters(options.sysfs)
    for item in found:
        _show(item, options.seconds, dict(options.split), console)
    console.print(f'temperature: {_known(temperature_c(options.sysfs), ".1f", " °C")}')
    console.print(f'memory in use: {_known(memory_share(), ".0%")}')
    if all(item.meter is None for item in found):
        console.print(
            'Without a meter a device node models its energy from its class (meter:=modelled). '
            'A battery that publishes BatteryState can serve as one: see docs/energy.md.'
        )
    return 0


def _share(text: str) -> tuple[str, float]:
    part, _, share = text.partition('=')
    if part not in ROLES:
        raise argparse.ArgumentTypeError(f'{part!r} is no part; use {", ".join(ROLES)}')
    return part, float(share)


def _known(value: float, form: str, unit: str = '') -> str:
    return 'unknown' if math.isnan(value) else f'{value:{form}}{unit}'


def _show(item: Found, seconds: float, shares: dict[str, float], console: Console) -> None:
    if item.meter is None:
        console.print(f'{item.name}: not found: {item.reason}', highlight=False, soft_wrap=True)
        return
    try:
        console.print(_rails(item.meter, seconds, shares))
    except MeterError as error:
        console.print(f'{item.name}: found, but stopped: {error}', highlight=False, soft_wrap=True)
    finally:
        item.meter.close()


def _rails(meter: Meter, seconds: float, shares: dict[str, float]) -> Table:
    first = meter.read()
    time.sleep(seconds)
    watts = watts_between(first, meter.read())
    table = Table(title=f'{meter.name}, mean of {seconds:g} s', title_justify='left')
    table.add_column('rail')
    table.add_column('feeds')
    table.add_column('power', justify='right')
    table.add_column('in total', justify='center')
    for rail in meter.rails:
        power = f'{watts[rail.name]:.2f} W' if watts else 'unknown'
        table.add_row(rail.label, rail.role, power, 'yes' if rail.counted else '')
        if watts and set(rail.roles) == set(shares):
            for part, share in split_rail(rail, watts[rail.name], shares).items():
                table.add_row(part.label, part.role, f'{share:.2f} W', '')
    total = sum(watts[rail.name] for rail in meter.rails if rail.counted) if watts else 0.0
    table.add_section()
    table.add_row('total', '', f'{total:.2f} W', '')
    return table

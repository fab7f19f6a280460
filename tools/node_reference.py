"""Writes docs/nodes.md: parameters and topics of every node, read from the code itself."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from lapdtr_ros.nodes import telemetry
from lapdtr_ros.nodes.base import CommonParameters, ManagedNode

PAGE = Path(__file__).parents[1] / 'docs' / 'nodes.md'
NODES = (
    'device',
    'planner',
    'source',
    'sink',
    'fusion',
    'evaluator',
    'recorder',
    'carla_bridge',
)
HEAD = """# Nodes: parameters and topics

Written by `tools/run python tools/node_reference.py` from the code; a test compares them. All nodes
are lifecycle nodes and publish `/diagnostics`. `<fleet>` is the namespace of the fleet, empty by
default. *live* parameters may change while the node runs (`ros2 param set`); the others are read
when it starts. Policies of every subscription can be overridden with `qos_overrides` parameters.

## Every node

"""


def page() -> str:
    """The whole page."""
    return HEAD + _parameters([CommonParameters]) + ''.join(_node(name) for name in NODES)


def _node(name: str) -> str:
    module = importlib.import_module(f'lapdtr_ros.nodes.{name}')
    (kind,) = (
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, ManagedNode)
        and member.__module__ == module.__name__
    )
    text = inspect.getdoc(kind) or ''
    parts = [f'\n## {name}\n\n{_introduction(text)}\n\n', _parameters(_classes(module, text))]
    for title in ('Subscriptions', 'Publishers', 'Services'):
        rows = list(_topics(text, title))
        if rows:
            parts.append(f'\n{title}\n\n' + ''.join(f'- {_quoted(row)}\n' for row in rows))
    return ''.join(parts)


def _introduction(text: str) -> str:
    """The docstring up to its first section."""
    lines = []
    for line in text.splitlines():
        if re.fullmatch(r'[A-Z]\w+:', line):
            break
        lines.append(line)
    return '\n'.join(lines).strip()


def _classes(module: object, text: str) -> list[type]:
    """Parameter dataclasses of the module, and those of `telemetry` that the docstring names."""
    shared = vars(telemetry)
    named = {name: shared[name] for name in re.findall(r'`(\w+)`', text) if name in shared}
    return [
        member
        for name, member in (vars(module) | named).items()
        if name.endswith('Parameters') and dataclasses.is_dataclass(member)
        if member is not CommonParameters
    ]


def _parameters(classes: list[type]) -> str:
    rows = ['| parameter | default | | meaning |\n|---|---|---|---|\n']
    for kind in classes:
        for field in dataclasses.fields(kind):
            live = 'live' if field.metadata['dynamic'] else ''
            default = '' if field.default == '' else f'`{field.default}`'
            about = field.metadata['description'].replace('|', '\\|')
            rows.append(f'| `{field.name}` | {default} | {live} | {about} |\n')
    return ''.join(rows) if len(rows) > 1 else ''


def _topics(text: str, title: str) -> Iterator[str]:
    """Entries of a section of the docstring, one line each."""
    match = re.search(rf'^{title}:\n((?:[ \t]+.*\n?)+)', text, re.MULTILINE)
    if match is None:
        return
    entry = ''
    for line in inspect.cleandoc(match.group(1)).splitlines():
        if entry and not line.startswith(' '):
            yield entry
            entry = ''
        entry = f'{entry} {line.strip()}'.strip()
    if entry:
        yield entry


def _quoted(row: str) -> str:
    """Names of topics as code, or their angle brackets would be taken for HTML."""
    names = r'(?<![\w/>`])(?:<[\w ]+>/[\w/<> ]*\w>?|/\w[\w/]*)'
    return re.sub(names, lambda match: f'`{match.group()}`', row.replace('``', ''))


if __name__ == '__main__':
    PAGE.write_text(page(), encoding='utf-8')
    sys.stdout.write(f'{PAGE}\n')

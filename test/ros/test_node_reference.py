"""docs/nodes.md says what the code says."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip('lapdtr_ros.msg')

ROOT = Path(__file__).parents[2]


def test_the_page_of_nodes_is_that_of_the_code():
    path = ROOT / 'tools' / 'node_reference.py'
    spec = importlib.util.spec_from_file_location('node_reference', path)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert reference.PAGE.read_text(encoding='utf-8') == reference.page(), (
        'run: tools/run python tools/node_reference.py'
    )

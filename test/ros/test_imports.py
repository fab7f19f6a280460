"""Nodes that run no network start without torch: seconds and memory on every vehicle."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize('node', ['source', 'planner', 'fusion', 'sink', 'recorder', 'watch'])
def test_nodes_without_a_network_do_not_import_torch(node):
    code = f'import sys, lapdtr_ros.nodes.{node}; print({{"torch", "timm"}} & set(sys.modules))'
    told = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.strip() == 'set()'

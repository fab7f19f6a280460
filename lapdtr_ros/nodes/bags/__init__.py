"""rosbag2 recordings: files that every ROS 2 tool reads, and OPV2V scenes inside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

METADATA = 'metadata.yaml'

_STORAGES = ('.mcap', '.db3', '.mcap.zstd', '.db3.zstd')


def is_bag(path: Path) -> bool:
    """Whether a path looks like a rosbag2 recording: its directory or its single file."""
    if path.is_dir():
        return (path / METADATA).is_file() or any(storage_files(path))
    return path.name.endswith(_STORAGES)


def storage_files(path: Path) -> Iterator[Path]:
    """Files of a directory that hold messages."""
    return (file for file in path.iterdir() if file.name.endswith(_STORAGES))

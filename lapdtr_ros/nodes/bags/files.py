"""Reading and writing rosbag2 directories (MCAP or SQLite, compressed or not).

The ``rosbags`` library reads and writes the files, rclpy turns bytes into messages, so that a bag
needs no ``rosbag2_py``. Bags written here are MCAP with metadata of version 9, as Jazzy writes
them, and hold the definitions of all types.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import (
    CompressionFormat,
    CompressionMode,
    Reader,
    StoragePlugin,
    Writer,
    WriterError,
)
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from lapdtr_ros.errors import LapdtrError

from . import METADATA, storage_files

_METADATA_VERSION: Literal[9] = 9  # of Jazzy
_INFINITE = QosTime(9223372036, 854775807)


class BagError(LapdtrError):
    """A recording that cannot be read or written."""


@dataclass(frozen=True)
class TopicInfo:
    """One topic of a bag.

    Attributes:
        name: the topic.
        kind: its type, e.g. ``sensor_msgs/msg/Image``.
        count: messages in the bag.
    """

    name: str
    kind: str
    count: int


class BagReader:
    """A recording that is open for reading; a context manager.

    Args:
        path: directory with ``metadata.yaml``, or a single ``.mcap`` file.

    Raises:
        BagError: no bag, or one that was not closed properly.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _check_directory(path)
        with _explained(path):
            self._reader = Reader(path)
            self._reader.open()

    def __enter__(self) -> BagReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    @property
    def topics(self) -> Mapping[str, TopicInfo]:
        """Topics by name."""
        counts: Counter[str] = Counter()
        for connection in self._reader.connections:
            counts[connection.topic] += connection.msgcount
        return {
            c.topic: TopicInfo(c.topic, c.msgtype, counts[c.topic])
            for c in self._reader.connections
        }

    def require(self, names: Collection[str]) -> None:
        """Check that topics are there.

        Raises:
            BagError: naming the missing ones and what the bag has instead.
        """
        missing = sorted(set(names) - set(self.topics))
        if missing:
            there = ', '.join(sorted(self.topics)) or 'no topic at all'
            raise BagError(
                f'{self.path} lacks {", ".join(missing)}; it has {there}. Record the missing '
                f'topics, or remap them when you play and record again'
            )

    def messages(self, names: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        """Messages of some topics in the order of the recording.

        Yields:
            Topic, time of the recording in nanoseconds, message.

        Raises:
            BagError: a type that is not installed here, or a file that ends too early.
        """
        wanted = [c for c in self._reader.connections if c.topic in names]
        kinds = {c.msgtype: message_class(c.msgtype, c.topic) for c in wanted}
        for connection, stamp_ns, data in self._raw(wanted):
            yield connection.topic, stamp_ns, deserialize_message(data, kinds[connection.msgtype])

    def _raw(self, wanted: list[Connection]) -> Iterator[tuple[Connection, int, bytes]]:
        with _explained(self.path):
            yield from self._reader.messages(connections=wanted)


class BagWriter:
    """A recording that is being written; a context manager.

    Args:
        path: directory to make; it must not exist.
        compress: pack chunks with zstd; every player still reads the index.

    Raises:
        BagError: the directory exists.
    """

    def __init__(self, path: Path, *, compress: bool = False) -> None:
        if path.exists():
            raise BagError(f'{path} exists; give a new directory or remove it')
        self.path = path
        self._writer = Writer(path, version=_METADATA_VERSION, storage_plugin=StoragePlugin.MCAP)
        if compress:
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._connections: dict[str, Connection] = {}
        self._writer.open()

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the file and write its metadata."""
        self._writer.close()

    def write(self, topic: str, msg: Any, stamp_ns: int, profile: QoSProfile | None = None) -> None:
        """Add a message under a time; see `write_raw`."""
        self.write_raw(topic, type(msg), serialize_message(msg), stamp_ns, profile)

    def write_raw(
        self,
        topic: str,
        kind: type,
        data: bytes,
        stamp_ns: int,
        profile: QoSProfile | None = None,
    ) -> None:
        """Add a serialized message.

        Args:
            topic: its topic.
            kind: its class; one topic has one type.
            data: its CDR bytes.
            stamp_ns: time under which a player publishes it.
            profile: QoS that a player shall offer; of the first message of a topic.
        """
        if topic not in self._connections:
            self._connections[topic] = self._connect(topic, type_name(kind), profile)
        self._writer.write(self._connections[topic], stamp_ns, data)

    def _connect(self, topic: str, kind: str, profile: QoSProfile | None) -> Connection:
        _register(self._types, kind)
        offered = [] if profile is None else [_qos(profile)]
        try:
            return self._writer.add_connection(
                topic, kind, typestore=self._types, offered_qos_profiles=offered
            )
        except WriterError as error:
            raise BagError(f'{self.path}: topic {topic}: {error}') from error


def type_name(kind: type) -> str:
    """Name of a message class, e.g. ``sensor_msgs/msg/Image``."""
    return f'{kind.__module__.partition(".")[0]}/msg/{kind.__name__}'


def message_class(kind: str, topic: str) -> type:
    """Class of a message type.

    Raises:
        BagError: its package is not installed.
    """
    package, _, name = kind.partition('/msg/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError):
        raise BagError(
            f'topic {topic} holds {kind}, which is not installed here: install or source the '
            f'package {package!r}'
        ) from None


def _check_directory(path: Path) -> None:
    if not path.exists():
        raise BagError(f'{path} does not exist; give the directory of a rosbag2 recording')
    if path.is_dir() and not (path / METADATA).is_file():
        if any(storage_files(path)):
            raise BagError(
                f'{path} has no {METADATA}: the recording was cut off. '
                f'Repair it with: ros2 bag reindex {path}'
            )
        raise BagError(f'{path} is no rosbag2 recording: it has no {METADATA}')


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what goes wrong inside a file into words; the library raises whatever it meets."""
    try:
        yield
    except LapdtrError:
        raise
    except Exception as error:
        raise BagError(
            f'{path} is damaged or ends too early ({type(error).__name__}: {error}); copy it again '
            f'or repair it with: ros2 bag reindex {path}'
        ) from error


def _register(types: Typestore, kind: str) -> None:
    """Teach the store a type and the types of its fields from their installed ``.msg`` files."""
    if kind in types.types:
        return
    package, _, name = kind.partition('/msg/')
    text = _definition_file(package, name).read_text(encoding='utf-8')
    found = get_types_from_msg(text, kind)
    for _, fields in found.values():
        for _, field in fields:
            for nested in _message_names(field):
                _register(types, nested)
    types.register(found)


def _message_names(field: Any) -> Iterator[str]:
    """Names of messages inside a field's description (nested tuples of the library)."""
    if isinstance(field, str):
        if '/msg/' in field:
            yield field
    elif isinstance(field, tuple):
        for part in field:
            yield from _message_names(part)


def _definition_file(package: str, name: str) -> Path:
    for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep):
        path = Path(prefix, 'share', package, 'msg', f'{name}.msg')
        if prefix and path.is_file():
            return path
    raise BagError(
        f'the definition of {package}/msg/{name} is not installed; source the workspace that '
        f'holds the package {package!r}'
    )


def _qos(profile: QoSProfile) -> Qos:
    reliable = profile.reliability == ReliabilityPolicy.RELIABLE
    latched = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    return Qos(
        QosHistory.KEEP_LAST,
        int(profile.depth),
        QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        _INFINITE,
        _INFINITE,
        QosLiveliness.AUTOMATIC,
        _INFINITE,
        False,
    )

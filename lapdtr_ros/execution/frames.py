"""What travels between devices, free of ROS: packets, features, results and their traces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.planning.plan import LOSSLESS, CutSetting

FEATURES = 'features'
RAW = 'raw'
JPEG = 'jpeg'

_DTYPES: dict[str, np.dtype[Any]] = {
    'float32': np.dtype('<f4'),
    'float16': np.dtype('<f2'),
    'uint8': np.dtype('u1'),
}


class PacketError(LapdtrError):
    """A payload that does not match its own description."""


@dataclass(frozen=True)
class Packet:
    """A payload and how to read it.

    Attributes:
        coding: `FEATURES`, `RAW` or `JPEG`.
        dtype: numpy name of the decoded elements.
        shape: shape of the decoded array.
        data: the bytes; any object with the buffer protocol.
        cut: how `FEATURES` were packed; `dtype` and `shape` are those of the unpacked array.
    """

    coding: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview
    cut: CutSetting = LOSSLESS

    @classmethod
    def of_array(cls, array: np.ndarray, coding: str = FEATURES) -> Packet:
        """Pack an array without compression; the bytes are shared with ``array``."""
        array = np.ascontiguousarray(array)
        if array.dtype.name not in _DTYPES:
            raise PacketError(f'dtype {array.dtype.name} cannot be sent; use {", ".join(_DTYPES)}')
        return cls(coding, array.dtype.name, array.shape, array.reshape(-1).view(np.uint8).data)

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return memoryview(self.data).nbytes

    def to_array(self) -> np.ndarray:
        """The payload as a read-only array of ``shape``.

        Raises:
            PacketError: unknown dtype, or the length is not dtype x shape.
        """
        if self.coding == JPEG:
            raise PacketError('a jpeg packet has no array; decode the picture first')
        dtype = _DTYPES.get(self.dtype)
        if dtype is None:
            raise PacketError(f'unknown dtype {self.dtype!r}; known: {", ".join(_DTYPES)}')
        expected = math.prod(self.shape) * dtype.itemsize
        if self.nbytes != expected:
            raise PacketError(
                f'payload of {self.nbytes} bytes, but {self.dtype} x {self.shape} takes {expected}'
            )
        return np.frombuffer(self.data, dtype).reshape(self.shape)


@dataclass(frozen=True)
class StageRecord:
    """What one device did with one frame; fields as in ``StageTrace.msg``."""

    device: str
    start: int
    stop: int
    started_ns: int
    queue_s: float
    compute_s: float
    received_bytes: int
    sent_bytes: int
    energy_j: float


@dataclass(frozen=True)
class Feature:
    """Input of unit ``unit`` for one frame; fields as in ``FeatureMap.msg``."""

    stream: str
    seq: int
    epoch: int
    unit: int
    packet: Packet
    stamp_ns: int = 0
    frame_id: str = ''
    trace: tuple[StageRecord, ...] = ()
    session: int = 0
    round: int = 0


@dataclass(frozen=True)
class Result:
    """Output of the last unit for one frame; fields as in ``FrameResult.msg``."""

    stream: str
    seq: int
    epoch: int
    device: str
    packet: Packet
    stamp_ns: int = 0
    frame_id: str = ''
    trace: tuple[StageRecord, ...] = ()
    session: int = 0


FINISHED = 'finished'
LOST = 'lost'
REFUSED = 'refused'


@dataclass(frozen=True)
class FrameOutcome:
    """One frame as its source saw it; fields as in ``FrameTrace.msg``."""

    stream: str
    seq: int
    epoch: int
    outcome: str
    latency_s: float
    picture_bytes: int
    stamp_ns: int = 0
    frame_id: str = ''
    trace: tuple[StageRecord, ...] = ()
    resumed: int = 0


@dataclass(frozen=True)
class Holding:
    """What a device has of a frame.

    Attributes:
        unit: unit that its newest feature is the input of; the number of units for the result.
        in_hand: whether it waits here or is being run, as input of that unit.
    """

    seq: int
    unit: int
    in_hand: bool

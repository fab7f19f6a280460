"""Features as bytes: how the output of a stage is packed for its cut, and checked on arrival.

A lossless setting sends the array as it is. Any other payload is, little-endian:

==================  ================================================================================
12 bytes            version (u8), layout of the features (u8), prefix tokens (u16), rows (u32),
                    hash of the static mean that was taken off (u32; 0: none)
N x u8 or u16       row of each patch token, if they were summarised; u16 if there are over 256 rows
prefix tokens       with 8 bits at least: what they hold concerns the whole picture
rows                with the bits of the setting
==================  ================================================================================

Both of the latter are coded by `lapdtr_ros.features.quantize`, or float32 for ``bits = 0``. Rows
are patch tokens, groups of them, or the positions of a map.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lapdtr_ros.execution.frames import FEATURES, JPEG, RAW, Packet, PacketError
from lapdtr_ros.models.layout import NCHW, NHWC, TOKENS, FeatureLayout
from lapdtr_ros.models.preprocess import PictureError, jpeg_size
from lapdtr_ros.planning.plan import LOSSLESS, CutSetting

from .calibration import Calibration
from .quantize import decode, encode, encoded_bytes, read_steps
from .summarize import Array, Summary, group_means, summarize

VERSION = 1
PREFIX_BITS = 8

_HEADER = struct.Struct('<BBHII')
_LAYOUTS = (TOKENS, NCHW, NHWC)
_FLOAT_BYTES = 4
_MAX_BYTE_ROWS = 256


@dataclass(frozen=True)
class _Shape:
    """Sizes of a packed payload, from its header and the shape of its array."""

    layout: str
    prefix_tokens: int
    positions: int
    channels: int
    rows: int
    mean_hash: int

    @property
    def index_type(self) -> np.dtype[Any]:
        """Element type of the assignment."""
        return np.dtype('u1' if self.rows <= _MAX_BYTE_ROWS else '<u2')

    def section_bytes(self, cut: CutSetting) -> tuple[int, int, int]:
        """Bytes of the assignment, of the prefix tokens and of the rows."""
        assignment = self.positions * self.index_type.itemsize if cut.keep else 0
        return (
            assignment,
            _coded_bytes(self.prefix_tokens, self.channels, PREFIX_BITS if cut.bits else 0),
            _coded_bytes(self.rows, self.channels, cut.bits),
        )


class Packing:
    """Packs and unpacks the features of one model.

    Args:
        layout: of the model's features.
        calibration: gives the static means; None works with all settings, at a larger error.
    """

    def __init__(self, layout: FeatureLayout, calibration: Calibration | None = None) -> None:
        self._kind = layout.kind
        self._prefix = layout.prefix_tokens
        self._calibration = calibration
        self._means: dict[int, tuple[Array, int] | None] = {}

    def pack(
        self,
        features: Array,
        unit: int,
        cut: CutSetting,
        summary: Summary | None = None,
        attention: Array | None = None,
    ) -> Packet:
        """Pack the input of a unit.

        Features that were summarised before stay so; they are summarised again only where the
        setting asks for fewer rows than they have.

        Args:
            features: float32 [1, ...]; tokens that were summarised are [1, prefix + k, C].
            unit: the unit whose input they are.
            cut: how to pack.
            summary: of the features; None if they are whole.
            attention: that each patch token (or row) got, where it is known.

        Returns:
            A packet with the shape of the whole features and the setting that it was packed by.

        Raises:
            PacketError: values that cannot be packed.
            SummaryError: a number of tokens or a form that does not fit the features.
        """
        if summary is None and not (cut.keep or cut.bits):
            return replace(Packet.of_array(features), cut=cut)
        shape = self._whole_shape(features, summary)
        prefix, rows = self._split(features)
        mean = self._mean(unit)
        offset = _row_means(mean, self._prefix, summary)
        if cut.keep and (summary is None or cut.keep < summary.rows):
            sizes = None if summary is None else summary.sizes
            tensor, later = summarize(
                torch.from_numpy(rows), cut.keep, cut.form, attention, sizes, offset
            )
            rows = tensor.numpy()
            summary = later if summary is None else summary.then(later)
            offset = _row_means(mean, self._prefix, summary)
        if summary is not None:
            cut = replace(cut, keep=summary.rows, form=summary.form)
        data = self._payload(prefix, rows, offset, mean, cut, summary)
        return Packet(FEATURES, 'float32', shape, data, cut)

    def unpack(self, packet: Packet, unit: int) -> tuple[Array, Summary | None]:
        """Undo `pack`.

        Args:
            packet: of features, checked with `check` if it came from the network.
            unit: the unit whose input they are.

        Returns:
            Features, and their summary where they are summarised tokens: then they are
            [1, prefix + k, C]. Maps come back whole.

        Raises:
            PacketError: a payload that does not match its description, or that needs another
                calibration file than this device has.
        """
        cut = packet.cut
        if not (cut.keep or cut.bits):
            return packet.to_array(), None
        shape = _read_header(packet)
        if (shape.layout, shape.prefix_tokens) != (self._kind, self._prefix):
            raise PacketError(
                f'features of layout {shape.layout} with {shape.prefix_tokens} prefix tokens, '
                f'expected {self._kind} with {self._prefix}; the sender runs another model'
            )
        mean = self._agreed_mean(unit, shape.mean_hash)
        sections = _sections(packet, shape)
        summary = _read_summary(sections[0], shape, cut) if cut.keep else None
        prefix = _decoded(
            sections[1], shape.prefix_tokens, shape.channels, PREFIX_BITS if cut.bits else 0
        )
        rows = _decoded(sections[2], shape.rows, shape.channels, cut.bits)
        offset = _row_means(mean, self._prefix, summary)
        if cut.bits and mean is not None and offset is not None:
            prefix = prefix + mean[0][: self._prefix]
            rows = rows + offset
        if self._kind == TOKENS:
            return np.concatenate([prefix, rows])[np.newaxis], summary
        if summary is not None:
            rows = rows[summary.assignment]
        return _to_map(rows, self._kind, packet.shape), None

    def _whole_shape(self, features: Array, summary: Summary | None) -> tuple[int, ...]:
        if summary is None:
            return features.shape
        return (1, self._prefix + summary.assignment.size, features.shape[2])

    def _split(self, features: Array) -> tuple[Array, Array]:
        """Prefix tokens [p, C] and rows [n, C]."""
        rows = _to_rows(features[0], self._kind)
        return rows[: self._prefix], rows[self._prefix :]

    def _payload(
        self,
        prefix: Array,
        rows: Array,
        offset: Array | None,
        mean: tuple[Array, int] | None,
        cut: CutSetting,
        summary: Summary | None,
    ) -> bytes:
        mean_hash = 0
        if cut.bits and mean is not None and offset is not None:
            prefix = prefix - mean[0][: self._prefix]
            rows = rows - offset
            mean_hash = mean[1]
        header = _HEADER.pack(
            VERSION, _LAYOUTS.index(self._kind), self._prefix, len(rows), mean_hash
        )
        assignment = b''
        if summary is not None:
            kind = np.dtype('u1' if summary.rows <= _MAX_BYTE_ROWS else '<u2')
            assignment = summary.assignment.astype(kind).tobytes()
        prefix_data = _encoded(prefix, PREFIX_BITS if cut.bits else 0)
        return b''.join([header, assignment, prefix_data, _encoded(rows, cut.bits)])

    def _mean(self, unit: int) -> tuple[Array, int] | None:
        """Static mean [p + N, C] of the rows of a unit's input, and its hash."""
        if unit not in self._means:
            mean = None if self._calibration is None else self._calibration.cut_mean(unit)
            if mean is None:
                self._means[unit] = None
            else:
                rows = _to_rows(mean, self._kind)
                self._means[unit] = rows, zlib.crc32(rows.tobytes()) or 1
        return self._means[unit]

    def _agreed_mean(self, unit: int, mean_hash: int) -> tuple[Array, int] | None:
        """The mean that the sender took off; None if it took off none."""
        if mean_hash == 0:
            return None
        mean = self._mean(unit)
        if mean is None or mean[1] != mean_hash:
            raise PacketError(
                f'input of unit {unit} was packed with another calibration file; give all devices '
                f'the same one'
            )
        return mean


def check(packet: Packet, shape: tuple[int, ...]) -> None:
    """Refuse a packet from the network that does not fit; values are not decoded.

    Args:
        packet: as received.
        shape: that its array must have: [H, W, 3] of a picture, [1, ...] of features.

    Raises:
        PacketError: another dtype or shape, or a payload that does not match its description.
    """
    dtype = 'float32' if packet.coding == FEATURES else 'uint8'
    if packet.dtype != dtype or tuple(packet.shape) != tuple(shape):
        raise PacketError(
            f'{packet.coding} packet of {packet.dtype} {tuple(packet.shape)}, expected {dtype} '
            f'{tuple(shape)}; sender and receiver disagree on the model'
        )
    if packet.coding != FEATURES and packet.cut != LOSSLESS:
        raise PacketError(f'{packet.coding} packet with {packet.cut}; pictures are not packed')
    if packet.coding == JPEG:
        _check_jpeg(packet)
    elif packet.coding not in (FEATURES, RAW):
        raise PacketError(
            f'unknown coding {packet.coding!r}; known: {", ".join((FEATURES, RAW, JPEG))}'
        )
    elif packet.cut.keep or packet.cut.bits:
        _check_packed(packet)
    else:
        packet.to_array()


def packed_bytes(shape: tuple[int, ...], layout: FeatureLayout, cut: CutSetting) -> int:
    """Bytes that features of a shape take when they are packed; what a planner calculates with.

    Args:
        shape: of the whole features, [1, ...].
        layout: of the model's features.
        cut: how they are packed.
    """
    if not (cut.keep or cut.bits):
        return math.prod(shape) * _FLOAT_BYTES
    positions, channels = _rows_and_channels(shape, layout.kind)
    positions -= layout.prefix_tokens
    sizes = _Shape(layout.kind, layout.prefix_tokens, positions, channels, cut.keep or positions, 0)
    return _HEADER.size + sum(sizes.section_bytes(cut))


def _check_packed(packet: Packet) -> None:
    shape, cut = _read_header(packet), packet.cut
    assignment, prefix, rows = _sections(packet, shape)
    if cut.keep:
        _read_summary(assignment, shape, cut)
    if cut.bits:
        read_steps(prefix, shape.prefix_tokens)
        read_steps(rows, shape.rows)


def _check_jpeg(packet: Packet) -> None:
    """Refuse by length and by the size in the header, before a huge picture is decoded."""
    height, width, channels = packet.shape
    limit = height * width * channels
    if not 0 < packet.nbytes <= limit:
        raise PacketError(f'JPEG of {packet.nbytes} bytes; limit {limit}')
    try:
        found = jpeg_size(bytes(packet.data))
    except PictureError as error:
        raise PacketError(str(error)) from error
    if found != (height, width):
        raise PacketError(f'JPEG of a picture of {found}, expected {(height, width)}')


def _read_header(packet: Packet) -> _Shape:
    """Sizes of a payload; what they say is plausible and the payload has that length."""
    if packet.nbytes < _HEADER.size:
        raise PacketError(f'packed payload of {packet.nbytes} bytes has no header')
    version, kind, prefix, rows, mean_hash = _HEADER.unpack_from(packet.data)
    if version != VERSION or kind >= len(_LAYOUTS):
        raise PacketError(
            f'packed payload of version {version} and layout {kind}; this device reads version '
            f'{VERSION}: run the same release on all devices'
        )
    layout = _LAYOUTS[kind]
    if len(packet.shape) != (3 if layout == TOKENS else 4) or packet.shape[0] != 1:
        raise PacketError(f'features of shape {tuple(packet.shape)} cannot have layout {layout}')
    positions, channels = _rows_and_channels(packet.shape, layout)
    positions -= prefix
    expected = packet.cut.keep or positions
    if positions < 1 or rows != expected or rows > positions:
        raise PacketError(
            f'{rows} rows and {prefix} prefix tokens do not fit features of shape '
            f'{tuple(packet.shape)} packed by {packet.cut}'
        )
    shape = _Shape(layout, prefix, positions, channels, rows, mean_hash)
    length = _HEADER.size + sum(shape.section_bytes(packet.cut))
    if packet.nbytes != length:
        raise PacketError(
            f'payload of {packet.nbytes} bytes, but {tuple(packet.shape)} packed by {packet.cut} '
            f'takes {length}'
        )
    return shape


def _sections(packet: Packet, shape: _Shape) -> tuple[memoryview, memoryview, memoryview]:
    """Assignment, prefix tokens and rows of a payload whose header was read."""
    data = memoryview(packet.data).cast('B')
    assignment, prefix, _ = shape.section_bytes(packet.cut)
    first = _HEADER.size + assignment
    return data[_HEADER.size : first], data[first : first + prefix], data[first + prefix :]


def _read_summary(section: memoryview, shape: _Shape, cut: CutSetting) -> Summary:
    assignment = np.frombuffer(section, shape.index_type).astype(np.intp)
    # Empty groups have no size whose logarithm the attention could take.
    if np.bincount(assignment, minlength=shape.rows).min() == 0 or assignment.max() >= shape.rows:
        raise PacketError(
            f'the assignment of {shape.positions} tokens does not use exactly the {shape.rows} '
            f'rows; the payload is damaged'
        )
    return Summary(assignment, shape.rows, cut.form)


def _row_means(
    mean: tuple[Array, int] | None, prefix: int, summary: Summary | None
) -> Array | None:
    """Static mean of each row: of a token, or the mean over a group."""
    if mean is None:
        return None
    patches = mean[0][prefix:]
    if summary is None:
        return patches
    assignment = torch.from_numpy(summary.assignment)
    return group_means(torch.from_numpy(patches), assignment, summary.rows).numpy()


def _coded_bytes(rows: int, channels: int, bits: int) -> int:
    return encoded_bytes(rows, channels, bits) if bits else rows * channels * _FLOAT_BYTES


def _encoded(rows: Array, bits: int) -> bytes:
    return encode(rows, bits) if bits else rows.astype('<f4', copy=False).tobytes()


def _decoded(section: memoryview, rows: int, channels: int, bits: int) -> Array:
    if bits:
        return decode(section, rows, channels, bits)
    return np.frombuffer(section, '<f4').reshape(rows, channels)


def _rows_and_channels(shape: tuple[int, ...], layout: str) -> tuple[int, int]:
    if layout == NCHW:
        return shape[2] * shape[3], shape[1]
    return math.prod(shape[1:-1]), shape[-1]


def _to_rows(features: Array, layout: str) -> Array:
    """Features without the batch dimension as contiguous rows [n, C]."""
    if layout == NCHW:
        features = features.transpose(1, 2, 0)
    return np.ascontiguousarray(features.reshape(-1, features.shape[-1]))


def _to_map(rows: Array, layout: str, shape: tuple[int, ...]) -> Array:
    """Rows as a map of the given shape, with the batch dimension."""
    if layout == NHWC:
        return rows.reshape(shape)
    _, channels, height, width = shape
    return np.ascontiguousarray(
        rows.reshape(height, width, channels).transpose(2, 0, 1)[np.newaxis]
    )

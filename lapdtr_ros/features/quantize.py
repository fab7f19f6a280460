"""Rows of numbers in 8, 6, 4, 3 or 2 bits per value.

A row (a token, or the channels at one position of a map) is rotated by a fixed orthogonal matrix,
which spreads every channel over all of them: what comes out is close to Gaussian, so one step per
row fits all its values and the range can be the one that is best for a Gaussian. A static mean, if
there is one, is taken off before (`lapdtr_ros.features.packing`): rotation spreads the size of a
few large channels, but cannot remove it.

Layout of ``n`` rows of ``C`` values in ``b`` bits, little-endian throughout:

1. ``n`` steps, float16;
2. ``n * C`` codes, row-major. Code ``i`` occupies bits ``i*b`` to ``i*b + b - 1`` of the stream,
   bit ``j`` of which is bit ``j % 8`` of byte ``j // 8``: with 4 bits the first code is the low
   nibble of the first byte. The last byte is filled up with zeros.

A code ``q`` stands for ``(q + 1/2 - 2**(b-1)) * step``.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lapdtr_ros.execution.frames import PacketError

Array = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

STEP_BYTES = 2  # float16

# Half the range over the standard deviation at which a uniform quantizer of a Gaussian loses least
# (Max, "Quantizing for minimum distortion", 1960); `test_features_quantize` finds them again.
_HALF_RANGE = {2: 1.991, 3: 2.344, 4: 2.682, 6: 3.332, 8: 3.940}

_LARGEST_WALSH = 128
_GROUP = 8  # codes that fill whole bytes at any number of bits


class Rotation:
    """An orthogonal mixing of channels that costs little: signs, Walsh-Hadamard, Hartley.

    The width is split as ``m * q`` with ``q`` a power of two up to 128; a Walsh matrix mixes the
    ``q`` neighbours, a discrete Hartley transform the ``m`` groups. Both are symmetric and their
    own inverse. Fixed random signs come first, so that no natural row, such as a constant one, is
    a basis vector of the result.

    Args:
        channels: width of a row.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        walsh = min(channels & -channels, _LARGEST_WALSH)
        self._walsh = _walsh(walsh)
        self._hartley = _hartley(channels // walsh)
        # The bit generator's raw stream is fixed for all versions of numpy and platforms.
        bits = np.random.PCG64(0).random_raw(channels) & np.uint64(1)
        self._signs = (1 - 2 * bits.astype(np.int64)).astype(np.float32)

    def forward(self, rows: Array) -> Array:
        """Rotate rows [n, C]."""
        return self._mix(rows * self._signs)

    def inverse(self, rows: Array) -> Array:
        """Undo `forward`."""
        mixed = self._mix(rows)
        mixed *= self._signs
        return mixed

    def _mix(self, rows: Array) -> Array:
        walsh, hartley = len(self._walsh), len(self._hartley)
        mixed = rows.reshape(-1, walsh) @ self._walsh
        if hartley > 1:
            mixed = self._hartley @ mixed.reshape(-1, hartley, walsh)
        return mixed.reshape(rows.shape)


@lru_cache(maxsize=16)
def rotation(channels: int) -> Rotation:
    """The rotation of rows of this width."""
    return Rotation(channels)


def encoded_bytes(rows: int, channels: int, bits: int) -> int:
    """Bytes of ``rows`` encoded rows."""
    return rows * STEP_BYTES + packed_bytes(rows * channels, bits)


def encode(rows: Array, bits: int) -> bytes:
    """Quantize rows.

    Args:
        rows: float32 [n, C].
        bits: one of `lapdtr_ros.planning.plan.BITS`.

    Raises:
        PacketError: values that are not finite, or too large for a float16 step.
    """
    mixed = rotation(rows.shape[1]).forward(rows)
    half = 2.0 ** (bits - 1)
    largest = np.abs(mixed).max(axis=1, initial=0)
    spread = np.sqrt(np.einsum('ij,ij->i', mixed, mixed) / max(1, mixed.shape[1]))
    reach = np.minimum(_HALF_RANGE[bits] * spread, largest)
    # not <=: NaN must fail, too
    if not bool((reach <= np.finfo(np.float16).max).all()):
        raise PacketError(
            f'features reach {float(reach.max()):.3g}, beyond what {bits} bits with a float16 step '
            f'can carry; send this cut with bits: 0'
        )
    steps = (reach / half).astype('<f2')
    # A step that vanished stands for a row of zeros; any other divisor than 0 will do.
    inverse = 1 / np.where(steps > 0, steps.astype(np.float32), np.float32(1))
    mixed *= inverse[:, None]
    mixed += half
    np.clip(mixed, 0, 2 * half - 1, out=mixed)  # the conversion below then rounds down
    return steps.tobytes() + pack_bits(mixed.astype(np.uint8).reshape(-1), bits)


def decode(data: memoryview, rows: int, channels: int, bits: int) -> Array:
    """Undo `encode` but for the rounding.

    Args:
        data: exactly `encoded_bytes` of them.
        rows: n.
        channels: C.
        bits: as encoded.

    Returns:
        float32 [n, C].
    """
    steps = read_steps(data, rows)
    codes = unpack_bits(data[rows * STEP_BYTES :], rows * channels, bits)
    values = codes.reshape(rows, channels).astype(np.float32)
    values += np.float32(0.5 - 2.0 ** (bits - 1))
    values *= steps[:, None].astype(np.float32)
    return rotation(channels).inverse(values)


def read_steps(data: memoryview, rows: int) -> npt.NDArray[np.float16]:
    """Steps of encoded rows.

    Raises:
        PacketError: one is negative or not finite.
    """
    steps = np.frombuffer(data, '<f2', rows)
    if not bool((np.isfinite(steps) & (steps >= 0)).all()):
        raise PacketError('a quantization step is negative or not finite; the payload is damaged')
    return steps


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` codes."""
    return -(-count * bits // 8)


def pack_bits(codes: Codes, bits: int) -> bytes:
    """Write codes one after the other, see the head of this file.

    Args:
        codes: uint8 [count], each below ``2**bits``.
        bits: 1 to 8.
    """
    if bits == 8:
        return codes.tobytes()
    padded = np.zeros(-(-codes.size // _GROUP) * _GROUP, np.uint8)
    padded[: codes.size] = codes
    # Neighbours are joined in pairs, three times over: eight codes end in one integer each.
    joined = padded.astype(np.uint16)
    joined = joined[0::2] | joined[1::2] << np.uint16(bits)
    longer = joined.astype(np.uint32)
    longer = longer[0::2] | longer[1::2] << np.uint32(2 * bits)
    longest = longer.astype('<u8')
    longest = longest[0::2] | longest[1::2] << np.uint64(4 * bits)
    packed = longest.astype('<u8', copy=False).view(np.uint8).reshape(-1, 8)[:, :bits]
    return packed.tobytes()[: packed_bytes(codes.size, bits)]


def unpack_bits(data: memoryview | bytes, count: int, bits: int) -> Codes:
    """Undo `pack_bits`."""
    if bits == 8:
        return np.frombuffer(data, np.uint8, count)
    groups = -(-count // _GROUP)
    padded = np.zeros(groups * bits, np.uint8)
    padded[: packed_bytes(count, bits)] = np.frombuffer(data, np.uint8, packed_bytes(count, bits))
    wide = np.zeros((groups, 8), np.uint8)
    wide[:, :bits] = padded.reshape(groups, bits)
    longest = wide.view('<u8').reshape(-1)
    longer = _apart(longest, 4 * bits, np.dtype(np.uint32))
    joined = _apart(longer, 2 * bits, np.dtype(np.uint16))
    return _apart(joined, bits, np.dtype(np.uint8))[:count]


def _apart(joined: np.ndarray, bits: int, dtype: np.dtype) -> np.ndarray:
    """Split each integer into its low ``bits`` bits and the rest."""
    parts = np.empty((joined.size, 2), dtype)
    parts[:, 0] = joined & joined.dtype.type(2**bits - 1)
    parts[:, 1] = joined >> joined.dtype.type(bits)
    return parts.reshape(-1)


def _walsh(size: int) -> Array:
    """Orthonormal Walsh-Hadamard matrix of a power of two."""
    matrix = np.ones((1, 1), np.float64)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.sqrt(size)).astype(np.float32)


def _hartley(size: int) -> Array:
    """Orthonormal discrete Hartley transform."""
    angles = 2 * np.pi / size * np.outer(np.arange(size), np.arange(size))
    return ((np.cos(angles) + np.sin(angles)) / np.sqrt(size)).astype(np.float32)

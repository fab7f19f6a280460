"""Rows in a few bits: exact layout, bounded error, never NaN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lapdtr_ros.execution.frames import PacketError
from lapdtr_ros.features.quantize import (
    _HALF_RANGE,
    Rotation,
    decode,
    encode,
    encoded_bytes,
    pack_bits,
    packed_bytes,
    unpack_bits,
)
from lapdtr_ros.planning.plan import BITS

WIDTHS = (1, 2, 3, 7, 48, 64, 97, 160, 192, 384, 512, 768)


def round_trip(rows, bits):
    return decode(memoryview(encode(rows, bits)), *rows.shape, bits)


@given(data=st.data(), bits=st.integers(1, 8), count=st.integers(0, 70))
def test_any_codes_come_back(data, bits, count):
    codes = data.draw(arrays(np.uint8, count, elements=st.integers(0, 2**bits - 1)))
    packed = pack_bits(codes, bits)
    assert len(packed) == packed_bytes(count, bits)
    np.testing.assert_array_equal(unpack_bits(packed, count, bits), codes)


def test_the_first_code_is_in_the_low_bits_of_the_first_byte():
    assert pack_bits(np.array([0x3, 0xA, 0x5], np.uint8), 4) == bytes([0xA3, 0x05])
    # 3 bits: 0b001, 0b010, 0b011 make the stream 1 00 0 10 1 10 from the lowest bit on
    assert pack_bits(np.array([1, 2, 3], np.uint8), 3) == bytes([0b11010001, 0b0])
    assert pack_bits(np.array([1, 2, 3, 3], np.uint8), 6) == bytes([0x81, 0x30, 0x0C])


@pytest.mark.parametrize('channels', WIDTHS)
def test_a_rotation_keeps_lengths_and_can_be_undone(channels):
    rows = np.random.default_rng(0).standard_normal((5, channels), dtype=np.float32)
    rotation = Rotation(channels)
    rotated = rotation.forward(rows)
    np.testing.assert_allclose((rotated**2).sum(1), (rows**2).sum(1), rtol=1e-4)
    np.testing.assert_allclose(rotation.inverse(rotated), rows, atol=1e-5)


@pytest.mark.parametrize('channels', [64, 192, 384])
def test_a_rotation_spreads_one_channel_and_a_constant_over_all(channels):
    rows = np.stack(
        [np.eye(channels, dtype=np.float32)[3], np.full(channels, channels**-0.5, 'f4')]
    )
    assert np.abs(Rotation(channels).forward(rows)).max() < 0.45


@pytest.mark.parametrize('channels', WIDTHS)
@pytest.mark.parametrize('bits', BITS)
@pytest.mark.parametrize('rows', [0, 1, 5])
def test_shapes_and_lengths_are_exact_for_odd_sizes(rows, channels, bits):
    values = np.random.default_rng(1).standard_normal((rows, channels), dtype=np.float32)
    assert len(encode(values, bits)) == encoded_bytes(rows, channels, bits)
    assert round_trip(values, bits).shape == values.shape


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    channels=st.sampled_from([48, 97, 192, 384]),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-5, 5),
)
def test_more_bits_never_lose_more(seed, channels, scale, shift):
    rows = np.random.default_rng(seed).standard_normal((6, channels), dtype=np.float32)
    rows = (scale * (rows + shift)).astype(np.float32)
    errors = [float(((round_trip(rows, bits) - rows) ** 2).mean()) for bits in sorted(BITS)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.25 * float((rows**2).mean())
    assert errors[-1] < 1e-3 * float((rows**2).mean())


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 9)),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    st.sampled_from(BITS),
)
def test_no_finite_row_becomes_nan(rows, bits):
    reach = np.abs(rows).max() * rows.shape[1] ** 0.5
    if reach < 6e4:
        assert np.isfinite(round_trip(rows, bits)).all()


@pytest.mark.parametrize('value', [0.0, 1e-30, 7.5])
@pytest.mark.parametrize('bits', BITS)
def test_constant_rows_stay_finite_and_near(value, bits):
    rows = np.full((3, 96), value, np.float32)
    result = round_trip(rows, bits)
    assert np.abs(result - rows).max() <= max(value, 1e-6)


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e30])
def test_values_that_no_step_can_carry_are_refused(bad):
    rows = np.zeros((2, 64), np.float32)
    rows[1, 3] = bad
    with pytest.raises(PacketError, match='bits: 0'):
        encode(rows, 4)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -1.0])
def test_a_damaged_step_is_refused(bad):
    data = bytearray(encode(np.ones((2, 8), np.float32), 4))
    data[2:4] = np.float16(bad).tobytes()
    with pytest.raises(PacketError, match='step'):
        decode(memoryview(data), 2, 8, 4)


@pytest.mark.parametrize('bits', BITS)
def test_the_range_is_the_best_for_a_gaussian(bits):
    values = np.random.default_rng(2).standard_normal(200_000)
    half = 2.0 ** (bits - 1)

    def error(reach):
        codes = np.clip(np.floor(values / (reach / half) + half), 0, 2 * half - 1)
        return (((codes + 0.5 - half) * reach / half - values) ** 2).mean()

    chosen = _HALF_RANGE[bits]
    assert error(chosen) <= 1.02 * min(error(chosen * f) for f in (0.8, 0.9, 0.95, 1.05, 1.1, 1.2))

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lapdtr_ros.execution.frames import JPEG, Packet, PacketError


@given(arrays(np.float32, array_shapes(max_dims=4, max_side=5)))
def test_packet_gives_back_the_same_bits(array):
    packet = Packet.of_array(array)
    assert packet.nbytes == array.nbytes
    assert packet.to_array().tobytes() == array.tobytes()


def test_packet_of_a_strided_array_is_contiguous():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    np.testing.assert_array_equal(Packet.of_array(array).to_array(), array)


@given(st.integers(0, 200).filter(lambda n: n != 48))
def test_wrong_length_is_refused(length):
    with pytest.raises(PacketError, match='takes 48'):
        Packet('features', 'float32', (3, 4), bytes(length)).to_array()


def test_unknown_dtype_is_refused():
    with pytest.raises(PacketError, match='object'):
        Packet('features', 'object', (1,), bytes(8)).to_array()


def test_float64_cannot_be_sent():
    with pytest.raises(PacketError, match='float64'):
        Packet.of_array(np.zeros(3))


def test_a_jpeg_has_no_array():
    with pytest.raises(PacketError, match='decode'):
        Packet(JPEG, 'uint8', (2, 2, 3), b'').to_array()

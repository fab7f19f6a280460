"""Packets of features: what goes in comes out, and nothing that is damaged gets in."""

import dataclasses
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.execution.frames import JPEG, RAW, Packet, PacketError
from lapdtr_ros.features.calibration import Calibration, mean_name, write_calibration
from lapdtr_ros.features.errors import SummaryError
from lapdtr_ros.features.packing import Packing, check, packed_bytes
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.layout import NCHW, NHWC, TOKENS, FeatureLayout
from lapdtr_ros.models.preprocess import encode_jpeg
from lapdtr_ros.planning.plan import BITS, CLUSTER, FORMS, LITERAL_FORM, LOSSLESS, CutSetting

MODEL = 'test_vit'
LAYOUTS = {
    'tokens': FeatureLayout(TOKENS, 48, (3, 5), 1),
    'tokens without class token': FeatureLayout(TOKENS, 48, (3, 5)),
    'distilled': FeatureLayout(TOKENS, 33, (2, 7), 2),
    'nchw': FeatureLayout(NCHW, 20, (3, 5)),
    'nhwc': FeatureLayout(NHWC, 20, (3, 5)),
}
settings_of_cuts = st.builds(
    lambda keep, form, bits: CutSetting(keep, form if keep else '', bits),
    st.integers(0, 14),
    st.sampled_from(FORMS),
    st.sampled_from((0, *BITS)),
)


def features_of(layout, seed=0):
    return np.random.default_rng(seed).standard_normal((1, *layout.shape), dtype=np.float32)


def attention_of(layout):
    positions = layout.grid[0] * layout.grid[1]
    return np.random.default_rng(9).random(positions, dtype=np.float32)


def whole(features, summary, layout):
    return features if summary is None else summary.restore(features, layout.prefix_tokens)


@settings(deadline=None, max_examples=200)
@given(name=st.sampled_from(sorted(LAYOUTS)), cut=settings_of_cuts, seed=st.integers(0, 99))
def test_every_setting_of_every_layout_gives_finite_features_of_the_predicted_length(
    name, cut, seed
):
    layout = LAYOUTS[name]
    features = features_of(layout, seed)
    packet = Packing(layout).pack(features, 3, cut, attention=attention_of(layout))
    assert packet.cut == cut
    assert packet.nbytes == packed_bytes(features.shape, layout, cut)
    check(packet, features.shape)
    result = whole(*Packing(layout).unpack(packet, 3), layout)
    assert result.shape == features.shape
    assert np.isfinite(result).all()


@pytest.mark.parametrize('name', LAYOUTS)
def test_all_tokens_at_eight_bits_are_nearly_the_features(name):
    layout = LAYOUTS[name]
    features = features_of(layout)
    packet = Packing(layout).pack(features, 3, CutSetting(bits=8))
    result, summary = Packing(layout).unpack(packet, 3)
    assert summary is None
    np.testing.assert_allclose(result, features, atol=0.05)


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_lossless_packet_has_the_very_bytes_of_the_array(name):
    layout = LAYOUTS[name]
    features = features_of(layout)
    packet = Packing(layout).pack(features, 3, LOSSLESS)
    assert bytes(packet.data) == features.tobytes()
    assert Packing(layout).unpack(packet, 3)[0].tobytes() == features.tobytes()


@pytest.mark.parametrize('form', FORMS)
def test_every_token_kept_without_bits_loses_nothing(form):
    layout = LAYOUTS['tokens']
    features = features_of(layout)
    cut = CutSetting(15, form)
    packet = Packing(layout).pack(features, 3, cut, attention=attention_of(layout))
    result = whole(*Packing(layout).unpack(packet, 3), layout)
    np.testing.assert_allclose(result, features, atol=1e-6)


def test_prefix_tokens_keep_eight_bits_where_patches_have_two():
    layout = LAYOUTS['distilled']
    features = features_of(layout)
    result, _ = Packing(layout).unpack(Packing(layout).pack(features, 3, CutSetting(bits=2)), 3)
    error = np.abs(result - features)[0]
    assert error[:2].max() < 0.05 < error[2:].max()


def test_a_map_comes_back_whole_and_its_positions_in_place():
    layout = LAYOUTS['nchw']
    features = np.arange(15, dtype=np.float32).reshape(1, 1, 3, 5).repeat(20, axis=1) + 1
    features[:, 3] *= -1
    result, summary = Packing(layout).unpack(
        Packing(layout).pack(features, 3, CutSetting(15, CLUSTER)), 3
    )
    assert summary is None
    np.testing.assert_allclose(result, features, rtol=1e-5)


def test_summarised_tokens_travel_on_and_shrink_further_only_if_asked():
    layout = LAYOUTS['tokens']
    packing = Packing(layout)
    first, summary = packing.unpack(packing.pack(features_of(layout), 3, CutSetting(8, CLUSTER)), 3)
    assert first.shape == (1, 9, 48)
    for cut in (LOSSLESS, CutSetting(12, CLUSTER), CutSetting(8, LITERAL_FORM)):
        packet = packing.pack(first, 4, cut, summary)
        assert packet.cut == CutSetting(8, CLUSTER)
        again, same = packing.unpack(packet, 4)
        np.testing.assert_array_equal(again, first)
        np.testing.assert_array_equal(same.assignment, summary.assignment)
    packet = packing.pack(first, 4, CutSetting(3, CLUSTER, 8), summary)
    check(packet, (1, *layout.shape))
    fewer, both = packing.unpack(packet, 4)
    assert (fewer.shape, both.rows) == ((1, 4, 48), 3)
    # Tokens that shared a row still do.
    for row in range(8):
        assert len(set(both.assignment[summary.assignment == row])) == 1


def test_rows_are_weighted_by_the_tokens_they_stand_for_when_summarised_again():
    layout = FeatureLayout(TOKENS, 2, (1, 4))
    packing = Packing(layout)
    features = np.array([[[0, 1], [0, 1], [0, 1], [0, 5]]], np.float32)
    rows, summary = packing.unpack(packing.pack(features, 3, CutSetting(2, CLUSTER)), 3)
    one, _ = packing.unpack(packing.pack(rows, 4, CutSetting(1, CLUSTER), summary), 4)
    np.testing.assert_allclose(one, [[[0, 2]]], rtol=1e-6)


@pytest.fixture(scope='module')
def calibration(tmp_path_factory):
    path = tmp_path_factory.mktemp('calibration') / 'vit.safetensors'
    mean = 10 * torch.randn(101, 64, generator=torch.Generator().manual_seed(0))
    about = {'command': 'test', 'data': 'none'}
    write_calibration(path, MODEL, 'random:0', {mean_name(3): mean.half()}, **about)
    return Calibration(path, MODEL, 'random:0')


def test_a_static_mean_lowers_the_error(calibration):
    layout = model_spec(MODEL).layout
    features = features_of(layout) + calibration.cut_mean(3)
    cut = CutSetting(bits=4)
    errors = []
    for packing in (Packing(layout, calibration), Packing(layout)):
        packet = packing.pack(features, 3, cut)
        check(packet, features.shape)
        errors.append(np.abs(whole(*packing.unpack(packet, 3), layout) - features).mean())
    assert errors[0] < 0.5 * errors[1]


def test_groups_form_by_what_differs_from_the_static_mean(calibration):
    layout = model_spec(MODEL).layout
    noise = np.random.default_rng(3).standard_normal((2, 64), dtype=np.float32)
    kinds = np.arange(101) % 2
    features = (calibration.cut_mean(3) + noise[kinds])[np.newaxis]
    packet = Packing(layout, calibration).pack(features, 3, CutSetting(2, CLUSTER))
    _, summary = Packing(layout, calibration).unpack(packet, 3)
    assert len(set(summary.assignment[::2])) == len(set(summary.assignment[1::2])) == 1


def test_a_cut_without_a_mean_is_packed_without_it(calibration):
    layout = model_spec(MODEL).layout
    packet = Packing(layout, calibration).pack(features_of(layout), 4, CutSetting(bits=8))
    result, _ = Packing(layout).unpack(packet, 4)
    np.testing.assert_allclose(result, features_of(layout), atol=0.05)


def test_devices_with_different_calibrations_notice(calibration):
    layout = model_spec(MODEL).layout
    packet = Packing(layout, calibration).pack(features_of(layout), 3, CutSetting(bits=4))
    with pytest.raises(PacketError, match='another calibration file'):
        Packing(layout).unpack(packet, 3)


def packed(cut=None, layout=LAYOUTS['tokens']):
    cut = cut or CutSetting(5, CLUSTER, 4)
    return Packing(layout).pack(features_of(layout), 3, cut), (1, *layout.shape)


@settings(deadline=None)
@given(st.integers(0, 2000))
def test_any_other_length_is_refused(length):
    packet, shape = packed()
    if length == packet.nbytes:
        return
    data = bytes(packet.data)[:length].ljust(length, b'\0')
    with pytest.raises(PacketError):
        check(dataclasses.replace(packet, data=data), shape)


@settings(deadline=None, max_examples=300)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_gives_finite_features(place, value):
    packet, shape = packed()
    data = bytearray(packet.data)
    data[place % len(data)] = value
    damaged = dataclasses.replace(packet, data=bytes(data))
    try:
        check(damaged, shape)
        result, _ = Packing(LAYOUTS['tokens']).unpack(damaged, 3)
    except PacketError:
        return
    assert np.isfinite(result).all()


@pytest.mark.parametrize(
    ('change', 'what'),
    [
        ({'cut': CutSetting(6, CLUSTER, 4)}, 'rows'),
        ({'cut': CutSetting(5, CLUSTER, 3)}, 'takes'),
        ({'cut': CutSetting(5, CLUSTER)}, 'takes'),
        ({'cut': CutSetting(bits=4)}, 'rows'),
        ({'cut': LOSSLESS}, 'takes'),
        ({'dtype': 'float16'}, 'float16'),
        ({'shape': (1, 17, 48)}, 'expected'),
        ({'coding': 'zip'}, 'expected uint8'),
        ({'data': b''}, 'no header'),
    ],
)
def test_a_description_that_does_not_fit_is_refused_by_name(change, what):
    packet, shape = packed()
    with pytest.raises(PacketError, match=what):
        check(dataclasses.replace(packet, **change), shape)


@pytest.mark.parametrize(
    ('offset', 'value', 'what'),
    [
        (0, b'\x02', 'version 2'),
        (1, b'\x09', 'layout 9'),
        (1, b'\x01', 'cannot have layout nchw'),
        (2, struct.pack('<H', 60), 'prefix'),
        (2, struct.pack('<H', 0), 'takes'),
        (4, struct.pack('<I', 2**31), 'rows'),
        (12, b'\x05', 'assignment'),
        (12, bytes(15), 'assignment'),
        (27, np.float16(np.nan).tobytes(), 'step'),
        (27 + 2 + 48, np.float16(-1).tobytes(), 'step'),
    ],
)
def test_a_damaged_payload_is_refused_by_name(offset, value, what):
    packet, shape = packed()
    data = bytearray(packet.data)
    data[offset : offset + len(value)] = value
    with pytest.raises(PacketError, match=what):
        check(dataclasses.replace(packet, data=bytes(data)), shape)


def test_a_layout_of_another_model_is_refused():
    packet, _ = packed()
    with pytest.raises(PacketError, match='another model'):
        Packing(FeatureLayout(TOKENS, 48, (4, 4))).unpack(packet, 3)


@pytest.mark.parametrize(
    ('packet', 'what'),
    [
        (Packet(RAW, 'uint8', (2, 2, 3), bytes(11)), 'takes 12'),
        (Packet(RAW, 'uint8', (2, 2, 3), bytes(12), CutSetting(bits=4)), 'not packed'),
        (Packet(RAW, 'uint8', (4, 2, 3), bytes(24)), 'expected uint8'),
        (Packet(JPEG, 'uint8', (2, 2, 3), b''), 'JPEG of 0 bytes'),
        (Packet(JPEG, 'uint8', (2, 2, 3), bytes(13)), 'JPEG of 13 bytes'),
        (Packet('zip', 'uint8', (2, 2, 3), bytes(12)), 'unknown coding'),
    ],
)
def test_pictures_that_do_not_fit_are_refused(packet, what):
    with pytest.raises(PacketError, match=what):
        check(packet, (2, 2, 3))


def test_pictures_that_fit_are_accepted():
    check(Packet(RAW, 'uint8', (2, 2, 3), bytes(12)), (2, 2, 3))
    picture = np.zeros((32, 48, 3), np.uint8)
    check(Packet(JPEG, 'uint8', picture.shape, encode_jpeg(picture)), picture.shape)


def test_a_jpeg_of_another_size_is_refused_before_it_is_decoded():
    shape = (32, 48, 3)
    bomb = Packet(JPEG, 'uint8', shape, encode_jpeg(np.zeros((600, 800, 3), np.uint8), 1)[:4000])
    with pytest.raises(PacketError, match=r'\(600, 800\), expected \(32, 48\)'):
        check(bomb, shape)
    with pytest.raises(PacketError, match='no header'):
        check(Packet(JPEG, 'uint8', shape, bytes(1000)), shape)


def test_more_tokens_than_there_are_and_literal_without_attention_are_refused():
    layout = LAYOUTS['tokens']
    with pytest.raises(SummaryError, match='keep = 16 of 15'):
        Packing(layout).pack(features_of(layout), 3, CutSetting(16, CLUSTER))
    with pytest.raises(SummaryError, match='attention'):
        Packing(layout).pack(features_of(layout), 3, CutSetting(4, LITERAL_FORM))


def test_features_that_are_not_finite_are_refused():
    layout = LAYOUTS['tokens']
    features = features_of(layout)
    features[0, 4, 4] = np.nan
    with pytest.raises(PacketError, match='bits: 0'):
        Packing(layout).pack(features, 3, CutSetting(bits=4))


def test_the_assignment_takes_two_bytes_per_token_beyond_256_rows():
    layout = FeatureLayout(TOKENS, 4, (20, 20))
    features = features_of(layout)
    few, many = (
        Packing(layout).pack(features, 3, CutSetting(keep, CLUSTER)) for keep in (256, 257)
    )
    assert many.nbytes - few.nbytes == 400 + 4 * 4
    result, summary = Packing(layout).unpack(many, 3)
    assert summary.assignment.max() == 256
    assert result.shape == (1, 257, 4)

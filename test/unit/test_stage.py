"""A stage refuses bad input and continues from any unit it holds."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.errors import LapdtrError, UnknownNameError
from lapdtr_ros.execution.frames import JPEG, RAW, Packet
from lapdtr_ros.execution.stage import StageInputError, StageRunner
from lapdtr_ros.features.calibration import mean_name, write_calibration
from lapdtr_ros.features.packing import Packing
from lapdtr_ros.features.transfer import Adapter
from lapdtr_ros.models.facts import model_spec, profile_model
from lapdtr_ros.models.preprocess import decode_jpeg, encode_jpeg
from lapdtr_ros.planning.plan import CLUSTER, FORMS, LITERAL_FORM, LOSSLESS, CutSetting

MODEL = 'test_vit'
UNITS = 8
PICTURE = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def whole():
    return StageRunner(MODEL, 'random:4', 0, UNITS)


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, UNITS - 1)))
def test_any_chain_of_ranges_gives_the_output_of_one_run(whole, cuts):
    features = PICTURE
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), UNITS], strict=True):
        features = whole.run_range(features, start, stop)
    np.testing.assert_allclose(features, whole.run(PICTURE), atol=1e-5)


def test_separate_stages_give_the_output_of_one_stage(whole):
    first = StageRunner(MODEL, 'random:4', 0, 3)
    second = StageRunner(MODEL, 'random:4', 3, UNITS)
    np.testing.assert_allclose(second.run(first.run(PICTURE)), whole.run(PICTURE), atol=1e-5)
    assert first.parameter_bytes + second.parameter_bytes == whole.parameter_bytes
    assert whole.parameter_bytes == profile_model(MODEL).parameter_bytes


def test_a_received_buffer_may_be_read_only(whole):
    sent = whole.run_range(PICTURE, 0, 2)
    received = np.frombuffer(sent.tobytes(), np.float32).reshape(sent.shape)
    np.testing.assert_array_equal(
        whole.run_range(received, 2, UNITS), whole.run_range(sent, 2, UNITS)
    )


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(whole, bad):
    features = whole.run_range(PICTURE, 0, 2)
    features[0, 5, 7] = bad
    with pytest.raises(StageInputError, match='NaN or infinity'):
        whole.run_range(features, 2, 4)


@pytest.mark.parametrize(
    'features',
    [
        np.zeros((1, 101, 63), np.float32),
        np.zeros((2, 101, 64), np.float32),
        np.zeros((101, 64), np.float32),
        np.zeros((1, 101, 64), np.float64),
    ],
    ids=['width', 'batch', 'no batch', 'type'],
)
def test_features_of_the_wrong_shape_or_type_are_refused(whole, features):
    with pytest.raises(StageInputError, match=r'expected float32 of shape \(1, 101, 64\)'):
        whole.run_range(features, 3, 4)


def test_a_picture_of_the_wrong_size_is_refused(whole):
    with pytest.raises(StageInputError, match='expected uint8 of shape 160 x 160 x 3'):
        whole.run(PICTURE[:100])


@pytest.mark.parametrize(('start', 'stop'), [(1, 3), (2, 6), (3, 3), (4, 3)])
def test_units_that_the_stage_does_not_hold_are_refused(start, stop):
    stage = StageRunner(MODEL, 'random:4', 2, 5)
    with pytest.raises(StageInputError, match='holds units 2 to 5'):
        stage.run_range(np.zeros((1, 101, 64), np.float32), start, stop)


def test_warm_up_runs_first_and_later_stages(whole):
    whole.warm_up()
    StageRunner(MODEL, 'random:4', 5, UNITS).warm_up()


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match='unknown backend'):
        StageRunner(MODEL, 'random:0', 0, 1, backend='tensorrt')
    with pytest.raises(LapdtrError, match='test_vitt'):
        StageRunner('test_vitt', 'random:0', 0, 1)


def test_a_stage_loads_in_the_background_while_another_computes(whole):
    expected = whole.run(PICTURE)
    loaded = []

    def load():
        name = 'efficientvit_m0@96x160'
        loaded.append(StageRunner(name, 'random:1', 0, len(model_spec(name).unit_names)))

    thread = threading.Thread(target=load)
    thread.start()
    runs = 0
    while thread.is_alive() or runs == 0:
        np.testing.assert_array_equal(whole.run(PICTURE), expected)
        runs += 1
    thread.join()
    assert loaded[0].run(np.zeros((96, 160, 3), np.uint8)).shape == (1, 1000)


@pytest.mark.parametrize('cut', range(1, UNITS))
def test_lossless_packets_between_stages_give_the_output_of_one_run(whole, cut):
    first = whole.run_packet(Packet.of_array(PICTURE, RAW), 0, cut, LOSSLESS)
    second = whole.run_packet(first, cut, UNITS, LOSSLESS)
    np.testing.assert_array_equal(second.to_array(), whole.run(PICTURE))


def test_a_jpeg_packet_runs_like_its_decoded_picture(whole):
    data = encode_jpeg(PICTURE)
    decoded = whole.run_packet(Packet.of_array(decode_jpeg(data), RAW), 0, UNITS, LOSSLESS)
    coded = whole.run_packet(Packet(JPEG, 'uint8', PICTURE.shape, data), 0, UNITS, LOSSLESS)
    np.testing.assert_array_equal(coded.to_array(), decoded.to_array())


def chain(runners, cuts, settings):
    """Outputs of a picture's way through stages, and the packets between them."""
    packet = Packet.of_array(PICTURE, RAW)
    packets = []
    stops = [*cuts, UNITS]
    for runner, start, stop, setting in zip(
        runners, [0, *cuts], stops, [*settings, LOSSLESS], strict=True
    ):
        packet = runner.run_packet(packet, start, stop, setting)
        packets.append(packet)
    return packets


def test_a_summary_travels_over_three_devices_and_the_head_sees_the_grid(whole):
    cut = CutSetting(40, CLUSTER, 8)
    packets = chain([whole] * 3, [3, 5], [cut, cut])
    assert [p.cut for p in packets[:2]] == [cut, cut]
    assert packets[0].shape == packets[1].shape == (1, 101, 64)
    # The second device neither chose again nor computed on more than 41 tokens.
    (few, first), (fewer, second) = (
        Packing(model_spec(MODEL).layout).unpack(p, unit)
        for p, unit in zip(packets[:2], (3, 5), strict=True)
    )
    assert few.shape == fewer.shape == (1, 41, 64)
    np.testing.assert_array_equal(first.assignment, second.assignment)
    expected = whole.run(PICTURE)
    error = np.abs(packets[-1].to_array() - expected).mean()
    assert error < 0.3 * expected.std()


def test_stages_on_summarised_tokens_compute_what_the_copied_grid_would(whole):
    packet = whole.run_packet(Packet.of_array(PICTURE, RAW), 0, 3, CutSetting(30, CLUSTER))
    features, summary = Packing(model_spec(MODEL).layout).unpack(packet, 3)
    expected = whole.run_range(summary.restore(features, 1), 3, UNITS)
    result = whole.run_packet(packet, 3, UNITS, LOSSLESS).to_array()
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_resuming_with_a_kept_packet_gives_the_same_bits(whole):
    packet = whole.run_packet(Packet.of_array(PICTURE, RAW), 0, 3, CutSetting(30, CLUSTER, 4))
    first = whole.run_packet(packet, 3, UNITS, LOSSLESS)
    other = StageRunner(MODEL, 'random:4', 2, UNITS)
    again = other.run_packet(packet, 3, UNITS, LOSSLESS)
    assert bytes(first.data) == bytes(again.data)


@pytest.mark.parametrize('form', FORMS)
def test_all_tokens_kept_without_bits_equals_the_unsplit_model(whole, form):
    result = chain([whole] * 2, [4], [CutSetting(100, form)])[-1]
    np.testing.assert_allclose(result.to_array(), whole.run(PICTURE), atol=1e-5)


def test_the_literal_form_takes_the_attention_of_the_last_block(whole):
    cut = CutSetting(30, LITERAL_FORM)
    packet = whole.run_packet(Packet.of_array(PICTURE, RAW), 0, 3, cut)
    _, summary = Packing(model_spec(MODEL).layout).unpack(packet, 3)
    assert sorted(summary.sizes)[:29] == [1] * 29
    assert summary.sizes[29] == 71


def test_the_literal_form_is_refused_where_there_is_no_attention(whole):
    with pytest.raises(LapdtrError, match='use form cluster'):
        whole.run_packet(Packet.of_array(PICTURE, RAW), 0, 1, CutSetting(30, LITERAL_FORM))


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize('keep', [0, 200])
def test_windowed_families_get_their_grid_back(keep, bits):
    name = 'tiny_vit_5m_224@64x64'
    units = len(model_spec(name).unit_names)
    stage = StageRunner(name, 'random:2', 0, units)
    picture = PICTURE[:64, :64]
    cut = CutSetting(keep, CLUSTER if keep else '', bits)
    packet = stage.run_packet(Packet.of_array(picture, RAW), 0, 2, cut)
    result = stage.run_packet(packet, 2, units, LOSSLESS).to_array()
    expected = stage.run(picture)
    assert np.isfinite(result).all()
    assert np.abs(result - expected).mean() < 0.5 * np.abs(expected - expected.mean()).mean()


def test_onnx_puts_the_grid_back_and_gives_the_output_of_torch(whole, tmp_path, monkeypatch):
    pytest.importorskip('onnxscript')
    monkeypatch.setenv('LAPDTR_CACHE', str(tmp_path))
    stage = StageRunner(MODEL, 'random:4', 5, UNITS, backend='onnx')
    packet = whole.run_packet(Packet.of_array(PICTURE, RAW), 0, 5, CutSetting(30, CLUSTER, 8))
    expected = whole.run_packet(packet, 5, UNITS, LOSSLESS).to_array()
    result = stage.run_packet(packet, 5, UNITS, LOSSLESS).to_array()
    np.testing.assert_allclose(result, expected, atol=1e-4)
    with pytest.raises(LapdtrError, match='use form cluster'):
        stage.run_packet(packet, 5, 7, CutSetting(20, LITERAL_FORM))


@pytest.fixture(scope='module')
def calibration(tmp_path_factory, whole):
    """Means of cut 3 and an adapter that does exactly what is asked of it."""
    path = tmp_path_factory.mktemp('calibration') / 'stage.safetensors'
    mean = torch.from_numpy(whole.run_range(PICTURE, 0, 3)[0]).half()
    bias = np.arange(64, dtype=np.float32)
    adapter = Adapter(3, 5, np.zeros((64, 64), np.float32), bias)
    tensors = {mean_name(3): mean, **adapter.tensors('skip.3')}
    write_calibration(path, MODEL, 'random:4', tensors, command='test', data='one picture')
    return str(path)


def test_an_adapter_stands_in_for_the_units_that_it_names(whole, calibration):
    receiver = StageRunner(MODEL, 'random:4', 3, UNITS, calibration=calibration)
    packet = whole.run_packet(Packet.of_array(PICTURE, RAW), 0, 3, CutSetting(transfer='skip.3'))
    result = receiver.run_packet(packet, 3, UNITS, LOSSLESS).to_array()
    given = packet.to_array() + np.arange(64, dtype=np.float32)
    np.testing.assert_allclose(result, whole.run_range(given, 5, UNITS), atol=1e-5)
    only = receiver.run_packet(packet, 3, 5, LOSSLESS).to_array()
    np.testing.assert_allclose(only, given, atol=1e-5)


def test_an_adapter_that_does_not_fit_is_refused_by_name(whole, calibration):
    packet = whole.run_packet(Packet.of_array(PICTURE, RAW), 0, 3, CutSetting(transfer='skip.3'))
    with pytest.raises(StageInputError, match='names no calibration file'):
        whole.run_packet(packet, 3, UNITS, LOSSLESS)
    short = StageRunner(MODEL, 'random:4', 3, 4, calibration=calibration)
    with pytest.raises(StageInputError, match='units 3 to 5'):
        short.run_packet(packet, 3, 4, LOSSLESS)
    receiver = StageRunner(MODEL, 'random:4', 3, UNITS, calibration=calibration)
    with pytest.raises(StageInputError, match='does not fit unit 4'):
        receiver.run_packet(packet, 4, UNITS, LOSSLESS)
    unknown = dataclasses.replace(packet, cut=CutSetting(transfer='skip.9'))
    with pytest.raises(LapdtrError, match=r'skip\.9'):
        receiver.run_packet(unknown, 3, UNITS, LOSSLESS)


def test_the_static_mean_of_the_calibration_lowers_the_error(whole, calibration):
    calibrated = StageRunner(MODEL, 'random:4', 0, UNITS, calibration=calibration)
    expected = whole.run(PICTURE)
    errors = [
        np.abs(chain([stage] * 2, [3], [CutSetting(bits=3)])[-1].to_array() - expected).mean()
        for stage in (calibrated, whole)
    ]
    assert errors[0] < 0.1 * errors[1]


def test_a_calibration_of_other_weights_is_refused(calibration):
    with pytest.raises(LapdtrError, match='weights_digest'):
        StageRunner(MODEL, 'random:5', 0, 2, calibration=calibration)


def test_packed_features_that_are_not_finite_are_refused(whole):
    packet = whole.run_packet(Packet.of_array(PICTURE, RAW), 0, 3, CutSetting(30, CLUSTER))
    data = bytearray(packet.data)
    data[-4:] = np.float32(np.nan).tobytes()
    with pytest.raises(StageInputError, match='NaN or infinity'):
        whole.run_packet(dataclasses.replace(packet, data=bytes(data)), 3, UNITS, LOSSLESS)

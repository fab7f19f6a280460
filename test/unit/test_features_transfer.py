"""Adapters: identity where nothing differs, better on frames they have not seen, or refused."""

import numpy as np
import pytest
import torch

from lapdtr_ros.features.calibration import Calibration, write_calibration
from lapdtr_ros.features.errors import CalibrationError
from lapdtr_ros.features.transfer import (
    AFFINE,
    Adapter,
    TransferSums,
    fit_adapter,
    read_adapter,
)
from lapdtr_ros.models.layout import NCHW, TOKENS
from lapdtr_ros.models.weights import load_units

MODEL = 'test_vit'


def batches(count, channels=8, tokens=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, tokens, channels, generator=generator) for _ in range(count)]


def test_equal_pairs_give_the_identity_exactly():
    sums = TransferSums(TOKENS)
    for x in batches(4):
        sums.add(x, x)
    x = batches(1, seed=5)[0].numpy()
    for adapter in (sums.affine(3, 3), sums.gain(3, 3)):
        np.testing.assert_allclose(adapter.apply(x, TOKENS), x, atol=1e-6)
    np.testing.assert_array_equal(sums.affine(3, 3).weight, 0)


def test_no_adapter_is_accepted_where_nothing_differs():
    pairs = [(x, x) for x in batches(3)]
    adapter, report = fit_adapter(pairs, pairs, torch.nn.Identity(), TOKENS, 3, 3)
    assert adapter is None
    assert report.chosen == ''


def test_an_affine_map_is_found_again():
    matrix = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    pairs = [(x, x @ matrix + 2) for x in batches(12)]
    adapter, report = fit_adapter(pairs[:10], pairs[10:], torch.nn.Identity(), TOKENS, 3, 4)
    assert report.chosen == AFFINE
    assert report.errors[AFFINE] < 0.01 * report.identity
    assert (adapter.start, adapter.stop) == (3, 4)
    error = np.abs(adapter.apply(pairs[-1][0].numpy(), TOKENS) - pairs[-1][1].numpy())
    assert error.max() < 0.5


def test_one_affine_fit_equals_least_squares():
    pairs = [(x, x.flip(2).square()) for x in batches(6)]
    sums = TransferSums(TOKENS)
    for u, v in pairs:
        sums.add(u, v)
    adapter = sums.affine(1, 1, ridge=0.0)
    u = torch.cat([u for u, _ in pairs], 1)[0].double()
    v = torch.cat([v for _, v in pairs], 1)[0].double()
    ones = torch.ones(len(u), 1, dtype=torch.float64)
    solution = torch.linalg.lstsq(torch.cat([u, ones], 1), v).solution
    np.testing.assert_allclose(adapter.weight + np.eye(8), solution[:8], atol=1e-5)
    np.testing.assert_allclose(adapter.bias, solution[8], atol=1e-5)


def test_gains_match_mean_and_spread():
    sums = TransferSums(TOKENS)
    pairs = [(x, 3 * x.roll(1, 1) + 1) for x in batches(8)]
    for u, v in pairs:
        sums.add(u, v)
    adapted = np.concatenate([sums.gain(1, 1).apply(u.numpy(), TOKENS) for u, _ in pairs])
    expected = np.concatenate([v.numpy() for _, v in pairs])
    np.testing.assert_allclose(adapted.mean((0, 1)), expected.mean((0, 1)), atol=1e-4)
    np.testing.assert_allclose(adapted.std((0, 1)), expected.std((0, 1)), rtol=1e-4)


def test_a_worse_adapter_is_refused():
    """Fitted on noise, it would shrink everything to the mean."""
    fit = [(x, y) for x, y in zip(batches(3), batches(3, seed=7), strict=True)]
    held_out = [(x, x + 0.01) for x in batches(2, seed=8)]
    adapter, report = fit_adapter(fit, held_out, torch.nn.Identity(), TOKENS, 3, 3)
    assert adapter is None
    assert min(report.errors.values()) > report.identity


def test_a_skipped_block_is_replaced_better_than_left_out():
    units = load_units(MODEL, 2, 7, 'random:5')
    with torch.inference_mode():
        inputs = [x + x[:, :1] for x in batches(24, 64, 101)]
        pairs = [(x, units(x, 2, 3)) for x in inputs]
        adapter, report = fit_adapter(
            pairs[:20], pairs[20:], lambda x: units(x, 3, 7), TOKENS, 2, 3
        )
    assert adapter is not None
    assert report.errors[report.chosen] < 0.7 * report.identity


def test_channels_of_a_map_are_adapted_at_every_position():
    gains = Adapter(1, 1, np.array([1, 2, 3], np.float32), np.array([0, 0, 1], np.float32))
    ones = np.ones((1, 3, 2, 4), np.float32)
    result = gains.apply(ones, NCHW)
    assert result.shape == ones.shape
    np.testing.assert_array_equal(result[0, :, 1, 3], [1, 2, 4])
    swap = Adapter(1, 1, np.array([[-1, 1], [1, -1]], np.float32), np.zeros(2, np.float32))
    features = np.arange(16, dtype=np.float32).reshape(1, 2, 2, 4)
    np.testing.assert_array_equal(swap.apply(features, NCHW), features[:, ::-1])


def stored(path, tensors):
    write_calibration(path, MODEL, 'random:0', tensors, command='c', data='d')
    return Calibration(path, MODEL, 'random:0')


@pytest.mark.parametrize('shape', [(8,), (8, 8)])
def test_an_adapter_survives_the_file(tmp_path, shape):
    adapter = Adapter(4, 6, np.random.default_rng(0).random(shape, 'f4'), np.ones(8, np.float32))
    read = read_adapter(stored(tmp_path / 'a.safetensors', adapter.tensors('skip.4')), 'skip.4')
    assert (read.start, read.stop) == (4, 6)
    np.testing.assert_allclose(read.weight, adapter.weight, atol=1e-3)
    np.testing.assert_array_equal(read.bias, adapter.bias)


@pytest.mark.parametrize(
    'bad',
    [
        {'weight': torch.zeros(8, 7)},
        {'weight': torch.full((8,), torch.nan)},
        {'bias': torch.zeros(8, 1)},
        {'units': torch.tensor([5, 4])},
        {'units': torch.tensor([0, 1])},
    ],
    ids=['shape', 'nan', 'bias', 'backwards', 'picture'],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, bad):
    tensors = Adapter(4, 5, np.zeros(8, np.float32), np.zeros(8, np.float32)).tensors('skip.4')
    tensors |= {f'transfer.skip.4.{part}': value for part, value in bad.items()}
    with pytest.raises(CalibrationError, match=r"'skip\.4'"):
        read_adapter(stored(tmp_path / 'a.safetensors', tensors), 'skip.4')


def test_an_unknown_adapter_and_no_frames_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match=r'skip\.9'):
        read_adapter(stored(tmp_path / 'a.safetensors', {'x': torch.zeros(1)}), 'skip.9')
    with pytest.raises(CalibrationError, match='no frames'):
        TransferSums(TOKENS).affine(1, 1)

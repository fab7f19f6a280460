"""The calibration file fits one model and its weights, and says so when it does not."""

import pytest
import safetensors.torch
import torch

from lapdtr_ros.features.calibration import (
    Calibration,
    RunningMean,
    find_calibration,
    mean_name,
    write_calibration,
)
from lapdtr_ros.features.errors import CalibrationError
from lapdtr_ros.models.weights import load_units, save_weights

MODEL = 'test_vit'


def write(path, tensors=None, model=MODEL, weights='random:0', **notes):
    tensors = {mean_name(2): torch.ones(101, 64).half()} if tensors is None else tensors
    write_calibration(path, model, weights, tensors, command='c', data='d', notes=notes)
    return path


def test_what_was_written_is_read(tmp_path):
    path = write(
        tmp_path / 'a.safetensors',
        {mean_name(2): torch.ones(101, 64).half(), 'elastic.levels': torch.arange(3)},
        levels='full, half',
    )
    calibration = Calibration(path, MODEL, 'random:0')
    assert calibration.names('elastic') == ('elastic.levels',)
    assert mean_name(2) in calibration
    assert calibration.tensor('elastic.levels').tolist() == [0, 1, 2]
    assert calibration.cut_mean(2).shape == (101, 64)
    assert calibration.cut_mean(3) is None
    assert calibration.metadata['levels'] == 'full, half'
    assert (calibration.metadata['command'], calibration.metadata['data']) == ('c', 'd')


def test_the_same_weights_under_another_name_are_accepted(tmp_path):
    first, second = tmp_path / 'one.safetensors', tmp_path / 'two.safetensors'
    save_weights(load_units(MODEL, 0, 8, 'random:0'), first)
    second.write_bytes(first.read_bytes())
    path = write(tmp_path / 'c.safetensors', weights=str(first))
    assert Calibration(path, MODEL, str(second)).cut_mean(2) is not None


@pytest.mark.parametrize(
    ('model', 'weights', 'what'),
    [('test_vit', 'random:1', 'weights_digest'), ('test_vit2', 'random:0', 'model')],
)
def test_another_model_or_weights_are_refused(tmp_path, model, weights, what):
    path = write(tmp_path / 'a.safetensors')
    with pytest.raises(CalibrationError, match=f'{what} is .* made for this model'):
        Calibration(path, model, weights)


def test_two_files_differ_in_their_digest_when_values_do(tmp_path):
    digests = {
        Calibration(
            write(tmp_path / f'{value}.safetensors', {'elastic.x': torch.tensor([value])}),
            MODEL,
            'random:0',
        ).digest
        for value in (1.0, 2.0)
    }
    assert len(digests) == 2


def test_absent_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match='no such file'):
        Calibration(tmp_path / 'none.safetensors', MODEL, 'random:0')
    damaged = tmp_path / 'damaged.safetensors'
    damaged.write_bytes(b'\x00' * 40)
    with pytest.raises(CalibrationError, match='cannot be read'):
        Calibration(damaged, MODEL, 'random:0')
    other = tmp_path / 'other.safetensors'
    safetensors.torch.save_file({'x': torch.zeros(1)}, other)
    with pytest.raises(CalibrationError, match='format'):
        Calibration(other, MODEL, 'random:0')


def test_a_tensor_that_is_absent_is_named(tmp_path):
    calibration = Calibration(write(tmp_path / 'a.safetensors'), MODEL, 'random:0')
    with pytest.raises(CalibrationError, match=r'elastic\.levels'):
        calibration.tensor('elastic.levels')


@pytest.mark.parametrize(
    'mean', [torch.ones(100, 64), torch.full((101, 64), torch.nan)], ids=['shape', 'nan']
)
def test_a_mean_that_does_not_fit_is_refused(tmp_path, mean):
    calibration = Calibration(
        write(tmp_path / 'a.safetensors', {mean_name(2): mean}), MODEL, 'random:0'
    )
    with pytest.raises(CalibrationError, match=r'cut\.2\.mean'):
        calibration.cut_mean(2)


def test_a_file_is_found_beside_the_configuration(tmp_path, monkeypatch):
    (tmp_path / 'config' / 'devices').mkdir(parents=True)
    monkeypatch.setenv('LAPDTR_CONFIG', str(tmp_path / 'config'))
    path = write(tmp_path / 'weights' / 'c.safetensors')
    assert find_calibration('weights/c.safetensors') == path


def test_the_name_must_say_what_it_is(tmp_path):
    with pytest.raises(CalibrationError, match='must end in'):
        write(tmp_path / 'a.bin')


def test_a_running_mean_is_the_mean_of_all_frames():
    frames = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    mean = RunningMean()
    mean.add(frames[:2])
    mean.add(frames[2:])
    torch.testing.assert_close(mean.mean().float(), frames.mean(0), atol=1e-3, rtol=1e-3)
    with pytest.raises(CalibrationError, match='at least one'):
        RunningMean().mean()


def test_a_mean_beyond_float16_is_clamped():
    mean = RunningMean()
    mean.add(torch.full((1, 2), 1e6))
    assert torch.isfinite(mean.mean()).all()

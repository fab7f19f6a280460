"""Weights: own tensors only, the same values everywhere, clear refusals."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lapdtr_ros.models.errors import UnitRangeError, WeightsError
from lapdtr_ros.models.facts import model_spec, profile_model
from lapdtr_ros.models.focus import focus_onnx
from lapdtr_ros.models.weights import load_units, save_weights, weights_digest

# Teams of threads wait for each other on busy cores.
torch.set_num_threads(1)

MODEL = 'test_vit'
UNITS = 8


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / 'model.safetensors'
    save_weights(load_units(MODEL, 0, UNITS, 'random:5'), path)
    return path


def by_name(stage):
    return {stage.tensor_names[local]: t for local, t in stage.state_dict().items()}


def test_a_stage_reads_exactly_the_tensors_of_its_units(saved):
    sizes = {name: tensor.nbytes for name, tensor in load_file(saved).items()}
    profile = profile_model(MODEL)
    read = 0
    for start, stop in ((0, 1), (1, 4), (4, 7), (7, 8)):
        stage = load_units(MODEL, start, stop, str(saved))
        assert stage.bytes_read == sum(sizes[name] for name in stage.tensor_names.values())
        assert stage.bytes_read == stage.parameter_bytes
        assert stage.bytes_read == sum(u.parameter_bytes for u in profile.units[start:stop])
        read += stage.bytes_read
    assert read == sum(sizes.values())


def test_saved_weights_come_back_exactly(saved):
    random = by_name(load_units(MODEL, 2, 5, 'random:5'))
    read = by_name(load_units(MODEL, 2, 5, str(saved)))
    assert random.keys() == read.keys()
    assert all(torch.equal(random[name], read[name]) for name in random)


def test_random_weights_do_not_depend_on_the_range():
    whole = by_name(load_units(MODEL, 0, UNITS, 'random:7'))
    for unit in range(UNITS):
        for name, tensor in by_name(load_units(MODEL, unit, unit + 1, 'random:7')).items():
            assert torch.equal(tensor, whole[name]), name
    other = by_name(load_units(MODEL, 0, UNITS, 'random:8'))
    assert not torch.equal(other['blocks.0.attn.qkv.weight'], whole['blocks.0.attn.qkv.weight'])


def test_random_weights_are_the_same_on_every_machine():
    """Fixed bits: a fleet of different processors may not disagree on ``random:0``."""
    weight = by_name(load_units(MODEL, 1, 2, 'random:0'))['blocks.0.norm1.weight']
    expected = np.array((0x3F945408, 0x3F803290, 0x3F8F4372, 0x3F935627), np.uint32).view(
        np.float32
    )
    np.testing.assert_array_equal(weight[:4].numpy(), expected)


def test_random_weights_load_nothing():
    assert load_units(MODEL, 0, UNITS, 'random:0').bytes_read == 0


def test_computed_buffers_are_filled_for_a_range_in_the_middle():
    name = 'swin_tiny_patch4_window7_224@64x64'
    stage = load_units(name, 4, 6, 'random:0')
    assert not any(tensor.is_meta for tensor in (*stage.parameters(), *stage.buffers()))


@pytest.mark.parametrize('kept', [0, 4, 100, -1])
def test_a_truncated_file_is_refused(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=re.escape(str(saved))):
        load_units(MODEL, 0, 1, str(saved))


def test_a_file_that_is_no_safetensors_is_refused(saved):
    saved.write_bytes(b'\xff' * 1000)
    with pytest.raises(WeightsError, match='cannot be read'):
        load_units(MODEL, 0, 1, str(saved))
    with pytest.raises(WeightsError, match='cannot be read'):
        weights_digest(MODEL, str(saved))


def test_a_missing_tensor_is_named(saved):
    tensors = load_file(saved)
    del tensors['blocks.2.mlp.fc1.bias']
    save_file(tensors, saved)
    load_units(MODEL, 0, 3, str(saved))
    with pytest.raises(WeightsError, match=r"'blocks\.2\.mlp\.fc1\.bias' is missing"):
        load_units(MODEL, 3, 4, str(saved))


def test_a_tensor_of_the_wrong_shape_is_named(saved):
    with pytest.raises(WeightsError, match=r"'pos_embed' has shape \[1, 101, 64\].*picture size"):
        load_units(f'{MODEL}@160x320', 0, 1, str(saved))


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        ('random:one', 'seed must be a number'),
        ('gone.safetensors', 'no such file'),
        ('imagenet', 'expected random:<seed>'),
        ('focus', 'belong to vit_small_patch14_focus'),
    ],
)
def test_weights_that_cannot_be_had_are_refused(weights, message):
    with pytest.raises(WeightsError, match=message):
        load_units(MODEL, 0, 1, weights)


def test_an_unreachable_hub_is_an_error_and_no_fallback(monkeypatch, tmp_path):
    monkeypatch.setenv('LAPDTR_CACHE', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    with pytest.raises(WeightsError, match='could not be fetched'):
        load_units(MODEL, 0, 1, 'timm')
    with pytest.raises(WeightsError, match='timm has no weights'):
        load_units('edgevit_xxs', 0, 1, 'timm')


@pytest.mark.parametrize(('start', 'stop'), [(-1, 2), (3, 3), (4, 2), (0, UNITS + 1)])
def test_units_that_the_model_has_not_are_refused(start, stop):
    with pytest.raises(UnitRangeError, match=f'units {start} to {stop}'):
        load_units(MODEL, start, stop, 'random:0')


def test_only_whole_models_are_saved(tmp_path):
    with pytest.raises(UnitRangeError, match='not the whole model'):
        save_weights(load_units(MODEL, 0, 3, 'random:0'), tmp_path / 'part.safetensors')


def test_digests_differ_when_weights_do(saved, tmp_path):
    digest = weights_digest(MODEL, str(saved))
    copy = tmp_path / 'copy.safetensors'
    copy.write_bytes(saved.read_bytes())
    assert weights_digest(MODEL, str(copy)) == digest
    # Another checkpoint of the same training: same header, same size, other values.
    save_weights(load_units(MODEL, 0, UNITS, 'random:6'), copy)
    assert copy.stat().st_size == saved.stat().st_size
    assert weights_digest(MODEL, str(copy)) != digest
    assert weights_digest(MODEL, 'random:1') != weights_digest(MODEL, 'random:2')
    assert weights_digest('test_vit2', 'random:1') != weights_digest(MODEL, 'random:1')


def test_focus_weights_give_the_output_of_the_packaged_onnx(monkeypatch, tmp_path):
    pytest.importorskip('onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    try:
        path = focus_onnx()
    except WeightsError as error:
        pytest.skip(str(error))
    monkeypatch.setenv('LAPDTR_CACHE', str(tmp_path))
    name = 'vit_small_patch14_focus'
    rng = np.random.default_rng(0)
    picture = rng.standard_normal((1, 3, 224, 224), dtype=np.float32)
    expected = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']).run(
        None, {'input_image': picture}
    )[0]
    stage = load_units(name, 0, len(model_spec(name).unit_names), 'focus')
    with torch.inference_mode():
        output = stage(torch.from_numpy(picture)).numpy()
    assert expected.std() > 1e-3
    np.testing.assert_allclose(output, expected, atol=1e-4)

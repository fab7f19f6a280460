"""Families as units: names, layouts, and split equals unsplit at every cut."""

import re
import subprocess
import sys

import pytest
import torch

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.models.edgevit import CONFIGS, EdgeViT
from lapdtr_ros.models.errors import ModelNameError, PictureSizeError, WeightsError
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.families import create_timm
from lapdtr_ros.models.layout import NCHW, NHWC, TOKENS, FeatureLayout
from lapdtr_ros.models.registry import build_model, list_models
from lapdtr_ros.models.weights import load_undivided, load_units, save_weights

# Teams of threads wait for each other on busy cores.
torch.set_num_threads(1)

# The smallest of each family; wide pictures where they make the test shorter as well.
TIMM_MODELS = [
    'test_vit',
    'deit_tiny_patch16_224@64x96',
    'deit_tiny_distilled_patch16_224@64x96',
    'deit3_small_patch16_224@64x64',
    'swin_tiny_patch4_window7_224@128x160',
    'tiny_vit_5m_224@96x160',
    'efficientvit_m0@160x256',
]


def random_picture(name):
    height, width, _ = model_spec(name).picture_shape
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def library_model(stage):
    """The library's own model, built and initialised by itself, with the stage's weights."""
    spec = model_spec(stage.model)
    if spec.family == 'edgevit':
        model = EdgeViT(CONFIGS[spec.network])
    else:
        model = create_timm(spec.network, spec.picture_shape[:2])
    tensors = {stage.tensor_names[local]: t for local, t in stage.state_dict().items()}
    model.load_state_dict(tensors, strict=True)
    model.eval()
    return model


@pytest.mark.parametrize('name', [*TIMM_MODELS, 'edgevit_xxs@64x96'])
def test_units_loaded_one_by_one_give_the_output_of_the_unsplit_model(name, tmp_path):
    """Every cut at once: each unit is a stage of its own, as if on a device of its own."""
    units = len(model_spec(name).unit_names)
    whole = load_units(name, 0, units, 'random:3')
    path = tmp_path / 'weights.safetensors'
    save_weights(whole, path)
    picture = random_picture(name)
    with torch.inference_mode():
        unsplit = library_model(whole)
        expected = unsplit(picture)
        # Only a network that tells pictures apart can show a fault.
        assert (expected - unsplit(picture.flip(3))).abs().max() > 1e-3
        features = picture
        for unit in range(units):
            received = features.clone()
            output = load_units(name, unit, unit + 1, str(path))(received).contiguous()
            assert torch.equal(received, features), f'unit {unit} changed its input'
            features = output
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', ['swin_tiny_patch4_window7_224@64x64', 'tiny_vit_5m_224@64x64'])
def test_the_undivided_model_is_the_one_the_library_builds(name):
    whole = load_units(name, 0, len(model_spec(name).unit_names), 'random:3')
    picture = random_picture(name)
    with torch.inference_mode():
        torch.testing.assert_close(
            load_undivided(name, 'random:3')(picture), library_model(whole)(picture)
        )


def test_there_is_no_undivided_model_for_another_head():
    with pytest.raises(WeightsError, match="no head 'saliency'"):
        load_undivided('test_vit+saliency', 'random:0')


@pytest.mark.parametrize('name', ['test_vit', 'edgevit_xxs@64x96'])
def test_two_stages_give_the_output_of_one_at_every_cut(name):
    units = len(model_spec(name).unit_names)
    picture = random_picture(name)
    with torch.inference_mode():
        expected = load_units(name, 0, units, 'random:3')(picture)
        for cut in range(1, units):
            features = load_units(name, 0, cut, 'random:3')(picture).contiguous()
            output = load_units(name, cut, units, 'random:3')(features)
            torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ('name', 'kind', 'prefix_tokens'),
    [
        ('test_vit', TOKENS, 1),
        ('deit_tiny_distilled_patch16_224', TOKENS, 2),
        ('swin_tiny_patch4_window7_224', NHWC, 0),
        ('tiny_vit_5m_224', NCHW, 0),
        ('efficientvit_m5@224x384', NCHW, 0),
        ('edgevit_s', NCHW, 0),
        ('vit_small_patch14_focus', TOKENS, 1),
    ],
)
def test_layout_describes_what_the_head_receives(name, kind, prefix_tokens):
    model = build_model(name)
    height, width, _ = model.spec.picture_shape
    features = torch.empty(2, 3, height, width, device='meta')
    for unit in model.units[:-1]:
        features = unit(features)
    layout = model.spec.layout
    assert (layout.kind, layout.prefix_tokens) == (kind, prefix_tokens)
    assert features.shape[1:] == layout.shape
    assert layout.to_map(features).shape == (2, layout.channels, *layout.grid)


def test_token_layout_becomes_a_map_row_by_row():
    layout = FeatureLayout(TOKENS, channels=2, grid=(2, 3), prefix_tokens=1)
    tokens = torch.arange(14.0).view(1, 7, 2)
    as_map = layout.to_map(tokens)
    assert as_map[0, :, 1, 2].tolist() == tokens[0, 6].tolist()
    assert as_map[0, :, 0, 1].tolist() == tokens[0, 2].tolist()


def test_units_own_every_tensor_of_the_model_exactly_once():
    for name in ('deit_tiny_distilled_patch16_224', 'swin_tiny_patch4_window7_224', 'edgevit_xxs'):
        model = build_model(name)
        owned = [id(t) for u in model.units for t in u.state_dict(keep_vars=True).values()]
        assert sorted(owned) == sorted(map(id, model.root.state_dict(keep_vars=True).values()))


def test_units_are_named_in_order_and_end_with_the_head():
    names = model_spec('efficientvit_m0').unit_names
    assert names[:3] == ('embed', 'stages.0.blocks.0', 'stages.1.downsample')
    assert names[-1] == 'head'
    assert len(set(names)) == len(names)


def test_a_head_by_name_sits_on_token_and_map_backbones():
    for name in ('test_vit@64x96+saliency', 'efficientvit_m0+saliency', 'edgevit_xxs+saliency'):
        spec = model_spec(name)
        units = len(spec.unit_names)
        with torch.inference_mode():
            heat = load_units(name, 0, units, 'random:0')(random_picture(name))
        assert heat.shape == (1, 1, *spec.picture_shape[:2])
        assert 0 <= heat.min() < heat.max() <= 1


def test_all_families_are_listed():
    names = list_models()
    assert names == sorted(set(names))
    for name in ('test_vit', 'deit3_base_patch16_224', 'tiny_vit_21m_224', 'efficientvit_m5'):
        assert name in names
    assert {'edgevit_xxs', 'edgevit_xs', 'edgevit_s', 'vit_small_patch14_focus'} <= set(names)


def test_edgevit_has_the_published_size():
    for name, millions in (('edgevit_xxs', 4.1), ('edgevit_xs', 6.7)):
        with torch.device('meta'):
            model = EdgeViT(CONFIGS[name])
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count / 1e6 == pytest.approx(millions, rel=0.02)


def test_unknown_names_come_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'deit_tiny_patch16_224'"):
        model_spec('deit_tiny_patch16_225')
    with pytest.raises(UnknownNameError, match="unknown head 'salience'"):
        model_spec('test_vit+salience')
    with pytest.raises(ModelNameError, match='malformed'):
        model_spec('test_vit@224')


def test_a_picture_size_that_does_not_fit_the_patches_is_refused():
    with pytest.raises(PictureSizeError, match='height must be a multiple of 16'):
        model_spec('deit_tiny_patch16_224@225x320')
    with pytest.raises(PictureSizeError, match='0x320'):
        model_spec('edgevit_xxs@0x320')


def test_timm_imports_after_torchvision_was_tried():
    program = """
try:
    import torchvision
except RuntimeError:
    pass
from lapdtr_ros.models.torchvision_ops import declare_missing_operators, timm
import torch, torchvision
assert hasattr(torch.ops.torchvision, 'nms')
assert declare_missing_operators() == ()
print(timm.__version__)
"""
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, timeout=120, check=False
    )
    assert re.match(r'\d+\.\d+', done.stdout), done.stderr

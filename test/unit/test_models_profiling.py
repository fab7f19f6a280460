"""Profiles from shapes alone against published figures and against real tensors."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lapdtr_ros.models.facts import input_shape, model_spec, profile_model
from lapdtr_ros.models.profiling import measure_unit_times
from lapdtr_ros.models.registry import build_model
from lapdtr_ros.models.weights import load_units
from lapdtr_ros.planning.profile import CONV, MATMUL

# Teams of threads wait for each other on busy cores.
torch.set_num_threads(1)


@pytest.mark.parametrize(
    ('name', 'gmac', 'million_parameters'),
    [
        ('deit_tiny_patch16_224', 1.26, 5.7),
        ('deit_small_patch16_224', 4.61, 22.1),
        ('deit_base_patch16_224', 17.58, 86.6),
        ('swin_tiny_patch4_window7_224', 4.5, 28.3),
        ('tiny_vit_5m_224', 1.28, 5.4),
        ('tiny_vit_21m_224', 4.29, 21.2),
        ('efficientvit_m0', 0.08, 2.4),
        ('efficientvit_m5', 0.53, 12.5),
        ('edgevit_xxs', 0.557, 4.1),
        ('edgevit_xs', 1.136, 6.7),
        ('edgevit_s', 1.91, 13.1),
    ],
)
def test_flops_and_size_agree_with_the_published_figures(name, gmac, million_parameters):
    profile = profile_model(name)
    assert profile.flops / 2e9 == pytest.approx(gmac, rel=0.025)
    assert profile.parameter_bytes / 4e6 == pytest.approx(million_parameters, rel=0.025)


@pytest.mark.parametrize('name', ['test_vit', 'efficientvit_m0', 'swin_tiny_patch4_window7_224'])
def test_profile_agrees_with_real_tensors(name):
    profile = profile_model(name)
    stage = load_units(name, 0, len(profile), 'random:0')
    height, width, channels = profile.picture_shape
    features = torch.zeros(1, channels, height, width)
    with torch.inference_mode():
        for i, (unit, expected) in enumerate(zip(stage.units, profile.units, strict=True)):
            assert features.shape == input_shape(name, i)
            features = unit(features)
            assert features.shape[1:] == expected.output_shape
            assert features.nbytes == expected.output_bytes == profile.cut_bytes(i + 1)
    assert stage.parameter_bytes == profile.parameter_bytes
    assert tuple(unit.name for unit in profile.units) == model_spec(name).unit_names


def test_block_attributes_are_those_of_the_architecture():
    block = profile_model('deit_tiny_patch16_224').units[3]
    assert (block.heads, block.embedding_dim, block.hidden_dim, block.tokens) == (3, 192, 768, 197)
    assert block.kind == MATMUL
    swin = profile_model('swin_tiny_patch4_window7_224').units[1]
    assert (swin.heads, swin.embedding_dim, swin.hidden_dim, swin.tokens) == (3, 96, 384, 3136)
    tiny = profile_model('tiny_vit_5m_224').units[4 + 1]
    assert (tiny.heads, tiny.embedding_dim, tiny.hidden_dim, tiny.tokens) == (4, 128, 512, 784)
    efficient = profile_model('efficientvit_m0').units[1]
    assert (efficient.heads, efficient.embedding_dim, efficient.hidden_dim) == (4, 64, 128)


def test_convolutional_units_are_told_from_matrix_products():
    kinds = {
        name: {u.name: u.kind for u in profile_model(name).units}
        for name in ('tiny_vit_5m_224', 'efficientvit_m0', 'deit_tiny_patch16_224')
    }
    assert kinds['tiny_vit_5m_224']['stages.0.blocks.0'] == CONV
    assert kinds['tiny_vit_5m_224']['stages.2.blocks.0'] == MATMUL
    assert kinds['efficientvit_m0']['stages.1.blocks.0'] == CONV
    # A patch embedding is a matrix product over patches.
    assert kinds['deit_tiny_patch16_224']['embed'] == MATMUL


def test_profile_grows_with_the_picture():
    small, wide = profile_model('test_vit'), profile_model('test_vit@160x320')
    assert wide.units[0].flops == 2 * small.units[0].flops
    assert wide.picture_bytes == 2 * small.picture_bytes


def test_profile_is_cached():
    assert profile_model('test_vit') is profile_model('test_vit')


def test_measured_times_cover_every_unit():
    times = measure_unit_times('test_vit', repeats=2, warmup=1)
    assert len(times) == len(profile_model('test_vit'))
    assert all(0 < seconds < 10 for seconds in times)
    stage = load_units('test_vit', 2, 4, 'random:0')
    assert len(measure_unit_times(stage, repeats=2, warmup=0)) == 2


@pytest.mark.parametrize('tokens', [3, 9])
def test_units_that_attend_to_all_tokens_cost_what_fewer_tokens_cost(tokens):
    profile = profile_model('test_vit')
    blocks = [unit.name.startswith('blocks') for unit in profile.units]
    assert [unit.token_global for unit in profile.units] == blocks
    assert profile.prefix_tokens == model_spec('test_vit').layout.prefix_tokens
    for unit, record in zip(build_model('test_vit').units, profile.units, strict=True):
        if record.token_global:
            counter = FlopCounterMode(display=False)
            with counter, torch.inference_mode():
                unit(torch.empty(1, tokens, record.embedding_dim, device='meta'))
            assert record.flops_at(tokens) == pytest.approx(counter.get_total_flops())
            assert record.flops_at(record.tokens) == record.flops


@pytest.mark.parametrize('name', ['swin_tiny_patch4_window7_224', 'tiny_vit_5m_224', 'edgevit_xxs'])
def test_units_that_need_the_grid_cost_the_same_whatever_is_kept(name):
    for unit in profile_model(name).units:
        assert not unit.token_global
        assert unit.flops_at(5) == unit.flops

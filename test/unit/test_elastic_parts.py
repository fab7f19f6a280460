"""Units of every family really shrink, and full width changes nothing."""

import pytest
import torch

from lapdtr_ros.elastic.measure import as_rows, output_gain, reader_inputs, run_frames, unit_flops
from lapdtr_ros.elastic.parts import HEADS, NEURONS, parts_of, replace_parts
from lapdtr_ros.models.facts import input_shape, model_spec
from lapdtr_ros.models.layout import NCHW
from lapdtr_ros.models.weights import load_units

# One unit of each family whose parts differ, and the kinds that it must have.
UNITS = {
    'test_vit': (1, {HEADS, NEURONS}),
    'deit_tiny_distilled_patch16_224@64x64': (2, {HEADS, NEURONS}),
    'deit3_small_patch16_224@64x64': (1, {HEADS, NEURONS}),
    'swin_tiny_patch4_window7_224@96x96': (2, {HEADS, NEURONS}),
    'tiny_vit_5m_224@96x96': (4, {HEADS, NEURONS}),
    'efficientvit_m0@96x96': (1, {NEURONS}),
    'edgevit_xxs@96x96': (1, {NEURONS}),
}


@pytest.fixture(scope='module', params=UNITS)
def case(request):
    number, kinds = UNITS[request.param]
    stage = load_units(request.param, number, number + 1, 'random:1')
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(input_shape(request.param, number), generator=generator)
    return stage, stage.units[0], features, kinds


def half(part):
    """A part with the first half of its groups and a reader of them."""
    kept = torch.arange(max(1, part.width // 2))
    weight, bias = part.reader_matrix()
    return part.shrunk(kept, weight[:, part.channels(kept)], bias)


def test_each_family_has_the_parts_that_can_shrink(case):
    _, unit, _, kinds = case
    assert {part.kind for part in parts_of(unit)} == kinds


def test_all_groups_kept_give_the_unit_itself(case):
    _, unit, features, _ = case
    modules = {
        part.path: part.shrunk(torch.arange(part.width), *part.reader_matrix())
        for part in parts_of(unit)
    }
    same = run_frames([replace_parts(unit, modules)], [features])[0]
    torch.testing.assert_close(same, run_frames([unit], [features])[0], atol=1e-5, rtol=1e-5)


def test_groups_may_be_kept_in_any_order(case):
    _, unit, features, _ = case
    modules = {}
    for part in parts_of(unit):
        kept = torch.arange(part.width).flip(0)
        weight, bias = part.reader_matrix()
        modules[part.path] = part.shrunk(kept, weight[:, part.channels(kept)], bias)
    same = run_frames([replace_parts(unit, modules)], [features])[0]
    torch.testing.assert_close(same, run_frames([unit], [features])[0], atol=1e-5, rtol=1e-5)


def test_half_of_a_part_costs_fewer_flops_and_bytes_and_leaves_the_unit_alone(case):
    _, unit, features, _ = case
    before = {name: tensor.clone() for name, tensor in unit.state_dict().items()}
    parameters = sum(tensor.numel() for tensor in before.values())
    for part in parts_of(unit):
        smaller = replace_parts(unit, {part.path: half(part)})
        assert unit_flops(smaller, features) < unit_flops(unit, features)
        assert sum(t.numel() for t in smaller.state_dict().values()) < parameters
    for name, tensor in unit.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=0, rtol=0)


def test_a_group_without_a_reader_column_contributes_nothing(case):
    """Leaving groups out equals reading them with zeros: nothing else depends on them."""
    _, unit, features, _ = case
    for part in parts_of(unit):
        kept = torch.arange(max(1, part.width // 2))
        weight, bias = part.reader_matrix()
        zeroed = torch.zeros_like(weight)
        zeroed[:, part.channels(kept)] = weight[:, part.channels(kept)]
        masked = part.shrunk(torch.arange(part.width), zeroed, bias)
        shorter, longer = (
            run_frames([replace_parts(unit, {part.path: module})], [features])[0]
            for module in (half(part), masked)
        )
        torch.testing.assert_close(shorter, longer, atol=1e-5, rtol=1e-5)


def test_reader_inputs_are_what_the_reader_multiplies(case):
    stage, unit, features, _ = case
    parts = parts_of(unit)
    seen, output = reader_inputs(parts, unit, features)
    torch.testing.assert_close(output, run_frames([unit], [features])[0])
    for part, rows in zip(parts, seen, strict=True):
        assert rows.shape[1] == part.width * part.group
    last = parts[-1]
    gain = output_gain(last, unit, features, model_spec(stage.model).layout.kind == NCHW)
    assert gain is not None
    weight, bias = last.reader_matrix()
    silent = last.shrunk(torch.arange(last.width), weight * 0, bias * 0)
    without = run_frames([replace_parts(unit, {last.path: silent})], [features])[0]
    channels_first = model_spec(stage.model).layout.kind == NCHW
    added = as_rows(output - without, channels_first)
    torch.testing.assert_close(added, gain * (seen[-1] @ weight.T + bias), atol=1e-4, rtol=1e-3)


def test_a_part_with_something_behind_it_has_no_output_gain():
    unit = load_units('test_vit', 1, 2, 'random:1').units[0]
    features = torch.randn(input_shape('test_vit', 1), generator=torch.Generator().manual_seed(0))
    attention = parts_of(unit)[0]
    assert attention.kind == HEADS
    assert output_gain(attention, unit, features, False) is None


@pytest.mark.parametrize('name', ['embed', 'head'])
def test_embeddings_and_heads_cannot_shrink(name):
    spec = model_spec('test_vit')
    number = spec.unit_names.index(name)
    assert parts_of(load_units('test_vit', number, number + 1, 'random:0').units[0]) == []

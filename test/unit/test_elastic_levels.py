"""Levels are nested, save what they are asked for, and run as stages."""

import copy
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.elastic.errors import ElasticError
from lapdtr_ros.elastic.fit import fit_levels
from lapdtr_ros.elastic.levels import Step, choose_levels, rank_steps
from lapdtr_ros.elastic.measure import FeatureError, run_frames, unit_flops
from lapdtr_ros.elastic.store import apply_level, known_levels, reader_name
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.features.calibration import write_calibration
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.weights import load_units

MODEL, WEIGHTS = 'test_vit', 'random:4'
SAVINGS = (0.1, 0.2, 0.3)
UNITS = len(model_spec(MODEL).unit_names)


class Tensors:
    """A calibration file in memory."""

    def __init__(self, tensors):
        self._tensors = tensors

    def names(self, namespace):
        return tuple(name for name in self._tensors if name.startswith(f'{namespace}.'))

    def tensors(self, names):
        return {name: self._tensors[name] for name in names}


def pictures(count, seed):
    generator = torch.Generator().manual_seed(seed)
    height, width, _ = model_spec(MODEL).picture_shape
    return [torch.randn(1, 3, height, width, generator=generator) for _ in range(count)]


@pytest.fixture(scope='module')
def stage():
    return load_units(MODEL, 0, UNITS, WEIGHTS)


@pytest.fixture(scope='module')
def fitted(stage):
    return fit_levels(stage, pictures(8, 0), pictures(2, 1), SAVINGS)


@pytest.fixture(scope='module')
def file(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp('calibration') / 'tiny.safetensors'
    write_calibration(path, MODEL, WEIGHTS, fitted.tensors, command='test', data='noise')
    return path


def stage_flops(stage):
    features, total = pictures(1, 2)[0], 0.0
    for unit in stage.units:
        total += unit_flops(unit, features)
        (features,) = run_frames([unit], [features])
    return total


def test_levels_save_at_least_their_share_and_are_nested(stage, fitted):
    source, full = Tensors(fitted.tensors), stage_flops(stage)
    assert known_levels(source) == (1, 2, 3)
    for level, share in enumerate(SAVINGS, start=1):
        narrow = apply_level(stage, level, source)
        assert stage_flops(narrow) <= (1 - share) * full
        assert narrow.parameter_bytes < stage.parameter_bytes
    for wide, narrow in pairwise(fitted.levels):
        assert all(narrow[part] <= width for part, width in wide.items())
        assert wide != narrow


def test_units_without_parts_are_named_and_stay(stage, fitted):
    assert fitted.rigid == ('embed', 'head')
    narrow = apply_level(stage, 3, Tensors(fitted.tensors))
    assert narrow.units[0] is stage.units[0]
    assert narrow.units[-1] is stage.units[-1]


def test_errors_grow_with_the_level_and_compensation_is_worth_it(stage, fitted):
    frames = pictures(4, 3)
    body = list(stage.units)[:-1]
    error = FeatureError(run_frames(body, frames), channels_first=False)
    source = Tensors(fitted.tensors)
    errors = [
        error(run_frames(list(apply_level(stage, level, source).units)[:-1], frames))
        for level in (0, 1, 2, 3)
    ]
    assert errors == sorted(errors)
    assert errors[0] == 0.0
    assert error(run_frames(_uncompensated(stage, fitted, 3), frames)) > 1.5 * errors[3]


def _uncompensated(stage, fitted, level):
    """The units of a level as plain cut-outs of the model's own matrices."""
    from lapdtr_ros.elastic.parts import parts_of, replace_parts
    from lapdtr_ros.elastic.store import order_name

    units = list(stage.units)[:-1]
    for (number, path), width in fitted.levels[level - 1].items():
        part = next(part for part in parts_of(stage.units[number]) if part.path == path)
        kept = fitted.tensors[order_name(number, path)][:width].long()
        weight, bias = part.reader_matrix()
        module = part.shrunk(kept, weight[:, part.channels(kept)], bias)
        units[number] = replace_parts(units[number], {path: module})
    return units


def test_level_0_is_the_very_same_stage(stage):
    assert apply_level(stage, 0, None) is stage


def test_a_level_is_the_same_whatever_part_of_the_model_is_loaded(stage, fitted):
    source = Tensors(fitted.tensors)
    whole = apply_level(stage, 2, source)
    part = apply_level(load_units(MODEL, 2, 5, WEIGHTS), 2, source)
    (features,) = run_frames(list(whole.units)[:2], pictures(1, 4))
    torch.testing.assert_close(
        run_frames(part.units, [features])[0],
        run_frames(list(whole.units)[2:5], [features])[0],
    )


@pytest.mark.parametrize('level', [4, 200])
def test_an_unknown_level_is_refused_by_name(stage, fitted, level):
    with pytest.raises(ElasticError, match=rf'elastic level {level} of test_vit.*0, 1, 2, 3'):
        apply_level(stage, level, Tensors(fitted.tensors))


def test_a_level_without_calibration_is_refused(stage):
    with pytest.raises(ElasticError, match='needs a calibration file'):
        apply_level(stage, 1, None)


@pytest.mark.parametrize('damage', ['outputs', 'groups', 'scale', 'missing order'])
def test_tensors_that_do_not_fit_are_refused(stage, fitted, damage):
    tensors = copy.copy(fitted.tensors)
    (number, path) = next(iter(fitted.levels[0]))
    name = reader_name(1, number, path)
    if damage == 'missing order':
        del tensors[f'elastic.order.{number}.{path}']
    elif damage == 'scale':
        tensors[f'{name}.scale'] = tensors[f'{name}.scale'][:-1]
    else:
        axis = 0 if damage == 'outputs' else 1
        longer = torch.cat([tensors[f'{name}.weight']] * 9, dim=axis)
        tensors[f'{name}.weight'] = longer
    with pytest.raises(ElasticError, match='does not fit a part'):
        apply_level(stage, 1, Tensors(tensors))


@pytest.mark.parametrize('savings', [(), (0.3, 0.2), (0.0, 0.1), (0.5, 1.0)])
def test_savings_that_do_not_rise_are_refused(stage, savings):
    with pytest.raises(ElasticError, match='savings'):
        fit_levels(stage, pictures(1, 0), pictures(1, 1), savings)


def test_a_runner_changes_its_level_in_milliseconds_and_shares_weights(file):
    runner = StageRunner(MODEL, WEIGHTS, 0, UNITS, calibration=str(file))
    picture = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    before = runner.run(picture)
    times = []
    for level in (1, 2, 3, 0):
        begin = time.perf_counter()
        other = runner.with_level(level)
        times.append(time.perf_counter() - begin)
        assert other.level == level
        assert np.isfinite(other.run(picture)).all()
    assert min(times) < 0.05
    assert runner.level == 0
    np.testing.assert_array_equal(runner.run(picture), before)
    np.testing.assert_array_equal(other.run(picture), before)


def test_a_runner_made_at_a_level_equals_one_that_changed_to_it(file):
    made = StageRunner(MODEL, WEIGHTS, 0, UNITS, calibration=str(file), level=2)
    changed = StageRunner(MODEL, WEIGHTS, 0, UNITS, calibration=str(file)).with_level(2)
    picture = np.random.default_rng(1).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    np.testing.assert_array_equal(made.run(picture), changed.run(picture))
    assert made.parameter_bytes == changed.parameter_bytes


def test_the_onnx_backend_refuses_levels_by_name(file):
    with pytest.raises(ElasticError, match="backend 'onnx'"):
        StageRunner(MODEL, WEIGHTS, 1, 2, backend='onnx', calibration=str(file), level=1)


@st.composite
def step_lists(draw):
    """Steps of a few parts; deeper widths save more and lose more."""
    steps = []
    for part in range(draw(st.integers(1, 5))):
        error = flops = 0.0
        for width in range(4, 4 - draw(st.integers(1, 3)), -1):
            error += draw(st.floats(0.0, 1.0))
            flops += draw(st.floats(0.1, 10.0))
            steps.append(Step((part, 'mlp'), width - 1, error, flops))
    return steps


@settings(max_examples=100, deadline=None)
@given(step_lists(), st.lists(st.floats(0.01, 0.9), min_size=1, max_size=4, unique=True))
def test_chosen_levels_are_nested_and_reach_their_saving_where_it_can_be_had(steps, savings):
    savings = sorted(savings)
    total = sum(max(s.flops for s in steps if s.part == part) for part in {s.part for s in steps})
    flops = total / 0.8  # so some savings cannot be reached
    saved = {(step.part, step.width): step.flops for step in steps}
    levels = choose_levels(rank_steps(steps), flops, savings)
    for wide, narrow in pairwise(levels):
        assert all(narrow[part] <= width for part, width in wide.items())
    for level, share in zip(levels, savings, strict=False):
        reached = sum(saved[part, width] for part, width in level.items())
        assert reached >= min(share * flops, total) * (1 - 1e-9)


def test_the_cheapest_error_per_flop_goes_first():
    steps = [
        Step((0, 'mlp'), 2, error=0.1, flops=1.0),
        Step((1, 'mlp'), 2, error=0.1, flops=4.0),
        Step((1, 'mlp'), 1, error=0.4, flops=8.0),
    ]
    ranked = [(step.part[0], step.width) for step in rank_steps(steps)]
    assert ranked == [(1, 2), (1, 1), (0, 2)]

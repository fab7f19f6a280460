"""A stage refuses bad input and continues from any unit it holds."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.errors import LapdtrError, UnknownNameError
from lapdtr_ros.execution.stage import StageInputError, StageRunner
from lapdtr_ros.models.profiling import profile_model
from lapdtr_ros.models.registry import model_spec

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

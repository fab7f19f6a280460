"""The accuracy table: what it refuses, and what it predicts."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lapdtr_ros.planning.accuracy import (
    AccuracyTable,
    AccuracyTableError,
    CutEffect,
    load_table,
    save_table,
)
from lapdtr_ros.planning.plan import CutSetting
from lapdtr_ros.planning.profile import ModelProfile, UnitProfile

CURVE = {'error': [0.0, 0.02, 0.1, 0.4], 'accuracy': [0.5, 0.49, 0.42, 0.1]}


def content(**changes):
    return {
        'format': 1,
        'model': 'model',
        'weights': 'weights.safetensors',
        'units': 3,
        'metric': 'AP50',
        'dataset': 'made up',
        'frames': 12,
        'command': 'none',
        'accuracy': 0.5,
        'flops_per_s': 1e10,
        'levels': [
            {
                'level': 1,
                'flops': [1, 0.5, 1],
                'seconds': [1, 0.6, 1],
                'parameter_bytes': [1, 0.5, 1],
                'error': [0, 0.01, 0.02],
            }
        ],
        'cuts': [{'cut': 1, 'keep': 8, 'form': 'cluster', 'bits': 4, 'bytes': 99, 'error': 0.003}],
        'pictures': [{'quality': 90, 'bytes': 30_000, 'error': 0.001}],
        'joint': {'alpha': 0.1, 'gamma': 1.1, 'plans': 30},
        'curve': CURVE,
        'margin': 0.01,
        **changes,
    }


def table(**changes):
    return AccuracyTable.model_validate(content(**changes))


def test_a_saved_table_reads_back_the_same(tmp_path):
    path = tmp_path / 'model.yaml'
    save_table(table(), path)
    assert load_table(path) == table()


def test_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(AccuracyTableError, match='lapdtr calibrate'):
        load_table(tmp_path / 'none.yaml')


CUT = content()['cuts'][0]
LEVEL = content()['levels'][0]
BAD = {
    'missing key': ({'accuracy': None}, 'accuracy: Field required'),
    'misspelt key': ({'margn': 0.1}, 'margn: Extra inputs'),
    'other format': ({'format': 7}, 'format is 7, this version reads 1: recalibrate'),
    'accuracy over 1': ({'accuracy': 40.4}, 'accuracy: Input should be less than or equal to 1'),
    'rising curve': (
        {'curve': {'error': [0, 0.1], 'accuracy': [0.5, 0.6]}},
        'curve: accuracy must not rise',
    ),
    'curve from elsewhere': (
        {'curve': {'error': [0.1, 0.2], 'accuracy': [0.5, 0.4]}},
        'error must start at 0',
    ),
    'curve of another baseline': (
        {'curve': {'error': [0, 0.1], 'accuracy': [0.45, 0.4]}},
        'curve.accuracy starts at 0.45',
    ),
    'level of another model': (
        {'levels': [{**LEVEL, 'seconds': [1, 1]}]},
        'level 1: seconds has 2 entries for 3 units',
    ),
    'level twice': ({'levels': [LEVEL, LEVEL]}, 'level 1 is listed twice'),
    'cut outside': ({'cuts': [{**CUT, 'cut': 3}]}, 'cut 3 of a model of 3 units'),
    'setting twice': ({'cuts': [CUT, CUT]}, 'is listed twice'),
    'odd bits': ({'cuts': [{**CUT, 'bits': 5}]}, r'cuts.0: cut setting: bits = 5'),
    'lossless setting': (
        {'cuts': [{'cut': 1, 'bytes': 9, 'error': 0}]},
        'cut 1 lists the lossless setting',
    ),
    'NaN error': ({'cuts': [{**CUT, 'error': math.nan}]}, 'cuts.0.error'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_tables_are_refused_with_file_and_key(tmp_path, name):
    changes, text = BAD[name]
    data = {key: value for key, value in content(**changes).items() if value is not None}
    path = tmp_path / 'bad.yaml'
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(AccuracyTableError) as caught:
        load_table(path)
    assert text in str(caught.value)
    assert str(path) in str(caught.value)


def test_unknown_levels_cuts_and_qualities_are_refused_by_name():
    known = table()
    with pytest.raises(AccuracyTableError, match=r'level 4 of model was not calibrated: .*0, 1'):
        known.level(4)
    with pytest.raises(AccuracyTableError, match=r'cut 2 of model, keep 8, .* not calibrated'):
        known.cut(2, CutSetting(8, 'cluster', 4))
    with pytest.raises(AccuracyTableError, match=r'quality 50 .*use one of 90'):
        known.picture(50)


def test_table_of_another_model_does_not_fit_a_profile():
    units = tuple(UnitProfile(f'u{i}', 1.0, 1, (1,), 4) for i in range(2))
    with pytest.raises(AccuracyTableError, match='of model with 3 units, the model is model with'):
        ModelProfile('model', (8, 8, 3), units, accuracy=table())


def test_cut_effect_is_found_by_its_setting():
    assert table().cut(1, CutSetting(8, 'cluster', 4)) == CutEffect(**CUT)


def test_nothing_is_lost_without_errors():
    assert float(table().accuracy_at(0.0)) == 0.5


@given(st.floats(0, 10), st.floats(0, 10))
def test_accuracy_never_rises_with_the_error(first, second):
    low, high = sorted((first, second))
    assert table().accuracy_at(high) <= table().accuracy_at(low)


@given(st.floats(0.0, 0.6), st.floats(0.0, 0.05), st.floats(-0.5, 0.5), st.floats(0.5, 2.0))
def test_largest_total_is_where_accuracy_less_the_margin_meets_the_wish(
    wanted, margin, alpha, gamma
):
    known = table(margin=margin, joint={'alpha': alpha, 'gamma': gamma})
    total = known.largest_total(wanted)
    if total == 0.0:
        assert wanted + margin >= 0.5
    elif math.isinf(total):
        assert wanted + margin <= 0.1
    else:
        assert float(known.accuracy_at(total)) == pytest.approx(wanted + margin, abs=1e-9)

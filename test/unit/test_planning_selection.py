"""Algorithm 1, as printed and as meant."""

import pytest

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.planning.accuracy import AccuracyTable, AccuracyTableError
from lapdtr_ros.planning.fleet import Device, Fleet, Link, Requirements, Weights
from lapdtr_ros.planning.plan import LOSSLESS, CutSetting, Plan, Stage
from lapdtr_ros.planning.profile import ModelProfile, UnitProfile
from lapdtr_ros.planning.selection import SelectionError, list_candidates, select


def table():
    return AccuracyTable(
        model='model',
        weights='w',
        units=3,
        metric='AP50',
        dataset='made up',
        frames=1,
        command='none',
        accuracy=0.5,
        flops_per_s=1e10,
        levels=[
            {
                'level': 1,
                'flops': [1, 0.5, 1],
                'seconds': [1, 0.5, 1],
                'parameter_bytes': [1, 0.5, 1],
                'error': [0, 0.05, 0],
            }
        ],
        cuts=[
            {'cut': 1, 'bits': 4, 'bytes': 60_000, 'error': 0.01},
            {'cut': 2, 'bits': 4, 'bytes': 60_000, 'error': 0.01},
            {'cut': 1, 'bits': 2, 'bytes': 30_000, 'error': 0.2},
        ],
        curve={'error': [0, 0.1, 0.4], 'accuracy': [0.5, 0.4, 0.1]},
    )


def profile(accuracy=None):
    units = tuple(UnitProfile(f'u{i}', 1e9, 10**6, (1,), 480_000) for i in range(3))
    return ModelProfile('model', (32, 32, 3), units, accuracy=accuracy or table())


def fleet():
    devices = {n: Device(n, 'x', 1e10, 1e9, 1.0, 11.0) for n in 'ab'}
    links = {ends: Link(*ends, 1e6, 0.0, 1e-6, 1e-6) for ends in (('a', 'b'), ('b', 'a'))}
    return Fleet(devices, links)


def partition(*stops):
    edges = (0, *stops, 3)
    stages = tuple(map(Stage, 'ab', edges, edges[1:]))
    return Plan('s', 'model', 'a', 'a', stages)


def candidates(*stops):
    return list_candidates(partition(*stops), profile(), fleet(), Requirements())


def chosen(form, **demands):
    demands.setdefault('weights', Weights(energy=1, latency=1, accuracy=1))
    return select(candidates(1), Requirements(**demands), form)


def test_candidates_are_levels_times_settings_of_the_cut():
    found = {(c.plan.stages[0].level, c.plan.stages[0].cut.bits) for c in candidates(1)}
    assert found == {(level, bits) for level in (0, 1) for bits in (0, 4, 2)}


def test_settings_that_were_not_calibrated_at_the_cut_are_no_candidates():
    assert {c.plan.stages[0].cut.bits for c in candidates(2)} == {0, 4}


def test_partition_without_a_cut_has_one_candidate_per_level():
    assert [c.plan.stages[0].level for c in candidates()] == [0, 1]


def test_corrected_takes_the_cheapest_where_accuracy_counts_nothing():
    best = chosen('corrected', weights=Weights(energy=1, latency=1)).candidate
    assert best.cost.energy_j == min(c.cost.energy_j for c in candidates(1))
    assert best.plan.stages[0].cut == CutSetting(bits=2)


def test_literal_takes_the_worst_where_accuracy_counts_nothing():
    weights = Weights(energy=1, latency=1)
    best = chosen('literal', weights=weights).candidate
    assert best.cost.energy_j == max(c.cost.energy_j for c in candidates(1))
    assert best.cost.latency_s == max(c.cost.latency_s for c in candidates(1))


def test_limits_leave_the_ones_that_keep_them():
    selection = chosen('corrected', min_accuracy=0.48)
    assert selection.fits
    assert selection.fitting == 2
    assert selection.candidate.cost.accuracy >= 0.48


def test_most_accurate_is_taken_when_none_keeps_the_limits():
    for form in ('corrected', 'literal'):
        selection = chosen(form, max_energy_j=1e-6)
        assert not selection.fits
        assert selection.candidate.cost.accuracy == 0.5
        assert selection.candidate.plan.stages[0].cut == LOSSLESS


def test_unknown_form_and_empty_list_are_refused():
    with pytest.raises(UnknownNameError, match='corrected'):
        chosen('correct')
    with pytest.raises(SelectionError, match='calibrate'):
        select((), Requirements())


def test_model_without_a_table_is_refused():
    bare = ModelProfile('model', (32, 32, 3), profile().units)
    with pytest.raises(AccuracyTableError, match='lapdtr calibrate model'):
        list_candidates(partition(1), bare, fleet(), Requirements())

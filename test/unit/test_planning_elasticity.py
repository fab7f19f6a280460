"""Batteries choose levels: the corrected rule saves energy, the printed one does the opposite."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.planning.elasticity import (
    CORRECTED,
    LITERAL,
    ElasticityError,
    LevelRule,
    corrected_heads,
    energy_share,
    literal_heads,
)

socs = st.floats(0.0, 1.0)
reserves = st.floats(0.0, 0.9)
HEADS = (6, 5, 4, 4, 3)


@given(socs, socs, reserves)
def test_the_energy_share_rises_from_reserve_to_full(a, b, reserve):
    low, high = sorted((a, b))
    assert 0.0 <= energy_share(low, reserve) <= energy_share(high, reserve) <= 1.0
    assert energy_share(1.0, reserve) == 1.0
    assert energy_share(reserve, reserve) == 0.0


@given(socs, socs, reserves, st.integers(1, 16), st.data())
def test_corrected_heads_rise_with_the_battery_within_their_limits(a, b, reserve, most, data):
    least = data.draw(st.integers(1, most))
    low, high = (corrected_heads(most, least, soc, reserve) for soc in sorted((a, b)))
    assert least <= low <= high <= most
    assert corrected_heads(most, least, 1.0, reserve) == most
    assert corrected_heads(most, least, reserve, reserve) == least


@given(socs, socs, st.integers(1, 16))
def test_literal_heads_fall_as_the_battery_fills_but_not_to_zero(a, b, most):
    low, high = (literal_heads(most, soc) for soc in sorted((a, b)))
    assert 1 <= high <= low <= most
    assert literal_heads(most, 1.0) == 1
    assert literal_heads(most, 0.0) == most


@given(reserves)
def test_full_battery_runs_at_full_width_and_an_empty_one_at_the_narrowest(reserve):
    rule = LevelRule(HEADS, reserve)
    assert rule.update(1.0) == 0
    assert rule.update(0.0) == len(HEADS) - 1
    assert rule.update(1.0) == 0


def test_the_literal_rule_does_the_opposite():
    rule = LevelRule(HEADS, 0.2, LITERAL)
    assert rule.update(1.0) == len(HEADS) - 1
    assert rule.update(0.0) == 0


@given(st.lists(socs, max_size=50), reserves)
def test_levels_are_valid_and_a_draining_battery_only_narrows(readings, reserve):
    rule = LevelRule(HEADS, reserve)
    levels = [rule.update(soc) for soc in sorted(readings, reverse=True)]
    assert levels == sorted(levels)
    assert all(0 <= level < len(HEADS) for level in levels)


@given(socs, reserves, st.lists(st.floats(-0.009, 0.009), min_size=1, max_size=50))
def test_noise_within_the_hysteresis_never_makes_a_level_go_back_and_forth(soc, reserve, noise):
    rule = LevelRule(HEADS, reserve, hysteresis=0.02)
    rule.update(soc)
    levels = [rule.update(min(1.0, max(0.0, soc + error))) for error in noise]
    # The first reading may lie at the very edge of a band; after one step there is no way back.
    assert levels in (sorted(levels), sorted(levels, reverse=True))


def test_without_hysteresis_the_same_noise_would_flap():
    border = 0.2 + 0.8 * 0.6
    rule = LevelRule(HEADS, 0.2, hysteresis=0.0)
    assert len({rule.update(border + error) for error in (-0.005, 0.005)}) == 2


@pytest.mark.parametrize('soc', [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize('rule', [CORRECTED, LITERAL])
def test_impossible_charges_are_refused(soc, rule):
    if rule == CORRECTED:
        with pytest.raises(ElasticityError, match='soc'):
            energy_share(soc, 0.2)
    with pytest.raises(ElasticityError, match='soc'):
        literal_heads(6, soc)


@pytest.mark.parametrize('heads', [(), (0,), (4, 5), (3, 2, 0)])
def test_heads_that_do_not_fall_are_refused(heads):
    with pytest.raises(ElasticityError, match='heads'):
        LevelRule(heads, 0.2)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UnknownNameError, match='elasticity rule'):
        LevelRule(HEADS, 0.2, 'corected')

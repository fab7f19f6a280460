"""Summarization: f(A) is row-stochastic, k = N loses nothing, k tokens compute what N would."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.features.errors import SummaryError
from lapdtr_ros.features.summarize import (
    MAX_POSITIONS,
    Summary,
    fuse,
    k_centre,
    most_attended,
    summarize,
)
from lapdtr_ros.models.weights import load_units
from lapdtr_ros.planning.plan import CLUSTER, FORMS, LITERAL_FORM

sizes = st.tuples(st.integers(2, 40), st.integers(1, 40)).map(lambda p: (p[0], min(p)))


def tokens(seed, positions, channels=12):
    return np.random.default_rng(seed).standard_normal((positions, channels), dtype=np.float32)


def attention(seed, positions):
    values = np.random.default_rng(seed + 1).random(positions, dtype=np.float32)
    return values / values.sum()


@settings(deadline=None)
@given(seed=st.integers(0, 999), size=sizes, form=st.sampled_from(FORMS))
def test_rows_of_f_sum_to_one_and_each_token_is_in_one_row(seed, size, form):
    positions, keep = size
    weights = attention(seed, positions)
    _, summary = summarize(torch.from_numpy(tokens(seed, positions)), keep, form, weights)
    f = fuse(
        torch.eye(positions), torch.from_numpy(summary.assignment), torch.from_numpy(weights), keep
    )
    np.testing.assert_allclose(f.sum(1), 1, rtol=1e-5)
    assert (f >= 0).all()
    assert ((f > 0).sum(0) == 1).all()
    assert summary.sizes.min() >= 1
    assert summary.sizes.sum() == positions


@settings(deadline=None)
@given(seed=st.integers(0, 999), positions=st.integers(1, 30), form=st.sampled_from(FORMS))
def test_all_tokens_kept_loses_nothing(seed, positions, form):
    patches = torch.from_numpy(tokens(seed, positions))
    mean = tokens(seed + 2, positions)
    rows, summary = summarize(patches, positions, form, attention(seed, positions), mean=mean)
    restored = summary.restore(rows.numpy()[np.newaxis], 0)[0]
    np.testing.assert_allclose(restored, patches, atol=1e-5)


@settings(deadline=None)
@given(seed=st.integers(0, 999), size=sizes, form=st.sampled_from(FORMS))
def test_equal_tokens_give_finite_rows(seed, size, form):
    positions, keep = size
    rows, summary = summarize(torch.ones(positions, 4), keep, form, np.zeros(positions, np.float32))
    np.testing.assert_allclose(rows, 1, rtol=1e-5)
    assert summary.sizes.min() >= 1


def test_the_literal_form_keeps_the_most_attended_and_fuses_the_rest():
    patches = torch.arange(5.0)[:, None]
    weights = np.array([0.1, 0.4, 0.1, 0.3, 0.1], np.float32)
    rows, summary = summarize(patches, 3, LITERAL_FORM, weights)
    np.testing.assert_array_equal(summary.assignment, [2, 0, 2, 1, 2])
    np.testing.assert_allclose(rows[:, 0], [1, 3, 2])
    assert summary.key_bias(1) is None


def test_the_literal_form_weighs_the_rest_by_attention():
    weights = np.array([0.5, 0.3, 0.1], np.float32)
    rows, _ = summarize(torch.tensor([[0.0], [1.0], [5.0]]), 2, LITERAL_FORM, weights)
    np.testing.assert_allclose(rows[:, 0], [0, (0.3 * 1 + 0.1 * 5) / 0.4], rtol=1e-6)


def test_massive_tokens_stay_alone():
    patches = tokens(3, 50)
    patches[[7, 30]] *= 40
    patches[8] = patches[7] / 40  # points the same way
    assignment = k_centre(patches, 10)
    for place in (7, 30):
        assert (assignment == assignment[place]).sum() == 1


def test_centres_beat_random_groups_and_the_most_attended():
    generator = np.random.default_rng(0)
    patches = generator.standard_normal((20, 16)).repeat(10, axis=0)
    patches = (patches + 0.1 * generator.standard_normal(patches.shape)).astype(np.float32)
    uniform = torch.ones(200)

    def error(assignment):
        places = torch.from_numpy(assignment)
        rows = fuse(torch.from_numpy(patches), places, uniform, 20)
        return float((rows[places] - torch.from_numpy(patches)).square().mean())

    chosen = error(k_centre(patches, 20))
    assert chosen < 0.5 * error(generator.integers(0, 20, 200))
    assert chosen < 0.5 * error(most_attended(attention(1, 200), 20))


def test_gradients_reach_every_token():
    patches = torch.from_numpy(tokens(5, 30)).requires_grad_()
    rows, summary = summarize(patches, 7, CLUSTER, attention(5, 30))
    (rows[torch.from_numpy(summary.assignment)] * torch.randn(30, 12)).sum().backward()
    assert patches.grad is not None
    assert (patches.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize('rows', [1, 9, 40])
def test_k_tokens_with_their_sizes_compute_what_the_copied_grid_would(rows):
    """The identity that lets later devices save compute (methods: log-size bias)."""
    units = load_units('test_vit', 2, 6, 'random:3')
    summary = Summary(k_centre(tokens(0, 100, 64), rows), rows)
    few = torch.randn(1, 1 + rows, 64, generator=torch.Generator().manual_seed(0))
    grid = torch.from_numpy(summary.restore(few.numpy(), 1))
    bias = summary.key_bias(1)
    with torch.inference_mode():
        expected = units(grid)
        result = units(few, key_bias=torch.from_numpy(bias))
        without = units(few)
    restored = torch.from_numpy(summary.restore(result.numpy(), 1))
    torch.testing.assert_close(restored, expected, atol=1e-4, rtol=1e-4)
    if rows == 9:
        wrong = torch.from_numpy(summary.restore(without.numpy(), 1))
        assert (wrong - expected).abs().max() > 1e-2


def test_a_later_summary_of_rows_is_one_of_tokens():
    first = Summary(np.array([0, 1, 2, 2, 1]), 3)
    both = first.then(Summary(np.array([1, 0, 1]), 2, LITERAL_FORM))
    np.testing.assert_array_equal(both.assignment, [1, 0, 1, 1, 0])
    assert (both.rows, both.form) == (2, LITERAL_FORM)


@pytest.mark.parametrize(
    ('keep', 'form', 'positions', 'what'),
    [
        (11, CLUSTER, 10, 'keep = 11 of 10'),
        (0, CLUSTER, 10, 'keep = 0'),
        (5, LITERAL_FORM, 10, 'literal needs the attention'),
        (5, CLUSTER, MAX_POSITIONS + 1, 'too many'),
    ],
)
def test_what_cannot_be_summarised_is_refused_by_name(keep, form, positions, what):
    with pytest.raises(SummaryError, match=what):
        summarize(torch.zeros(positions, 2), keep, form)

"""Least squares makes up for groups that are gone, and good groups stay longest."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.elastic.compensation import Moments, compensate, order_groups

INPUTS, OUTPUTS, ROWS = 12, 5, 200


def problem(seed, rank=INPUTS):
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(ROWS, rank, generator=generator)
    rows = sources @ torch.randn(rank, INPUTS, generator=generator) + 0.5
    rows = rows + 0.1 * torch.randn(ROWS, INPUTS, generator=generator)
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator)
    return rows, weight, torch.randn(OUTPUTS, generator=generator)


def moments_of(rows, errors=None):
    moments = Moments(INPUTS, OUTPUTS)
    moments.add(rows[:50], None if errors is None else errors[:50])
    moments.add(rows[50:], None if errors is None else errors[50:])
    return moments


def mean_square(rows, weight, bias, target):
    return float((rows @ weight.T + bias - target).square().mean())


def test_moments_are_mean_and_covariance():
    rows, _, _ = problem(0)
    moments = moments_of(rows)
    torch.testing.assert_close(moments.mean, rows.double().mean(0))
    torch.testing.assert_close(
        moments.covariance, rows.double().T.cov(correction=0), atol=1e-4, rtol=1e-4
    )


def test_moments_of_two_sets_add_up_to_those_of_both():
    rows, _, _ = problem(1)
    other, _, _ = problem(2)
    both = moments_of(rows) + moments_of(other)
    together = moments_of(torch.cat([rows, other]))
    torch.testing.assert_close(both.mean, together.mean)
    torch.testing.assert_close(both.covariance, together.covariance, atol=1e-4, rtol=1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_keeping_everything_returns_the_original_reader(seed):
    rows, weight, bias = problem(seed)
    same, shift = compensate(weight, bias, torch.arange(INPUTS), moments_of(rows))
    torch.testing.assert_close(same, weight)
    torch.testing.assert_close(shift, bias, atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), width=st.integers(1, INPUTS - 1))
def test_least_squares_is_never_above_bias_only_nor_that_above_nothing(seed, width):
    rows, weight, bias = problem(seed, rank=4)
    target = rows @ weight.T + bias
    kept = torch.arange(width)
    moments = moments_of(rows)
    nothing = mean_square(rows[:, kept], weight[:, kept], bias, target)
    mean = moments.mean.float()
    shift = bias + weight[:, width:] @ mean[width:]
    bias_only = mean_square(rows[:, kept], weight[:, kept], shift, target)
    fitted = mean_square(rows[:, kept], *compensate(weight, bias, kept, moments), target)
    assert bias_only <= nothing * (1 + 1e-6)
    assert fitted <= bias_only * (1 + 1e-4)


def test_the_fitted_reader_also_mends_errors_that_its_inputs_explain():
    rows, weight, bias = problem(3)
    lacking = rows @ torch.randn(INPUTS, OUTPUTS, generator=torch.Generator().manual_seed(9))
    wanted = rows @ weight.T + bias + lacking
    everything = torch.arange(INPUTS)
    reader = compensate(weight, bias, everything, moments_of(rows, lacking))
    unmended = mean_square(rows, weight, bias, wanted)
    assert mean_square(rows, *reader, wanted) < 0.01 * unmended


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), group=st.sampled_from([1, 2, 3]), floor=st.integers(1, 3))
def test_the_order_names_every_group_once(seed, group, floor):
    rows, weight, _ = problem(seed)
    order = order_groups(weight, moments_of(rows).covariance, group, floor)
    assert sorted(order.tolist()) == list(range(INPUTS // group))


def test_a_copy_of_another_input_goes_first_however_large_it_is():
    rows, weight, _ = problem(4)
    rows[:, 7] = rows[:, 2]
    weight[:, 7] = 10.0
    order = order_groups(weight, moments_of(rows).covariance, 1, 1)
    assert order[-1] in (2, 7)


def test_elimination_loses_less_than_random_choice():
    rows, weight, bias = problem(5, rank=6)
    moments, target = moments_of(rows), rows @ weight.T + bias

    def lost(kept):
        return mean_square(rows[:, kept], *compensate(weight, bias, kept, moments), target)

    chosen = lost(order_groups(weight, moments.covariance, 1, 6)[:6])
    generator = torch.Generator().manual_seed(0)
    at_random = [lost(torch.randperm(INPUTS, generator=generator)[:6]) for _ in range(20)]
    assert chosen < sum(at_random) / len(at_random)

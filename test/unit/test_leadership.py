"""Several planners: exactly one leads."""

from hypothesis import given
from hypothesis import strategies as st

from lapdtr_ros.planning.leadership import Leadership


def test_a_planner_that_starts_beside_a_running_one_listens_and_takes_over_when_it_is_gone():
    late = Leadership('b')
    assert late.leads
    assert late.heard('a', epoch=5, stamp_ns=100)
    assert not late.leads
    assert 'a leads this fleet' in late.problem
    assert not late.others_alive(1)
    assert late.others_alive(0)
    assert late.leads
    assert late.problem == ''


def test_the_leader_names_the_one_it_ignores():
    leader = Leadership('a')
    leader.published(epoch=5, stamp_ns=100)
    assert not leader.heard('b', epoch=1, stamp_ns=200)
    assert leader.leads
    assert 'b plans for this fleet' in leader.problem
    assert not leader.others_alive(0)
    assert leader.problem == ''


@given(
    first=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    second=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_of_two_that_plan_at_once_exactly_one_steps_back(first, second):
    a, b = Leadership('a'), Leadership('b')
    a.published(*first)
    b.published(*second)
    a.heard('b', *second)
    b.heard('a', *first)
    assert a.leads != b.leads

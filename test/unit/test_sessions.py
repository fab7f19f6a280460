import pytest

from lapdtr_ros.execution.planners import PlannerWatch, SecondPlannerError
from lapdtr_ros.execution.sessions import Elder, Session, SessionError, SteppedBackError
from lapdtr_ros.planning.plan import FleetPlan


def plan(epoch, planner):
    return FleetPlan(epoch, planner, 'exact', 'test', {})


def test_a_session_survives_the_network():
    session = Session.new()
    assert Session.parse(str(session)) == session


@pytest.mark.parametrize('text', ['', 'nobody', 'x' * 10**6, '../etc', '-abc', '%s%s'])
def test_what_is_no_session_is_refused_by_name(text):
    with pytest.raises(SessionError, match='is not of a device node'):
        Session.parse(text)


def test_the_younger_of_two_steps_back_until_the_elder_is_silent():
    clock = [100.0]
    elder, younger = Session(1, 'a'), Session(2, 'b')
    watch = Elder(younger, clock=lambda: clock[0])
    watch.check()
    watch.heard(str(younger))
    watch.check()
    watch.heard(str(elder))
    with pytest.raises(SteppedBackError, match='started earlier'):
        watch.check()
    clock[0] += 4.0
    watch.check()


def test_the_elder_of_two_goes_on():
    watch = Elder(Session(1, 'a'))
    watch.heard(str(Session(2, 'b')))
    watch.check()
    assert not watch.problem


def test_the_first_planner_leads_and_a_second_one_is_refused_while_it_is_alive():
    watch = PlannerWatch()
    watch.set_alive(1)
    watch.admit(plan(1, 'one'))
    watch.set_alive(2)
    with pytest.raises(SecondPlannerError, match='one leads this fleet'):
        watch.admit(plan(9, 'two'))
    assert 'one leads, two is refused' in watch.problem
    watch.admit(plan(2, 'one'))
    assert watch.problem


def test_a_planner_that_is_left_alone_leads_with_the_plan_it_made_before():
    watch = PlannerWatch()
    watch.set_alive(1)
    watch.admit(plan(1, 'one'))
    watch.set_alive(2)
    with pytest.raises(SecondPlannerError):
        watch.admit(plan(2, 'two'))
    assert watch.set_alive(1).epoch == 2
    assert not watch.problem
    watch.admit(plan(3, 'two'))
    assert watch.set_alive(1) is None


def test_a_planner_that_comes_after_the_first_has_gone_leads():
    watch = PlannerWatch()
    watch.set_alive(1)
    watch.admit(plan(1, 'one'))
    watch.set_alive(0)
    watch.set_alive(1)
    watch.admit(plan(2, 'two'))


def test_a_stranger_on_the_topic_does_not_keep_a_new_planner_out():
    watch = PlannerWatch()
    watch.set_alive(2)
    watch.admit(plan(1, 'one'))
    watch.set_alive(1)
    watch.set_alive(2)
    watch.admit(plan(2, 'two'))
    with pytest.raises(SecondPlannerError, match='two leads'):
        watch.admit(plan(3, 'one'))


def test_a_planner_that_dies_in_the_moment_in_which_another_comes_is_noticed():
    watch = PlannerWatch()
    watch.set_alive(2)
    watch.admit(plan(1, 'one'))
    watch.set_alive(2, lost=1)
    watch.admit(plan(2, 'two'))

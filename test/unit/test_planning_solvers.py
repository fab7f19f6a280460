"""Solvers against brute force, and the texts that explain why there is no plan."""

import math
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.planning import exact
from lapdtr_ros.planning.cost import (
    InfeasiblePlanError,
    evaluate,
    reference,
    score,
    violations,
)
from lapdtr_ros.planning.dominance import undominated
from lapdtr_ros.planning.fleet import Device, Fleet, Link, Requirements, Weights
from lapdtr_ros.planning.plan import JPEG, RAW, Plan, Stage
from lapdtr_ros.planning.profile import CONV, MATMUL, ModelProfile, UnitProfile
from lapdtr_ros.planning.search import SearchTooLargeError
from lapdtr_ros.planning.solvers import pareto_front, solve
from lapdtr_ros.planning.tables import build_tables

PICTURE = (32, 32, 3)


def numbers(low, high):
    return st.floats(low, high, allow_nan=False, allow_subnormal=False)


@st.composite
def profiles(draw, max_units=5):
    units = tuple(
        UnitProfile(
            f'u{i}',
            flops=draw(st.sampled_from([0.0, 1e8, 1e9, 2.5e9])),
            parameter_bytes=draw(st.sampled_from([0, 10**6, 4 * 10**6, 9 * 10**6])),
            output_shape=(1,),
            output_bytes=draw(st.sampled_from([1000, 50_000, 600_000])),
            kind=draw(st.sampled_from([MATMUL, CONV])),
        )
        for i in range(draw(st.integers(1, max_units)))
    )
    measured = {}
    if draw(st.booleans()):
        measured['x'] = tuple(draw(numbers(0.001, 0.05)) for _ in units)
    return ModelProfile('model', PICTURE, units, measured)


@st.composite
def devices(draw):
    idle = draw(numbers(0, 5))
    return Device(
        name='',
        device_class=draw(st.sampled_from(['x', 'y'])),
        flops_per_s=draw(st.sampled_from([5e9, 2e10, 3e11])),
        memory_bytes=draw(st.sampled_from([math.inf, 5e6, 1.2e7])),
        idle_w=idle,
        active_w=idle + draw(numbers(0, 20)),
        overhead_s=draw(st.sampled_from([0.0, 0.003, 0.02])),
        codec_bytes_per_s=draw(st.sampled_from([1e5, 1e7])),
        battery_j=draw(st.sampled_from([math.inf, 1e4])),
        soc=draw(numbers(0, 1)),
        load=draw(st.sampled_from([0.0, 0.5])),
    )


@st.composite
def problems(draw):
    """(profile, fleet, requirements without limits, source, sink) with repeated devices."""
    kinds = draw(st.lists(devices(), min_size=1, max_size=3))
    count = draw(st.integers(len(kinds), 4))
    kind_of = [draw(st.integers(0, len(kinds) - 1)) for _ in range(count)]
    names = [f'd{i}' for i in range(count)]
    radios = st.builds(
        Link,
        st.just(''),
        st.just(''),
        bytes_per_s=st.sampled_from([1e5, 1e6, 5e7, math.inf]),
        latency_s=st.sampled_from([0.0, 0.001, 0.02]),
        tx_j_per_byte=numbers(0, 1e-6),
        rx_j_per_byte=numbers(0, 1e-6),
    )
    common = draw(radios)
    mode = draw(st.sampled_from(['same', 'own', 'sparse']))
    links = {}
    for ends in permutations(names, 2):
        if mode != 'sparse' or draw(st.booleans()):
            radio = common if mode == 'same' else draw(radios)
            links[ends] = replace(radio, source=ends[0], target=ends[1])
    fleet = Fleet(
        {name: replace(kinds[k], name=name) for name, k in zip(names, kind_of, strict=True)}, links
    )
    base = Requirements(
        pictures_stay=draw(st.booleans()),
        battery_weight=draw(st.sampled_from([0.0, 0.7])),
        jpeg_bytes=draw(st.sampled_from([None, 500])),
    )
    pick = st.sampled_from(names)
    return draw(profiles()), fleet, base, draw(pick), draw(pick)


weights = st.sampled_from(
    [
        Weights(1, 0, 0),
        Weights(0, 1, 0),
        Weights(0, 0, 1),
        Weights(1, 1, 1),
        Weights(1, 0, 2),
        Weights(0, 3, 1),
        Weights(2, 1, 0),
    ]
)


def brute_force(profile, fleet, requirements, source, sink):
    """All legal plans with their costs: compositions x permutations x picture codings."""
    units = len(profile)
    found = []
    for count in range(1, min(units, len(fleet.devices)) + 1):
        for cuts in combinations(range(1, units), count - 1):
            edges = (0, *cuts, units)
            for names in permutations(fleet.devices, count):
                for picture in (RAW, JPEG):
                    stages = tuple(map(Stage, names, edges, edges[1:]))
                    plan = Plan('cam', profile.model, source, sink, stages, picture)
                    try:
                        cost = evaluate(plan, profile, fleet, requirements)
                    except InfeasiblePlanError:
                        continue
                    if not violations(plan, cost, fleet, requirements):
                        found.append((plan, cost))
    return found


@st.composite
def limited(draw, legal):
    """Limits near the costs of real plans, so that some bind and some cannot be met."""
    limits = {}
    for key, field in (
        ('max_latency_s', 'latency_s'),
        ('max_period_s', 'period_s'),
        ('max_energy_j', 'energy_j'),
    ):
        if legal and draw(st.integers(0, 2)) == 0:
            value = getattr(draw(st.sampled_from(legal))[1], field)
            value *= draw(st.sampled_from([0.98, 1.0, 1.2]))
            if value > 0:
                limits[key] = value
    return limits


def run(problem, requirements, solver='exact'):
    profile, fleet, _, source, sink = problem
    return solve(
        profile, fleet, requirements, stream='cam', source=source, sink=sink, solver=solver
    )


def assert_optimal(problem, requirements, legal):
    profile, fleet, _, source, _ = problem
    yardstick = reference(profile, fleet, requirements, source)
    allowed = [
        score(cost, requirements, yardstick)
        for plan, cost in legal
        if not violations(plan, cost, fleet, requirements)
    ]
    if not allowed:
        with pytest.raises(InfeasiblePlanError):
            run(problem, requirements)
        return
    solution = run(problem, requirements)
    assert not violations(solution.plan, solution.cost, fleet, requirements)
    assert solution.score == pytest.approx(min(allowed), rel=1e-9, abs=1e-15)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_exact_is_as_good_as_brute_force(data):
    problem = data.draw(problems())
    legal = brute_force(*problem)
    limits = data.draw(limited(legal))
    requirements = replace(problem[2], weights=data.draw(weights), **limits)
    assert_optimal(problem, requirements, legal)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_exact_is_optimal_however_often_it_has_to_try_harder(data):
    problem = data.draw(problems())
    legal = brute_force(*problem)
    limits = data.draw(limited(legal))
    requirements = replace(problem[2], weights=data.draw(weights), **limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, '_SINGLE', ((1, 2), (4, 6), (1024, 10**6)))
        patch.setattr(exact, '_MIXED', ((1, 2),))
        patch.setattr(exact, '_RANGE', ((4, 8),))
        patch.setattr(exact, '_SCOUT_WIDTH', 1)
        assert_optimal(problem, requirements, legal)


@settings(max_examples=60, deadline=None)
@given(problems(), weights, st.sampled_from(['beam', 'corrected', 'literal']))
def test_every_solver_gives_a_legal_plan_or_says_there_is_none(problem, weight, solver):
    requirements = replace(problem[2], weights=weight)
    try:
        solution = run(problem, requirements, solver)
    except InfeasiblePlanError:
        return
    assert not violations(solution.plan, solution.cost, problem[1], requirements)
    assert solution.score >= run(problem, requirements).score * (1 - 1e-9)
    assert solution.solver == solver


@settings(max_examples=40, deadline=None)
@given(problems())
def test_front_holds_all_plans_that_nothing_beats(problem):
    profile, fleet, base, source, sink = problem
    legal = brute_force(*problem)
    if not legal:
        with pytest.raises(InfeasiblePlanError):
            pareto_front(profile, fleet, base, stream='cam', source=source, sink=sink)
        return
    front = pareto_front(profile, fleet, base, stream='cam', source=source, sink=sink)
    costs = np.array([[c.energy_j, c.latency_s, c.period_s] for _, c in legal])
    points = np.array([[c.energy_j, c.latency_s, c.period_s] for _, c in front.plans])
    slack = 1e-12 + 1e-9 * costs
    assert front.complete
    for cost, room in zip(costs, slack, strict=True):
        assert (points <= cost + room).all(axis=1).any()
    for point in points:
        assert not (costs < point - slack).all(axis=1).any()


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 3), *[st.integers(0, 3)] * 4), min_size=1, max_size=40),
)
def test_undominated_keeps_one_of_each_best_row(columns, rows):
    key = np.array([row[0] for row in rows], dtype=np.uint64)
    values = np.array([row[1 : 1 + columns] for row in rows], dtype=float)
    kept = undominated(key, values)
    for i in range(len(rows)):
        beaten_by = [k for k in kept if key[k] == key[i] and (values[k] <= values[i]).all()]
        assert beaten_by
        assert i not in kept or beaten_by == [i]


def device(name, gflops, watts=10.0, **more):
    values = {'memory_bytes': 1e9, 'idle_w': 2.0, 'active_w': 2.0 + watts, **more}
    return Device(name, name, gflops * 1e9, **values)


def mesh(*members, rate=1e7, latency=0.001, tx=1e-7, rx=1e-7, without=()):
    names = [member.name for member in members]
    links = {
        ends: Link(*ends, rate, latency, tx, rx)
        for ends in permutations(names, 2)
        if ends not in without
    }
    return Fleet({member.name: member for member in members}, links)


def model(units=4, flops=1e9, weights_mb=1.0, sent=10_000):
    return ModelProfile(
        'model',
        PICTURE,
        tuple(UnitProfile(f'u{i}', flops, int(weights_mb * 1e6), (1,), sent) for i in range(units)),
    )


def plan_for(fleet, requirements=None, profile=None, source='a', sink='a', solver='exact'):
    return solve(
        profile or model(),
        fleet,
        requirements or Requirements(),
        stream='cam',
        source=source,
        sink=sink,
        solver=solver,
    )


def test_one_device_is_chosen_when_it_is_best():
    solution = plan_for(mesh(device('a', 100, watts=5), device('b', 10, watts=50)))
    assert solution.plan.stages == (Stage('a', 0, 4),)


def test_mixed_fleet_uses_each_device_for_what_it_is():
    """Two slow devices listed first must not make the fast ones look slow."""
    fleet = mesh(
        device('a', 10), device('b', 10), device('c', 40), device('d', 40), rate=1e9, latency=0.0
    )
    solution = plan_for(fleet, Requirements(Weights(0, 0, 1)), model(units=10))
    assert solution.cost.period_s == pytest.approx(0.1, rel=1e-3)
    lengths = {stage.device: len(stage) for stage in solution.plan.stages}
    assert lengths == {'a': 1, 'b': 1, 'c': 4, 'd': 4}


def test_equal_periods_are_told_apart_by_energy():
    fleet = mesh(device('a', 10, watts=30), device('b', 10, watts=1), device('c', 10, watts=60))
    profile = replace(model(units=2), measured_s={'a': (1, 1), 'b': (1, 1), 'c': (1, 1)})
    solution = plan_for(fleet, Requirements(Weights(0, 0, 1)), profile)
    assert solution.cost.period_s == pytest.approx(1)
    assert {stage.device for stage in solution.plan.stages} == {'a', 'b'}


def test_equal_devices_share_a_kind_unless_they_are_source_or_sink():
    fleet = mesh(*(device(name, 10) for name in 'abcd'))
    tables = build_tables(model(), fleet, Requirements(), 'a', 'b')
    assert sorted(tables.members) == [('a',), ('b',), ('c', 'd')]


def test_a_different_link_separates_equal_devices():
    fleet = mesh(*(device(name, 10) for name in 'abcd'), without=[('a', 'd')])
    tables = build_tables(model(), fleet, Requirements(), 'a', 'a')
    assert sorted(tables.members) == [('a',), ('b', 'c'), ('d',)]


def test_low_battery_moves_the_work_away():
    full = device('a', 50, watts=10, battery_j=1e4, soc=1.0)
    fleet = mesh(full, device('b', 50, watts=11))
    demands = Requirements(battery_weight=1.0)
    assert plan_for(fleet, demands).plan.stages[0].device == 'a'
    empty = Fleet({**fleet.devices, 'a': replace(full, soc=0.2)}, fleet.links)
    assert plan_for(empty, demands).plan.stages == (Stage('b', 0, 4),)


def test_literal_greedy_drains_the_emptiest_battery_and_corrected_spares_it():
    low = device('b', 50, battery_j=1e4, soc=0.1)
    fleet = mesh(device('a', 50), low, device('c', 50, battery_j=1e4, soc=0.9))
    demands = Requirements(battery_weight=1.0)
    assert plan_for(fleet, demands, solver='literal').plan.stages[0].device == 'b'
    assert plan_for(fleet, demands, solver='corrected').plan.stages[0].device == 'a'


def test_greedy_moves_on_when_the_memory_is_full_and_does_not_return():
    fleet = mesh(
        device('a', 10, watts=1, memory_bytes=2.5e6), device('b', 10, watts=2), device('c', 10)
    )
    solution = plan_for(fleet, solver='corrected')
    assert solution.plan.stages == (Stage('a', 0, 2), Stage('b', 2, 4))


def test_greedy_that_is_stuck_says_where_and_what_to_use():
    fleet = mesh(device('a', 10, memory_bytes=2.5e6), device('b', 10, memory_bytes=1.5e6))
    with pytest.raises(InfeasiblePlanError, match=r"stuck before unit 3 \(u3.*'exact'"):
        plan_for(fleet, solver='corrected')


def test_greedy_that_breaks_a_limit_says_so():
    fleet = mesh(device('a', 10), device('b', 100, watts=900))
    with pytest.raises(InfeasiblePlanError, match=r'max_latency_s = 0\.3 s, the plan needs 0\.4'):
        plan_for(fleet, Requirements(max_latency_s=0.3), solver='corrected')
    assert plan_for(fleet, Requirements(max_latency_s=0.3)).cost.latency_s <= 0.3


def test_alternatives_hold_the_source_alone_and_leave_out_the_choice():
    solution = plan_for(mesh(device('a', 10), device('b', 100)), Requirements(Weights(0, 1, 0)))
    plans = [other.plan.stages for other in solution.alternatives]
    assert (Stage('a', 0, 4),) in plans
    assert solution.plan.stages not in plans


def test_solutions_do_not_depend_on_the_run():
    fleet = mesh(*(device(name, 10) for name in 'abcde'), device('f', 30))
    demands = Requirements(Weights(1, 1, 1), max_latency_s=1.0)
    assert plan_for(fleet, demands).plan == plan_for(fleet, demands).plan


def test_beam_plans_for_more_devices_than_a_set_can_be_numbered():
    fleet = mesh(*(device(f'd{i}', 10 + i) for i in range(70)))
    solution = plan_for(
        fleet, Requirements(Weights(0, 1, 0)), source='d0', sink='d0', solver='beam'
    )
    assert solution.plan.stages == (Stage('d69', 0, 4),)


def test_exact_search_that_outgrows_its_budget_points_to_the_beam(monkeypatch):
    monkeypatch.setattr(exact, '_SINGLE', ((1, 1),))
    monkeypatch.setattr(exact, '_SCOUT_WIDTH', 0)
    fleet = mesh(*(device(name, 10 + ord(name)) for name in 'abcdef'))
    with pytest.raises(SearchTooLargeError, match="use solver 'beam'"):
        plan_for(fleet, Requirements(Weights(0, 0, 1)))


def test_unknown_solver_and_devices_are_named():
    fleet = mesh(device('a', 10), device('b', 20))
    with pytest.raises(UnknownNameError, match="unknown solver 'exakt': did you mean 'exact'"):
        plan_for(fleet, solver='exakt')
    with pytest.raises(UnknownNameError, match="unknown device 'z'"):
        plan_for(fleet, sink='z')


@pytest.mark.parametrize('solver', ['exact', 'beam'])
def test_latency_limit_out_of_reach_is_told_with_the_fastest_time(solver):
    fleet = mesh(device('a', 10), device('b', 40), rate=1e9, latency=0.01)
    with pytest.raises(
        InfeasiblePlanError,
        match=r'max_latency_s = 0\.05 s: the fastest possible takes 0\.12 s \(\+0\.07',
    ):
        plan_for(fleet, Requirements(max_latency_s=0.05), solver=solver)


def test_each_limit_out_of_reach_is_told():
    fleet = mesh(device('a', 10), device('b', 40))
    with pytest.raises(InfeasiblePlanError) as caught:
        plan_for(fleet, Requirements(max_period_s=0.001, max_energy_j=0.001))
    assert 'no plan meets max_period_s' in str(caught.value)
    assert 'no plan meets max_energy_j' in str(caught.value)


def test_limits_that_conflict_are_told_with_what_would_do():
    fleet = mesh(device('a', 10, watts=1), device('b', 100, watts=100))
    with pytest.raises(InfeasiblePlanError) as caught:
        plan_for(fleet, Requirements(max_latency_s=0.1, max_energy_j=0.5))
    text = str(caught.value)
    assert 'max_latency_s = 0.1 s conflicts with the other limits' in text
    assert 'max_energy_j = 0.5 J conflicts with the other limits' in text


def test_model_that_fits_nowhere_is_told_in_megabytes():
    fleet = mesh(device('a', 10, memory_bytes=2e6), device('b', 10, memory_bytes=3e6))
    with pytest.raises(InfeasiblePlanError) as caught:
        plan_for(fleet, profile=model(units=4, weights_mb=2.5))
    text = str(caught.value)
    assert 'its weights need 10.0 MB' in text
    assert 'offer 5.0 MB together and b 3.0 MB alone' in text
    assert 'the largest unit u0 needs 2.5 MB' in text


def test_pictures_that_stay_on_a_source_without_memory_are_told():
    fleet = mesh(device('a', 10, memory_bytes=1.0), device('b', 10))
    with pytest.raises(
        InfeasiblePlanError, match=r'pictures_stay keeps unit 0 \(u0, 1\.0 MB\) on a'
    ):
        plan_for(fleet, Requirements(pictures_stay=True))


def test_sink_out_of_reach_is_told_with_what_links_reach():
    fleet = mesh(*(device(n, 10) for n in 'abc'), without=[('a', 'c'), ('b', 'c')])
    with pytest.raises(InfeasiblePlanError, match='from the source a to the sink c: links reach b'):
        plan_for(fleet, sink='c')

"""Levels, cut settings and pictures chosen together with the stages, against brute force."""

import math
import random
from dataclasses import replace
from itertools import combinations, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.planning.accuracy import AccuracyTable, AccuracyTableError
from lapdtr_ros.planning.cost import (
    InfeasiblePlanError,
    evaluate,
    reference,
    score,
    stage_seconds,
    violations,
)
from lapdtr_ros.planning.effects import GRID, Held, cut_cost, predict, stage_effects
from lapdtr_ros.planning.fleet import Device, Fleet, Link, Requirements, Weights
from lapdtr_ros.planning.plan import (
    JPEG,
    LOSSLESS,
    RAW,
    CutSetting,
    Plan,
    Stage,
    describe_plan,
)
from lapdtr_ros.planning.profile import ModelProfile, UnitProfile
from lapdtr_ros.planning.solvers import pareto_front, solve
from lapdtr_ros.planning.validation import PlanningInputError

TOKENS = 60
KEPT = (40, 20)


def units(count, global_units):
    return tuple(
        UnitProfile(
            f'u{i}',
            flops=(1 + i % 3) * 1e9,
            parameter_bytes=4 * 10**6,
            output_shape=(TOKENS + 1, 250),
            output_bytes=(TOKENS + 1) * 1000,
            embedding_dim=250,
            tokens=TOKENS + 1,
            token_global=i in global_units,
            attention_flops=3e8,
        )
        for i in range(count)
    )


def cut_entry(cut, keep, bits, error, pack_s=0.0):
    return {
        'cut': cut,
        'keep': keep,
        'form': 'cluster' if keep else '',
        'bits': bits,
        'bytes': round((keep or TOKENS) * 1000 * (bits or 32) / 32) + 200,
        'error': error,
        'pack_s': pack_s,
        'unpack_s': pack_s / 2,
    }


def level_entry(number, count, share=0.7, error=0.01):
    shares = [share**number] * count
    return {
        'level': number,
        'flops': shares,
        'seconds': shares,
        'parameter_bytes': shares,
        'error': [error * number] * count,
    }


def table(count, levels, cuts, **changes):
    return AccuracyTable.model_validate(
        {
            'model': 'model',
            'weights': 'w',
            'units': count,
            'metric': 'AP50',
            'dataset': 'made up',
            'frames': 1,
            'command': 'none',
            'accuracy': 0.5,
            'flops_per_s': 3e10,
            'levels': levels,
            'cuts': cuts,
            'joint': {'alpha': 0.1, 'gamma': 1.1},
            'curve': {'error': [0, 0.02, 0.1, 0.4], 'accuracy': [0.5, 0.49, 0.42, 0.1]},
            'margin': 0.005,
            **changes,
        }
    )


def model(count=4, global_units=(1, 2), levels=1, cuts=None):
    if cuts is None:
        cuts = [
            cut_entry(cut, keep, bits, error)
            for cut in range(1, count)
            for keep, bits, error in ((0, 8, 1e-4), (0, 4, 0.002), (40, 4, 0.01), (20, 4, 0.04))
        ]
    entries = [level_entry(n, count) for n in range(1, levels + 1)]
    return ModelProfile(
        'model',
        (64, 64, 3),
        units(count, global_units),
        prefix_tokens=1,
        accuracy=table(count, entries, cuts),
    )


def fleet(rng=None, count=3):
    rng = rng or random.Random(0)
    names = 'abcd'[:count]
    devices = {
        name: Device(
            name,
            name,
            rng.uniform(1, 20) * 1e10,
            rng.choice((math.inf, 9e6)),
            2.0,
            2.0 + rng.uniform(2, 20),
            overhead_s=rng.choice((0.0, 0.003)),
            codec_bytes_per_s=1e6,
            battery_j=1e5,
            soc=rng.uniform(0.2, 1.0),
        )
        for name in names
    }
    links = {
        ends: Link(*ends, rng.uniform(0.3, 10) * 1e6, rng.choice((0, 0.002)), 2e-7, 1e-7)
        for ends in permutations(names, 2)
    }
    return Fleet(devices, links)


def all_plans(profile, fleet, source, sink):
    """Every plan with every calibrated level and setting."""
    count, known = len(profile), profile.accuracy
    levels = (0, *known.level_effects)
    options = {
        cut: [LOSSLESS, *(e.setting for e in known.cuts if e.cut == cut)] for cut in range(1, count)
    }
    for stages in range(1, min(count, len(fleet.devices)) + 1):
        for cuts in combinations(range(1, count), stages - 1):
            edges = (0, *cuts, count)
            choices = product(
                permutations(fleet.devices, stages),
                product(levels, repeat=stages),
                product(*(options[cut] for cut in cuts)),
            )
            for names, widths, packed in choices:
                parts = map(Stage, names, edges, edges[1:], widths, (*packed, LOSSLESS))
                whole = tuple(parts)
                for picture in (RAW,) if names[0] == source else (RAW, JPEG):
                    yield Plan('s', 'model', source, sink, whole, picture)


def legal_plans(profile, fleet, requirements, source, sink):
    legal = []
    for plan in all_plans(profile, fleet, source, sink):
        try:
            cost = evaluate(plan, profile, fleet, requirements)
        except (InfeasiblePlanError, AccuracyTableError):
            continue
        if not violations(plan, cost, fleet, requirements):
            legal.append((plan, cost))
    return legal


@st.composite
def problems(draw):
    rng = random.Random(draw(st.integers(0, 10**6)))
    count = draw(st.integers(2, 4))
    entries = [
        cut_entry(cut, keep, bits, rng.uniform(0, 0.06), rng.choice((0.0, 0.004)))
        for cut in range(1, count)
        for keep, bits in rng.sample([(0, 8), (0, 2), (40, 8), (40, 0), (20, 8), (20, 2)], 2)
    ]
    profile = model(
        count,
        [i for i in range(count) if rng.random() < 0.7],
        draw(st.integers(0, 1)),
        entries,
    )
    weights = draw(
        st.sampled_from([Weights(1, 0, 0), Weights(0, 1, 0), Weights(0, 0, 1), Weights(1, 1, 1)])
    )
    requirements = Requirements(
        weights=replace(weights, accuracy=draw(st.sampled_from([0.0, 0.0, 1.0, 8.0]))),
        pictures_stay=draw(st.booleans()),
        battery_weight=0.5,
        jpeg_bytes=draw(st.sampled_from([None, 4000])),
        jpeg_error=0.01,
        min_accuracy=draw(st.sampled_from([None, 0.3, 0.46, 0.488])),
    )
    return profile, fleet(rng, rng.randint(2, 3)), requirements


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from(['max_latency_s', 'max_period_s', 'max_energy_j', None]))
def test_exact_is_the_best_of_all_plans(problem, limited):
    profile, devices, requirements = problem
    legal = legal_plans(profile, devices, requirements, 'a', 'b')
    if not legal:
        with pytest.raises(InfeasiblePlanError):
            solve(profile, devices, requirements, stream='s', source='a', sink='b')
        return
    if limited is not None:
        column = {'max_latency_s': 'latency_s', 'max_period_s': 'period_s'}.get(limited, 'energy_j')
        values = sorted(getattr(cost, column) for _, cost in legal)
        requirements = replace(requirements, **{limited: values[len(values) // 4]})
        legal = [(p, c) for p, c in legal if not violations(p, c, devices, requirements)]
    yardstick = reference(profile, devices, requirements, 'a')
    best = min(score(cost, requirements, yardstick) for _, cost in legal)
    found = solve(profile, devices, requirements, stream='s', source='a', sink='b')
    assert not violations(found.plan, found.cost, devices, requirements)
    assert found.score == pytest.approx(best, rel=1e-9)
    try:
        beam = solve(
            profile, devices, requirements, stream='s', source='a', sink='b', solver='beam'
        )
    except InfeasiblePlanError:
        return  # a beam may overlook the only plans that keep a tight limit
    assert not violations(beam.plan, beam.cost, devices, requirements)
    assert beam.score >= best * (1 - 1e-9)


@settings(max_examples=10, deadline=None)
@given(problems())
def test_front_holds_the_best_plan_of_each_objective(problem):
    profile, devices, requirements = problem
    requirements = replace(requirements, weights=Weights())
    legal = legal_plans(profile, devices, requirements, 'a', 'b')
    if not legal:
        return
    front = pareto_front(profile, devices, requirements, stream='s', source='a', sink='b')
    for column in ('energy_j', 'latency_s', 'period_s'):
        best = min(getattr(cost, column) for _, cost in legal)
        found = min(getattr(cost, column) for _, cost in front.plans)
        assert found == pytest.approx(best, rel=1e-9)


def plan_for(profile, requirements=None, devices=None, **options):
    options = {'stream': 's', 'source': 'a', 'sink': 'a', **options}
    return solve(profile, devices or fleet(), requirements or Requirements(), **options)


def test_nothing_is_lost_unless_it_is_asked_for():
    solution = plan_for(model())
    bare = plan_for(replace(model(), accuracy=None))
    assert solution.plan == bare.plan
    assert solution.cost.error == 0.0
    assert solution.cost.energy_j == bare.cost.energy_j


def test_min_accuracy_holds_with_the_margin():
    solution = plan_for(model(), Requirements(min_accuracy=0.47))
    assert solution.cost.error > 0.0
    assert solution.cost.accuracy - solution.cost.accuracy_margin >= 0.47 - 1e-9
    assert solution.cost.energy_j < plan_for(model()).cost.energy_j


def test_heavier_accuracy_loses_less():
    light = plan_for(model(), Requirements(Weights(1, 0, 0, 0.5)))
    heavy = plan_for(model(), Requirements(Weights(1, 0, 0, 100.0)))
    assert heavy.cost.accuracy_lost < light.cost.accuracy_lost


def test_more_accuracy_than_the_model_has_is_refused():
    with pytest.raises(InfeasiblePlanError, match=r'min_accuracy = 0\.7: model reaches 0\.5'):
        plan_for(model(), Requirements(min_accuracy=0.7))


@pytest.mark.parametrize(
    'requirements',
    [Requirements(min_accuracy=0.2), Requirements(Weights(1, 0, 0, 1.0))],
    ids=['limit', 'weight'],
)
def test_accuracy_of_a_model_without_a_table_cannot_be_asked_for(requirements):
    with pytest.raises(PlanningInputError, match='no accuracy table'):
        plan_for(replace(model(), accuracy=None), requirements)


def test_error_says_which_accuracy_would_make_a_plan_possible():
    fastest = plan_for(model(), Requirements(Weights(0, 1, 0))).cost.latency_s
    tight = Requirements(max_latency_s=fastest * 0.9)
    with pytest.raises(InfeasiblePlanError, match='nothing may be lost, with min_accuracy =') as e:
        plan_for(model(), tight)
    reached = float(str(e.value).split('min_accuracy = ')[1].split()[0])
    assert plan_for(model(), replace(tight, min_accuracy=reached - 1e-3)).cost.error > 0.0


def test_alternatives_hold_the_best_plan_without_loss():
    stay = Requirements(pictures_stay=True)
    solution = plan_for(model(), replace(stay, min_accuracy=0.4))
    named = {other.name: other for other in solution.alternatives}
    assert named['best without loss'].cost.error == 0.0
    lossless = plan_for(model(), stay).cost.energy_j
    assert named['best without loss'].cost.energy_j == pytest.approx(lossless)
    assert 'points of accuracy' in solution.reason


def test_reason_says_when_a_picture_is_cheaper_than_features():
    requirements = Requirements(min_accuracy=0.3, jpeg_bytes=500)
    devices = {
        name: replace(device, flops_per_s=1e9 if name == 'a' else 1e11, codec_bytes_per_s=1e9)
        for name, device in fleet().devices.items()
    }
    solution = plan_for(model(), requirements, replace(fleet(), devices=devices))
    assert solution.plan.picture == JPEG
    assert 'the jpeg picture (0.5 kB) goes to' in solution.reason
    assert 'the best plan that keeps it on a' in solution.reason


def test_kept_tokens_make_global_units_cheaper_until_the_grid_is_put_back():
    profile = model()
    device = Device('a', 'a', 1e10, 1e9, 1, 2)
    share = profile.units[1].flops_at(21) / profile.units[1].flops
    received = Held(20, 'cluster')
    assert share < 0.4
    assert stage_seconds(device, profile, 1, 3, received=received) == pytest.approx(
        share * stage_seconds(device, profile, 1, 3), rel=0.05
    )
    assert stage_seconds(device, profile, 3, 4, received=received) == stage_seconds(
        device, profile, 3, 4
    )


def test_level_makes_a_stage_cheaper_and_smaller():
    profile = model()
    stages = (Stage('a', 0, 2), Stage('b', 2, 4, level=1))
    plan = Plan('s', 'model', 'a', 'b', stages)
    full = replace(plan, stages=(stages[0], replace(stages[1], level=0)))
    narrow = evaluate(plan, profile, fleet(), Requirements()).devices['b']
    wide = evaluate(full, profile, fleet(), Requirements()).devices['b']
    overhead = fleet().devices['b'].overhead_s
    assert narrow.busy_s - overhead == pytest.approx(0.7 * (wide.busy_s - overhead))
    assert narrow.memory_bytes == pytest.approx(0.7 * wide.memory_bytes, abs=1)


def test_tokens_that_were_kept_travel_on_without_being_chosen_again():
    profile = model(cuts=[*model().accuracy.model_dump()['cuts'], cut_entry(2, 20, 8, 0.05)])
    held = Held(20, 'cluster')
    for setting in (CutSetting(bits=4), CutSetting(40, 'cluster', 4), CutSetting(20, 'cluster', 4)):
        passed = cut_cost(profile, 2, setting, held)
        assert passed.held == held
        assert passed.bytes == profile.accuracy.cut(2, CutSetting(20, 'cluster', 4)).bytes
        assert passed.error == profile.accuracy.cut(2, CutSetting(bits=4)).error
    chosen_again = cut_cost(profile, 2, CutSetting(20, 'cluster', 4), Held(40, 'cluster'))
    assert chosen_again.held == held
    assert chosen_again.error == profile.accuracy.cut(2, CutSetting(20, 'cluster', 4)).error
    plain = cut_cost(profile, 2, LOSSLESS, held)
    assert plain.bytes == 12 + TOKENS + 21 * 1000
    assert plain.error == 0.0


def test_packing_keeps_both_ends_of_a_cut_busy():
    profile = model(cuts=[cut_entry(2, 0, 4, 0.0, pack_s=0.006)])
    stages = (Stage('a', 0, 2, cut=CutSetting(bits=4)), Stage('b', 2, 4))
    plan = Plan('s', 'model', 'a', 'b', stages)
    packed = evaluate(plan, profile, fleet(), Requirements())
    plain = evaluate(
        replace(plan, stages=(replace(stages[0], cut=LOSSLESS), stages[1])),
        profile,
        fleet(),
        Requirements(),
    )
    for name, seconds in (('a', 0.006), ('b', 0.003)):
        expected = seconds * 3e10 / fleet().devices[name].flops_per_s
        extra = packed.devices[name].busy_s - plain.devices[name].busy_s
        assert extra == pytest.approx(expected)


def test_units_that_need_the_grid_end_a_set_of_tokens():
    profile = model(count=5, global_units=(1, 3))
    stages = (
        Stage('a', 0, 1, cut=CutSetting(20, 'cluster', 4)),
        Stage('b', 1, 3, cut=CutSetting(bits=4)),
        Stage('c', 3, 5),
    )
    effects = stage_effects(Plan('s', 'model', 'a', 'c', stages), profile)
    assert [effect.received for effect in effects] == [GRID, Held(20, 'cluster'), GRID]


def test_prediction_adds_up_errors_and_marks_estimates():
    profile = model()
    stages = (
        Stage('a', 0, 1, cut=CutSetting(20, 'cluster', 4)),
        Stage('b', 1, 2, level=1, cut=CutSetting(20, 'cluster', 4)),
        Stage('c', 2, 4),
    )
    plan = Plan('s', 'model', 'a', 'c', stages)
    prediction = predict(plan, profile, Requirements())
    total = 0.04 + 0.01 + 0.002
    assert prediction.accuracy == pytest.approx(float(profile.accuracy.accuracy_at(total)))
    assert prediction.estimated
    assert prediction.margin == 0.005


def test_prediction_without_loss_is_exact_and_unknown_without_a_table():
    plan = Plan('s', 'model', 'a', 'a', (Stage('a', 0, 4),))
    assert predict(plan, model(), Requirements()).accuracy == 0.5
    assert predict(plan, model(), Requirements()).margin == 0.0
    bare = replace(model(), accuracy=None)
    assert math.isnan(predict(plan, bare, Requirements()).accuracy)


def test_level_without_a_table_is_refused():
    plan = Plan('s', 'model', 'a', 'a', (Stage('a', 0, 4, level=1),))
    with pytest.raises(AccuracyTableError, match='no accuracy table'):
        evaluate(plan, replace(model(), accuracy=None), fleet(), Requirements())


def test_plans_read_well():
    stages = (Stage('a', 0, 1, 2, CutSetting(20, 'literal', 4, 'skip.4')), Stage('b', 1, 4))
    text = describe_plan(Plan('s', 'model', 'a', 'b', stages))
    assert text == 'a: 0, level 2 → 20 tokens (literal), 4 bit, skip.4 → b: 1-3'
    sent = Plan('s', 'model', 'a', 'b', (Stage('b', 0, 4),), JPEG)
    assert describe_plan(sent) == 'jpeg → b: 0-3'

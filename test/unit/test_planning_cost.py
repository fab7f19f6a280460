"""The cost model against values computed by hand, and the checks of inputs."""

import math
from dataclasses import replace

import pytest

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.planning.cost import (
    InfeasiblePlanError,
    battery_price,
    evaluate,
    reference,
    score,
    violations,
)
from lapdtr_ros.planning.fleet import Device, Fleet, Link, Requirements, Weights
from lapdtr_ros.planning.plan import JPEG, Plan, Stage
from lapdtr_ros.planning.profile import CONV, ModelProfile, UnitProfile
from lapdtr_ros.planning.validation import PlanningInputError, validate

PROFILE = ModelProfile(
    'model',
    (100, 100, 3),
    (
        UnitProfile('a', 4e9, 1000, (1,), 20_000, kind=CONV),
        UnitProfile('b', 2e9, 2000, (1,), 5_000),
        UnitProfile('c', 6e9, 3000, (1,), 400),
    ),
)
# 1 GFLOP/s with half of it free; a convolution reaches a quarter of the rate.
SLOW = Device('slow', 'x', 1e9, 1e6, idle_w=2, active_w=5, overhead_s=0.1, load=0.5)
FAST = Device('fast', 'y', 10e9, 1e6, idle_w=10, active_w=30, codec_bytes_per_s=3e6)
UP = Link('slow', 'fast', 1e5, 0.01, tx_j_per_byte=1e-5, rx_j_per_byte=2e-5)
DOWN = Link('fast', 'slow', 2e5, 0.02, tx_j_per_byte=3e-5, rx_j_per_byte=4e-5)
FLEET = Fleet({'slow': SLOW, 'fast': FAST}, {('slow', 'fast'): UP, ('fast', 'slow'): DOWN})
NO_DEMANDS = Requirements()


def plan(*stages, source='slow', sink='slow', picture='raw'):
    return Plan('cam', 'model', source, sink, tuple(Stage(*stage) for stage in stages), picture)


def test_whole_model_on_the_source_costs_only_computing():
    cost = evaluate(plan(('slow', 0, 3)), PROFILE, FLEET, NO_DEMANDS)
    seconds = 0.1 + 4 / 0.125 + 2 / 0.5 + 6 / 0.5
    assert cost.latency_s == pytest.approx(seconds)
    assert cost.period_s == pytest.approx(seconds)
    assert cost.energy_j == pytest.approx(3 * 0.5 * seconds)  # the other half is not ours
    assert cost.radio_j == 0
    assert cost.hops == ()
    assert cost.devices['slow'].utilisation == pytest.approx(1)


def test_two_stages_add_hops_there_and_back():
    cost = evaluate(plan(('slow', 0, 1), ('fast', 1, 3)), PROFILE, FLEET, NO_DEMANDS)
    slow, fast = 0.1 + 4 / 0.125, 0.2 + 0.6
    there, back = 0.01 + 0.2, 0.02 + 400 / 2e5
    assert cost.latency_s == pytest.approx(slow + fast + there + back)
    assert cost.period_s == pytest.approx(slow)
    assert cost.radio_j == pytest.approx(20_000 * 3e-5 + 400 * 7e-5)
    assert cost.compute_j == pytest.approx(3 * 0.5 * slow + 20 * fast)
    assert cost.energy_j == pytest.approx(cost.compute_j + cost.radio_j)
    assert [(hop.cut, hop.bytes) for hop in cost.hops] == [(1, 20_000), (3, 400)]
    assert cost.devices['fast'].memory_bytes == 5000
    assert sum(d.energy_j for d in cost.devices.values()) == pytest.approx(cost.energy_j)


def test_jpeg_picture_is_smaller_but_costs_coding_at_both_ends():
    demands = Requirements(jpeg_bytes=1000)
    raw = evaluate(plan(('fast', 0, 3)), PROFILE, FLEET, demands)
    jpeg = evaluate(plan(('fast', 0, 3), picture=JPEG), PROFILE, FLEET, demands)
    coding = 30_000 / 1e8, 30_000 / 3e6
    assert raw.hops[0].bytes == 30_000
    assert jpeg.hops[0].bytes == 1000
    assert jpeg.latency_s == pytest.approx(raw.latency_s + sum(coding) - 29_000 / 1e5)
    assert jpeg.compute_j == pytest.approx(raw.compute_j + 3 * 0.5 * coding[0] + 20 * coding[1])
    assert jpeg.devices['fast'].busy_s == pytest.approx(raw.devices['fast'].busy_s + coding[1])


def test_jpeg_without_its_size_is_refused():
    with pytest.raises(InfeasiblePlanError, match='jpeg_bytes'):
        evaluate(plan(('fast', 0, 3), picture=JPEG), PROFILE, FLEET, NO_DEMANDS)


def test_a_slow_link_sets_the_period():
    crawl = Fleet(FLEET.devices, {**FLEET.links, ('slow', 'fast'): replace(UP, bytes_per_s=100)})
    cost = evaluate(plan(('slow', 0, 1), ('fast', 1, 3)), PROFILE, crawl, NO_DEMANDS)
    assert cost.period_s == pytest.approx(200)


def test_picture_and_result_on_the_same_link_add_up_in_the_period():
    crawl = Fleet(FLEET.devices, {**FLEET.links, ('slow', 'fast'): replace(UP, bytes_per_s=100)})
    zigzag = plan(('fast', 0, 2), ('slow', 2, 3), sink='fast')
    assert evaluate(zigzag, PROFILE, crawl, NO_DEMANDS).period_s == pytest.approx(304)


def test_missing_link_names_both_ends():
    one_way = Fleet(FLEET.devices, {('slow', 'fast'): UP})
    with pytest.raises(InfeasiblePlanError, match='no link from fast to slow'):
        evaluate(plan(('fast', 0, 3)), PROFILE, one_way, NO_DEMANDS)


def test_unknown_device_and_wrong_unit_count_are_refused():
    with pytest.raises(UnknownNameError, match="'fats': did you mean 'fast'"):
        evaluate(plan(('fats', 0, 3)), PROFILE, FLEET, NO_DEMANDS)
    with pytest.raises(InfeasiblePlanError, match='covers 2 units, model has 3'):
        evaluate(plan(('fast', 0, 2)), PROFILE, FLEET, NO_DEMANDS)


def test_battery_price_rises_as_the_battery_empties_and_is_one_on_mains():
    half = replace(SLOW, battery_j=1e4, soc=0.5)
    assert battery_price(SLOW, 2.0) == 1
    assert battery_price(half, 2.0) == pytest.approx(3)
    assert battery_price(replace(half, soc=1.0), 2.0) == 1
    assert math.isfinite(battery_price(replace(half, soc=0.0), 2.0))


def test_priced_energy_charges_each_device_its_own_price():
    fleet = Fleet({**FLEET.devices, 'slow': replace(SLOW, battery_j=1e4, soc=0.25)}, FLEET.links)
    demands = Requirements(battery_weight=1.0)
    cost = evaluate(plan(('slow', 0, 1), ('fast', 1, 3)), PROFILE, fleet, demands)
    joules = {name: device.energy_j for name, device in cost.devices.items()}
    assert cost.priced_energy == pytest.approx(4 * joules['slow'] + joules['fast'])


def test_reference_is_the_limit_where_set_and_the_source_elsewhere():
    yardstick = reference(PROFILE, FLEET, Requirements(max_latency_s=0.5), 'fast')
    assert yardstick.latency_s == 0.5
    assert yardstick.period_s == pytest.approx(4 / 2.5 + 0.8)
    assert yardstick.energy_j == pytest.approx(20 * (4 / 2.5 + 0.8))


def test_score_of_the_whole_model_on_the_source_is_the_sum_of_weights():
    demands = Requirements(Weights(0.5, 2, 3))
    cost = evaluate(plan(('slow', 0, 3)), PROFILE, FLEET, demands)
    assert score(cost, demands, reference(PROFILE, FLEET, demands, 'slow')) == pytest.approx(5.5)


def test_violations_name_limit_memory_and_picture():
    tight = Fleet({**FLEET.devices, 'fast': replace(FAST, memory_bytes=4000)}, FLEET.links)
    demands = Requirements(max_latency_s=1.0, pictures_stay=True)
    remote = plan(('fast', 0, 3))
    texts = violations(remote, evaluate(remote, PROFILE, tight, demands), tight, demands)
    assert [text.split()[0] for text in texts] == [
        'max_latency_s',
        'memory_bytes',
        'pictures_stay,',
    ]
    local = plan(('slow', 0, 3))
    assert violations(local, evaluate(local, PROFILE, FLEET, NO_DEMANDS), FLEET, NO_DEMANDS) == ()


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'battery_j': -1.0}, 'device slow: battery_j = -1.0'),
        ({'soc': 1.5}, 'device slow: soc = 1.5'),
        ({'load': 1.0}, 'device slow: load = 1.0'),
        ({'flops_per_s': math.nan}, 'device slow: flops_per_s = nan'),
        ({'flops_per_s': math.inf}, 'device slow: flops_per_s = inf'),
        ({'overhead_s': -0.1}, 'device slow: overhead_s = -0.1'),
        ({'active_w': 1.0}, 'device slow: active_w = 1.0 is below idle_w'),
        ({'name': 'other'}, "device 'other' is listed under the name 'slow'"),
    ],
)
def test_bad_device_is_named(change, text):
    fleet = Fleet({**FLEET.devices, 'slow': replace(SLOW, **change)}, FLEET.links)
    with pytest.raises(PlanningInputError, match=text.replace('.', r'\.')):
        validate(PROFILE, fleet, NO_DEMANDS, 'fast', 'fast')


@pytest.mark.parametrize(
    ('ends', 'change', 'text'),
    [
        (('slow', 'fast'), {'bytes_per_s': 0.0}, 'link slow -> fast: bytes_per_s = 0.0'),
        (('slow', 'fast'), {'latency_s': math.nan}, 'link slow -> fast: latency_s = nan'),
        (('slow', 'slow'), {'target': 'slow'}, 'link slow -> slow leads from a device to itself'),
        (('fast', 'slow'), {}, "link slow -> fast is listed under \\('fast', 'slow'\\)"),
    ],
)
def test_bad_link_is_named(ends, change, text):
    fleet = Fleet(FLEET.devices, {ends: replace(UP, **change)})
    with pytest.raises(PlanningInputError, match=text):
        validate(PROFILE, fleet, NO_DEMANDS, 'fast', 'fast')


def test_link_to_an_unknown_device_is_named():
    fleet = Fleet(FLEET.devices, {('slow', 'gone'): replace(UP, target='gone')})
    with pytest.raises(UnknownNameError, match="unknown device of a link 'gone'"):
        validate(PROFILE, fleet, NO_DEMANDS, 'slow', 'slow')


@pytest.mark.parametrize(
    ('demands', 'text'),
    [
        (Requirements(Weights(0, 0, 0)), 'all weights are 0'),
        (Requirements(Weights(1, -1, 0)), 'weights.latency = -1'),
        (Requirements(max_latency_s=0.0), 'max_latency_s = 0.0'),
        (Requirements(max_energy_j=math.nan), 'max_energy_j = nan'),
        (Requirements(battery_weight=-0.1), 'battery_weight = -0.1'),
        (Requirements(jpeg_bytes=0), 'jpeg_bytes = 0'),
    ],
)
def test_bad_requirements_are_named(demands, text):
    with pytest.raises(PlanningInputError, match=text):
        validate(PROFILE, FLEET, demands, 'slow', 'slow')


def test_profile_without_units_or_with_negative_cost_is_refused():
    with pytest.raises(PlanningInputError, match='no units'):
        validate(ModelProfile('empty', (1, 1, 3), ()), FLEET, NO_DEMANDS, 'slow', 'slow')
    odd = replace(PROFILE, units=(replace(PROFILE.units[0], flops=-1.0),))
    with pytest.raises(PlanningInputError, match='unit a: flops'):
        validate(odd, FLEET, NO_DEMANDS, 'slow', 'slow')

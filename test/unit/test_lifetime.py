"""Plans for the longest life of the fleet, against brute force; and the paper's own rules."""

import math
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest

from lapdtr_ros.planning.cost import InfeasiblePlanError, evaluate, violations
from lapdtr_ros.planning.dtr import CORRECTED, LITERAL, dtr_plans
from lapdtr_ros.planning.fleet import Device, Fleet, Link, Requirements
from lapdtr_ros.planning.lifetime import device_lifetimes, fleet_lifetime, plan_for_lifetime
from lapdtr_ros.planning.plan import Plan, Stage
from lapdtr_ros.planning.profile import ModelProfile, UnitProfile
from lapdtr_ros.planning.streams import StreamRequest

STREAM = 'a/camera0'


def profile(units=5):
    return ModelProfile(
        'model',
        (32, 32, 3),
        tuple(UnitProfile(f'u{i}', 1e9, 10**6, (1,), 50_000) for i in range(units)),
    )


def random_fleet(rng, size):
    devices = {}
    for name in 'abcd'[:size]:
        idle = rng.uniform(0.5, 3.0)
        devices[name] = Device(
            name,
            name,
            flops_per_s=rng.uniform(2e10, 2e11),
            memory_bytes=rng.choice([2e6, 1e9]),
            idle_w=idle,
            active_w=idle + rng.uniform(2.0, 15.0),
            battery_j=rng.choice([2e4, 1e5, 4e5]),
            soc=rng.uniform(0.2, 1.0),
        )
    devices['a'] = replace(devices['a'], memory_bytes=1e9)
    links = {
        ends: Link(*ends, 1e7, 0.001, tx_j_per_byte=2e-8, rx_j_per_byte=1e-8)
        for ends in permutations(devices, 2)
    }
    return Fleet(devices, links)


def all_plans(fleet, units):
    for count in range(1, len(fleet.devices) + 1):
        for chain in permutations(fleet.devices, count):
            for cuts in combinations(range(1, units), count - 1):
                ends = (0, *cuts, units)
                stages = tuple(Stage(d, *ends[i : i + 2]) for i, d in enumerate(chain))
                yield Plan(STREAM, 'model', 'a', 'a', stages)


def longest_life(model, fleet, requirements, requests):
    best = -math.inf
    for plan in all_plans(fleet, len(model)):
        cost = evaluate(plan, model, fleet, requirements)
        if not violations(plan, cost, fleet, requirements):
            best = max(best, fleet_lifetime(fleet, requests, {STREAM: cost}))
    return best


def test_lifetime_reaches_what_brute_force_finds():
    model, requests = profile(), {STREAM: StreamRequest('a', 'a', rate_hz=4.0)}
    ratios = []
    for seed in range(25):
        rng = np.random.default_rng(seed)
        fleet = random_fleet(rng, size=3)
        requirements = Requirements(max_latency_s=rng.choice([0.3, math.inf]))
        found = plan_for_lifetime(model, fleet, requirements, requests, model_weights='w')
        ratios.append(found.lifetime_s / longest_life(model, fleet, requirements, requests))
    assert max(ratios) <= 1.0 + 1e-9
    assert min(ratios) >= 0.9
    assert np.mean(np.array(ratios) > 1.0 - 1e-9) >= 0.9


def test_lifetime_counts_idle_power_and_every_stream():
    fleet = random_fleet(np.random.default_rng(0), size=2)
    model = profile()
    requests = {name: StreamRequest('a', 'a', rate_hz=3.0) for name in ('one', 'two')}
    plan = Plan('one', 'model', 'a', 'a', (Stage('a', 0, 5),))
    cost = evaluate(plan, model, fleet, Requirements())
    lives = device_lifetimes(fleet, requests, {'one': cost, 'two': cost})
    a, b = fleet.devices['a'], fleet.devices['b']
    power = a.idle_w + 6.0 * cost.devices['a'].energy_j
    assert lives['a'] == pytest.approx(a.battery_j * a.soc / power)
    assert lives['b'] == pytest.approx(b.battery_j * b.soc / b.idle_w)


def test_a_fleet_on_mains_lives_for_ever_and_still_saves_energy():
    fleet = random_fleet(np.random.default_rng(3), size=2)
    mains = {n: replace(d, battery_j=math.inf) for n, d in fleet.devices.items()}
    fleet = Fleet(mains, fleet.links)
    requests = {STREAM: StreamRequest('a', 'a', rate_hz=1.0)}
    found = plan_for_lifetime(profile(), fleet, Requirements(), requests, model_weights='w')
    assert math.isinf(found.lifetime_s)
    energies = [
        evaluate(plan, profile(), fleet, Requirements()).energy_j
        for plan in all_plans(fleet, 5)
        if not violations(
            plan, evaluate(plan, profile(), fleet, Requirements()), fleet, Requirements()
        )
    ]
    chosen = evaluate(found.plans[STREAM], profile(), fleet, Requirements())
    assert chosen.energy_j == pytest.approx(min(energies))


def dtr_objective(plan, model, fleet, rule, weight):
    """The paper's sums, written down once more."""
    total = 0.0
    fastest = max(d.flops_per_s for d in fleet.devices.values())
    fullest = max(d.battery_j * d.soc for d in fleet.devices.values())
    for stage in plan.stages:
        device = fleet.devices[stage.device]
        flops = sum(unit.flops for unit in model.units[stage.start : stage.stop])
        if rule == LITERAL:
            energy = device.battery_j * device.soc / fullest
            total += device.flops_per_s / fastest / (flops / model.flops) + weight / energy
        else:
            total += flops / device.flops_per_s * (1.0 + weight / device.soc)
    return total


@pytest.mark.parametrize('rule', [CORRECTED, LITERAL])
def test_the_papers_rules_find_their_own_optimum(rule):
    model, requests = profile(4), {STREAM: StreamRequest('a', 'a')}
    for seed in range(10):
        fleet = random_fleet(np.random.default_rng(seed), size=3)
        plans = dtr_plans(model, fleet, Requirements(), requests, rule=rule, weight=0.5)
        found = dtr_objective(plans[STREAM], model, fleet, rule, 0.5)
        best = min(
            dtr_objective(plan, model, fleet, rule, 0.5)
            for plan in all_plans(fleet, 4)
            if not violations(
                plan, evaluate(plan, model, fleet, Requirements()), fleet, Requirements()
            )
        )
        assert found == pytest.approx(best)


def test_the_printed_rule_loads_the_slowest_device_and_the_corrected_one_does_not():
    fleet = random_fleet(np.random.default_rng(0), size=2)
    slow = replace(fleet.devices['b'], flops_per_s=1e9, memory_bytes=1e9, soc=1.0, battery_j=4e5)
    fleet = Fleet({**fleet.devices, 'b': slow}, fleet.links)
    requests = {STREAM: StreamRequest('a', 'a')}
    chosen = {
        rule: [s.device for s in dtr_plans(
            profile(), fleet, Requirements(), requests, rule=rule, weight=0.1
        )[STREAM].stages]
        for rule in (LITERAL, CORRECTED)
    }  # fmt: skip
    assert chosen == {LITERAL: ['b'], CORRECTED: ['a']}


def test_the_papers_rule_without_room_is_refused_by_name():
    fleet = random_fleet(np.random.default_rng(0), size=2)
    small = {n: replace(d, memory_bytes=1e6) for n, d in fleet.devices.items()}
    with pytest.raises(InfeasiblePlanError, match=STREAM):
        dtr_plans(
            profile(),
            Fleet(small, fleet.links),
            Requirements(),
            {STREAM: StreamRequest('a', 'a')},
            rule=CORRECTED,
            weight=1.0,
        )

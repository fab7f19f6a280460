"""Fleets on batteries: the simulation against arithmetic, and the planner's rules in it."""

import math

import pytest

from lapdtr_ros.evaluation.endurance import Command, Fixed, Replanned, as_task, simulate
from lapdtr_ros.planning.fleet import Device, Fleet, Link, Requirements
from lapdtr_ros.planning.plan import Plan, Stage
from lapdtr_ros.planning.profile import ModelProfile, UnitProfile
from lapdtr_ros.planning.redistribution import LIFETIME, Task
from lapdtr_ros.planning.streams import StreamRequest

UNITS = 4


@pytest.fixture
def profile():
    unit = [UnitProfile(f'u{n}', 1e8, 1000, (4, 4), 64) for n in range(UNITS)]
    return ModelProfile('m', (8, 8, 3), tuple(unit))


def device(name, **changes):
    figures = {'idle_w': 2.0, 'active_w': 12.0, 'battery_j': 10_000.0, **changes}
    return Device(name, 'board', 4e9, 1e9, **figures)


def fleet_of(*devices):
    links = {
        (a.name, b.name): Link(a.name, b.name, 1e7, 1e-3, 1e-7, 1e-7)
        for a in devices
        for b in devices
        if a is not b
    }
    return Fleet({d.name: d for d in devices}, links)


def task_of(profile, rate_hz=2.0, **limits):
    requests = {'s': StreamRequest('a', 'a', rate_hz)}
    return Task(profile, requests, Requirements(**limits), 'w')


def alone(profile, name):
    return {'s': Plan('s', 'm', 'a', 'a', (Stage(name, 0, len(profile)),))}


def test_a_fixed_plan_lasts_as_long_as_arithmetic_says(profile):
    # 0.1 s per frame at 10 W above idle and 2 Hz: 2 W + 2 W.
    run = simulate(fleet_of(device('a')), task_of(profile), Fixed(alone(profile, 'a')))
    assert run.alive_s == pytest.approx(2500.0)
    assert run.frames == pytest.approx(5000.0)
    assert run.frame_j == pytest.approx(1.0)
    assert run.total_j == pytest.approx(2.0)
    assert (run.first_empty, run.plans) == ('a', 1)
    assert run.missed == run.violations == 0


def test_the_first_empty_battery_ends_the_run(profile):
    fleet = fleet_of(device('a'), device('b', soc=0.1))
    run = simulate(fleet, task_of(profile), Fixed(alone(profile, 'a')))
    assert run.first_empty == 'b'
    assert run.alive_s == pytest.approx(500.0)


def test_mains_live_until_the_horizon(profile):
    fleet = fleet_of(device('a', battery_j=math.inf))
    run = simulate(fleet, task_of(profile), Fixed(alone(profile, 'a')), horizon_s=100.0)
    assert run.alive_s == pytest.approx(100.0)
    assert run.first_empty == ''


def test_frames_that_a_plan_cannot_keep_up_with_are_missed(profile):
    run = simulate(fleet_of(device('a')), task_of(profile, 20.0), Fixed(alone(profile, 'a')))
    assert run.frames / (run.frames + run.missed) == pytest.approx(0.5)


def test_frames_under_a_broken_limit_are_violations(profile):
    task = task_of(profile, max_latency_s=0.05)
    run = simulate(fleet_of(device('a')), task, Fixed(alone(profile, 'a')))
    assert run.violations == pytest.approx(run.frames)


def test_streams_that_share_a_device_take_no_more_energy_per_frame(profile):
    requests = {name: StreamRequest('a', 'a', 2.0) for name in ('s', 't')}
    task = Task(profile, requests, Requirements(), 'w')
    plans = {name: Plan(name, 'm', 'a', 'a', (Stage('a', 0, UNITS),)) for name in requests}
    run = simulate(fleet_of(device('a')), task, Fixed(plans))
    assert run.frame_j == pytest.approx(1.0)
    assert run.alive_s == pytest.approx(10_000.0 / 6.0)


def test_energy_of_changes_is_charged(profile):
    class Restless:
        def command(self, soc, now):
            name = 'a' if int(now) % 10 < 5 else 'b'
            return Command(alone(profile, name), moving_j=50.0)

    fleet = fleet_of(device('a'), device('b'))
    calm = simulate(fleet, task_of(profile), Fixed(alone(profile, 'a')))
    restless = simulate(fleet, task_of(profile), Restless())
    assert restless.plans > 10
    assert restless.alive_s < calm.alive_s


def test_redistribution_outlives_the_static_plan_and_keeps_the_limits(profile):
    fleet = fleet_of(device('a', soc=0.5), device('b', active_w=11.0), device('c', soc=0.9))
    task = task_of(profile, 6.0, max_latency_s=1.0)
    static = simulate(fleet, task, Fixed(alone(profile, 'b')))
    ours = simulate(fleet, task, Replanned(fleet, as_task(task, LIFETIME), 5.0))
    assert ours.alive_s > 1.2 * static.alive_s
    assert ours.violations == ours.missed == 0
    assert ours.plans > 1


def test_a_stream_without_rate_is_refused(profile):
    with pytest.raises(ValueError, match='rate_hz'):
        simulate(fleet_of(device('a')), task_of(profile, 0.0), Fixed(alone(profile, 'a')))

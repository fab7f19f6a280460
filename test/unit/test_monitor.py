"""Triggers: when telemetry is a reason to think again, and when it is noise."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.planning.classes import device_from_class, load_device_class
from lapdtr_ros.planning.fleet import Device, Fleet, Link
from lapdtr_ros.planning.monitor import (
    BATTERY,
    LINK,
    LOST,
    OVERLOAD,
    RETURNED,
    Estimate,
    FleetMonitor,
    LinkReading,
    Reading,
    ReadingError,
    Triggers,
)

PERIOD_S = 0.5


def device(name, **changes):
    values = {'battery_j': 1e5, 'reserve_soc': 0.2, **changes}
    return Device(name, 'x', 1e10, 1e9, idle_w=2.0, active_w=8.0, **values)


def two_devices():
    devices = {name: device(name) for name in ('near', 'far')}
    ends = [('near', 'far'), ('far', 'near')]
    return Fleet(devices, {e: Link(*e, bytes_per_s=1e7, latency_s=0.002) for e in ends})


class Clocked:
    """A monitor with a clock that hears all its devices every period unless told otherwise."""

    def __init__(self, triggers=None, **first):
        self.monitor = FleetMonitor(two_devices(), triggers)
        self.now = 0.0
        self.values = {name: {'session': 'a', 'soc': 0.8} for name in ('near', 'far')}
        self.silent = set()
        self.step(**first)
        self.monitor.take()

    def step(self, periods=1, **near):
        """Let time pass; keywords are readings of ``near`` from now on."""
        self.values['near'].update(near)
        for _ in range(periods):
            self.now += PERIOD_S
            for name in set(self.values) - self.silent:
                self.monitor.hear(Reading(name, **self.values[name]), self.now)
            self.monitor.tick(self.now)
        return self.monitor.take()


def kinds(causes):
    return [(cause.kind, cause.subject) for cause in causes]


def test_a_battery_below_its_reserve_is_one_urgent_cause_until_it_has_clearly_recovered():
    clocked = Clocked()
    (cause,) = clocked.step(soc=0.19)
    assert (cause.kind, cause.urgent) == (BATTERY, True)
    assert '19.0%' in cause.text
    assert '20.0%' in cause.text
    for soc in (0.21, 0.19, 0.24, 0.18):
        assert clocked.step(soc=soc) == ()
    (cause,) = clocked.step(soc=0.26)
    assert (cause.kind, cause.urgent) == (BATTERY, False)
    assert clocked.monitor.low_batteries == ()


def test_a_low_battery_makes_its_joules_dear():
    clocked = Clocked(Triggers(low_battery_price=7.0))
    clocked.step(soc=0.1)
    devices = clocked.monitor.fleet().devices
    assert (devices['near'].joule_price, devices['far'].joule_price) == (7.0, 1.0)
    assert devices['near'].soc == 0.1


@settings(max_examples=60, deadline=None)
@given(
    noise=st.lists(st.floats(-0.024, 0.024), min_size=40, max_size=120),
    centre=st.floats(0.15, 0.3),
)
def test_noise_within_the_hysteresis_causes_at_most_two_thoughts(noise, centre):
    """One when it crosses the reserve, at most one more for having drifted; never back again."""
    clocked = Clocked(soc=centre)
    causes = []
    for error in noise:
        causes += clocked.step(soc=centre + error)
    assert len(causes) <= 2


def test_a_silent_device_is_lost_once_and_comes_back_when_it_stays():
    clocked = Clocked()
    clocked.silent.add('near')
    assert kinds(clocked.step(periods=2)) == []
    assert kinds(clocked.step()) == [(LOST, 'near')]
    assert clocked.monitor.missing == ('near',)
    assert clocked.step(periods=3) == ()
    clocked.silent.clear()
    assert clocked.step(periods=4) == ()
    assert kinds(clocked.step()) == [(RETURNED, 'near')]
    assert clocked.monitor.present == {'near', 'far'}


def test_a_device_that_comes_and_goes_is_trusted_later_every_time():
    clocked = Clocked()
    waits = []
    for _ in range(4):
        clocked.monitor.lose('near', 'lease ended')
        before = clocked.now
        while 'near' not in clocked.monitor.present:
            clocked.step()
        waits.append(clocked.now - before)
    assert waits == sorted(waits)
    assert waits[-1] >= 4 * waits[0]


def test_links_and_devices_of_lost_devices_are_not_planned_with():
    clocked = Clocked()
    clocked.monitor.lose('far', 'lease ended')
    fleet = clocked.monitor.fleet()
    assert set(fleet.devices) == {'near'}
    assert fleet.links == {}


def test_a_planner_that_slept_does_not_take_the_fleet_for_dead():
    clocked = Clocked()
    clocked.now += 20.0
    clocked.monitor.tick(clocked.now)
    assert clocked.monitor.take() == ()
    clocked.silent.add('near')
    assert kinds(clocked.step(periods=4)) == [(LOST, 'near')]


def test_a_slow_device_counts_after_the_dwell_time_and_a_hiccup_does_not():
    clocked = Clocked(time_ratio=1.0)
    assert clocked.step(time_ratio=3.0) == ()
    assert clocked.step(time_ratio=1.1) == ()
    assert clocked.step(time_ratio=3.0, periods=2) == ()
    assert kinds(clocked.step()) == [(OVERLOAD, 'near')]
    assert clocked.monitor.fleet().devices['near'].time_factor == 3.0
    assert clocked.step(time_ratio=2.5, periods=10) == ()


def test_frames_that_pile_up_at_a_fixed_rate_count_as_overload():
    clocked = Clocked()
    clocked.monitor.saturation = {'near': 2.0}
    assert kinds(clocked.step(queue=5, periods=40)) == [(OVERLOAD, 'near')]
    assert clocked.monitor.fleet().devices['near'].time_factor == pytest.approx(2.0)


def test_a_queue_without_a_fixed_rate_is_no_overload():
    assert Clocked().step(queue=5, periods=10) == ()


def test_a_collapsed_link_is_planned_with_as_measured_and_tried_again_later():
    clocked = Clocked(Triggers(forget_s=30.0))
    slow = {'far': LinkReading(bytes_per_s=1e5, delay_s=math.nan)}
    assert kinds(clocked.step(links=slow, periods=3)) == [(LINK, 'near -> far')]
    links = clocked.monitor.fleet().links
    assert links['near', 'far'].bytes_per_s == 1e5
    assert links['near', 'far'].latency_s == 0.002
    assert links['far', 'near'].bytes_per_s == 1e7
    assert clocked.step(links={}, periods=57) == ()
    assert kinds(clocked.step()) == [(LINK, 'near -> far')]
    assert clocked.monitor.fleet().links['near', 'far'].bytes_per_s == 1e7


def test_a_better_figure_is_believed_later_and_later_when_it_does_not_last():
    estimate = Estimate(1.0, worse=1)
    waits, now = [], 0.0
    for _ in range(3):
        while not estimate.measure(3.0, now, 1.3, 1.0):
            now += 0.5
        before = now
        while not estimate.measure(1.0, now, 1.3, 1.0):
            now += 0.5
        waits.append(now - before)
    assert waits == [10.0, 20.0, 40.0]


def test_forgetting_waits_longer_every_time_it_was_wrong():
    estimate = Estimate(10.0, worse=-1)
    waits, now = [], 0.0
    for turn in range(3):
        while not estimate.measure(1.0 + 0.01 * turn, now, 1.5, 1.0):
            now += 0.5
        before = now
        while not estimate.forget(now, 1.5, 10.0):
            now += 0.5
        waits.append(now - before)
    assert waits == [9.0, 19.0, 39.0]


def test_a_value_that_is_told_again_and_again_is_no_new_measurement():
    estimate = Estimate(10.0, worse=-1)
    now = 0.0
    while not estimate.measure(1.0, now, 1.5, 1.0):
        now += 0.5
    while not estimate.forget(now, 1.5, 10.0):
        assert not estimate.measure(1.0, now, 1.5, 1.0)
        now += 0.5
    assert not any(estimate.measure(1.0, now + i, 1.5, 1.0) for i in range(20))
    assert estimate.used == 10.0


@given(st.lists(st.floats(0.7, 1.4), max_size=60))
def test_an_estimate_does_not_follow_measurements_inside_its_band(values):
    estimate = Estimate(1.0, worse=1)
    assert not any(estimate.measure(v, 0.5 * i, 1.5, 1.0) for i, v in enumerate(values))


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('soc', math.nan), ('soc', 1.01), ('soc', -0.01), ('load', 2.0), ('queue', -1),
        ('time_ratio', -1.0), ('time_ratio', math.inf),
        ('links', {'far': LinkReading(bytes_per_s=-1.0)}),
        ('links', {'far': LinkReading(delay_s=math.inf)}),
    ],
)  # fmt: skip
def test_impossible_readings_are_refused_by_name_and_change_nothing(field, value):
    clocked = Clocked()
    before = clocked.monitor.fleet()
    with pytest.raises(ReadingError, match='near'):
        clocked.monitor.hear(Reading('near', **{'session': 'a', field: value}), clocked.now)
    assert clocked.monitor.fleet() == before


def test_readings_of_strangers_are_refused():
    with pytest.raises(UnknownNameError, match='nobody'):
        Clocked().monitor.hear(Reading('nobody'), 0.0)


def test_of_two_devices_with_one_name_the_first_stays():
    clocked = Clocked()
    with pytest.raises(ReadingError, match='two devices call themselves'):
        clocked.monitor.hear(Reading('near', session='b', soc=0.01), clocked.now)
    assert clocked.step(periods=5) == ()
    assert clocked.monitor.soc('near') == 0.8


def test_a_restarted_device_is_lost_first_because_it_holds_nothing():
    clocked = Clocked()
    clocked.silent.add('near')
    causes, refused = [], 0
    for _ in range(12):
        try:
            clocked.monitor.hear(Reading('near', session='b'), clocked.now)
        except ReadingError:
            refused += 1
        causes += clocked.step()
    assert kinds(causes) == [(LOST, 'near'), (RETURNED, 'near')]
    assert refused == 3


def test_a_device_that_comes_tells_its_class_and_keeps_its_battery():
    fleet = Fleet(
        {
            'cav_0': dataclasses.replace(
                device_from_class(load_device_class('jetson_nano'), 'cav_0'), battery_j=1e6
            )
        }
    )
    monitor = FleetMonitor(fleet)
    monitor.hear(Reading('cav_0', device_class='jetson_agx_orin', soc=0.7), 0.0)
    found = monitor.fleet().devices['cav_0']
    expected = device_from_class(load_device_class('jetson_agx_orin'), 'cav_0')
    assert found.flops_per_s == expected.flops_per_s
    assert (found.device_class, found.battery_j, found.soc) == ('jetson_agx_orin', 1e6, 0.7)


def test_a_class_that_nobody_knows_is_refused_by_name():
    fleet = Fleet({'cav_0': device_from_class(load_device_class('jetson_nano'), 'cav_0')})
    with pytest.raises(UnknownNameError, match='warp_drive'):
        FleetMonitor(fleet).hear(Reading('cav_0', device_class='warp_drive'), 0.0)

"""The modelled battery, its meter, the rules of BatteryState, and energy beside the stages."""

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapdtr_ros.energy.battery import Battery, BatteryError, ModelledMeter
from lapdtr_ros.energy.battery_state import (
    BatteryReading,
    BatteryStateMeter,
    full_j,
    power_w,
    remaining_j,
    state_of_charge,
)
from lapdtr_ros.energy.ends import Journey, ends_energy
from lapdtr_ros.energy.errors import MeterError
from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.planning.fleet import Device, Fleet, Link
from lapdtr_ros.planning.profile import ModelProfile, UnitProfile


class Clock:
    def __init__(self):
        self.now = 10.0

    def __call__(self):
        return self.now


def test_a_battery_drains_and_stops_at_empty():
    battery = Battery(100.0, 0.5)
    battery.drain(30.0)
    assert battery.remaining_j == pytest.approx(20.0)
    assert battery.soc == pytest.approx(0.2)
    battery.drain(30.0)
    assert battery.empty
    assert battery.soc == 0.0


def test_mains_never_drain():
    battery = Battery(math.inf)
    battery.drain(1e12)
    assert battery.soc == 1.0
    assert battery.remaining_j == math.inf


def test_a_battery_can_be_set_at_run_time():
    battery = Battery(100.0)
    battery.soc = 0.25
    assert battery.remaining_j == pytest.approx(25.0)


@pytest.mark.parametrize('share', [-0.1, 1.1, math.nan])
def test_an_impossible_charge_is_refused(share):
    with pytest.raises(BatteryError, match='soc'):
        Battery(1.0, share)


@pytest.mark.parametrize('capacity', [0.0, -1.0, math.nan])
def test_an_impossible_capacity_is_refused(capacity):
    with pytest.raises(BatteryError, match='capacity_j'):
        Battery(capacity)


@pytest.mark.parametrize('joules', [-1.0, math.nan])
def test_a_battery_is_not_charged_by_draining(joules):
    with pytest.raises(BatteryError, match='drain'):
        Battery(1.0).drain(joules)


def test_concurrent_drains_are_all_counted():
    battery = Battery(1e6)

    def work():
        for _ in range(2000):
            battery.drain(1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert battery.remaining_j == pytest.approx(1e6 - 8000)


def test_modelled_meter_adds_idle_compute_and_radio():
    clock, battery = Clock(), Battery(1000.0)
    meter = ModelledMeter(battery, idle_w=2.0, clock=clock)
    clock.now += 10.0
    meter.spend(compute_j=5.0, radio_j=1.0)
    reading = meter.read()
    assert reading.joules == pytest.approx({'idle': 20.0, 'compute': 5.0, 'radio': 1.0})
    assert meter.total_j(reading) == pytest.approx(26.0)
    assert battery.remaining_j == pytest.approx(974.0)


def test_modelled_meter_counts_device_seconds_from_the_change_on():
    clock, battery = Clock(), Battery(1000.0)
    meter = ModelledMeter(battery, idle_w=1.0, clock=clock)
    clock.now += 5.0
    meter.time_scale = 10.0
    clock.now += 5.0
    reading = meter.read()
    assert reading.joules['idle'] == pytest.approx(55.0)
    assert reading.time_s == pytest.approx(55.0)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0, 5)), max_size=20))
def test_what_the_meter_counts_is_what_the_battery_loses(steps):
    clock, battery = Clock(), Battery(1e4)
    meter = ModelledMeter(battery, idle_w=3.0, clock=clock)
    for pause, compute_j, radio_j in steps:
        clock.now += pause
        meter.spend(compute_j, radio_j)
    total = meter.total_j(meter.read())
    assert battery.remaining_j == pytest.approx(1e4 - total, rel=1e-9)


def test_battery_state_tells_charge_by_percentage_or_capacity():
    assert state_of_charge(BatteryReading(percentage=0.4)) == 0.4
    assert state_of_charge(BatteryReading(charge=3.0, capacity=4.0)) == 0.75
    assert state_of_charge(BatteryReading(charge=3.0, design_capacity=6.0)) == 0.5
    assert math.isnan(state_of_charge(BatteryReading()))


def test_battery_state_that_counts_to_a_hundred_is_not_guessed_at():
    assert math.isnan(state_of_charge(BatteryReading(percentage=40.0)))


def test_an_absent_battery_says_nothing():
    absent = BatteryReading(voltage=12.0, charge=1.0, percentage=0.5, current=-1.0, present=False)
    assert math.isnan(state_of_charge(absent))
    assert math.isnan(remaining_j(absent, 100.0))
    assert math.isnan(power_w(absent))


def test_remaining_energy_by_charge_then_capacity_then_configuration():
    by_charge = BatteryReading(voltage=12.0, charge=2.0, percentage=0.9)
    assert remaining_j(by_charge) == pytest.approx(2.0 * 12.0 * 3600)
    by_capacity = BatteryReading(voltage=12.0, percentage=0.5, design_capacity=4.0)
    assert remaining_j(by_capacity) == pytest.approx(0.5 * 4.0 * 12.0 * 3600)
    by_configuration = BatteryReading(voltage=12.0, percentage=0.5)
    assert remaining_j(by_configuration, 1000.0) == pytest.approx(500.0)
    assert full_j(by_configuration, 1000.0) == 1000.0


def test_zeros_of_unknown_fields_are_not_an_empty_battery():
    # What a Python publisher sends that fills in only the voltage.
    lazy = BatteryReading(voltage=12.0, current=0.0, charge=0.0, capacity=0.0, design_capacity=0.0)
    assert math.isnan(remaining_j(lazy))


def test_power_is_positive_while_discharging():
    assert power_w(BatteryReading(voltage=12.0, current=-2.0)) == pytest.approx(24.0)
    assert power_w(BatteryReading(voltage=12.0, current=1.0)) == pytest.approx(-12.0)
    assert math.isnan(power_w(BatteryReading(voltage=12.0)))


def test_battery_state_meter_integrates_messages():
    clock = Clock()
    meter = BatteryStateMeter(clock)
    with pytest.raises(MeterError, match='no BatteryState yet'):
        meter.latest  # noqa: B018
    for current in (-1.0, -3.0):
        meter.update(BatteryReading(voltage=10.0, current=current))
        clock.now += 1.0
    assert meter.read().joules['battery'] == pytest.approx(20.0 + 30.0)
    clock.now += 5.0
    with pytest.raises(MeterError, match='no power reading'):
        meter.read()


@pytest.fixture
def fleet():
    devices = {
        name: Device(name, 'board', 1e9, 1e9, idle_w=1.0, active_w=11.0, codec_bytes_per_s=1e6)
        for name in ('car', 'edge', 'bus')
    }
    links = {
        (a, b): Link(a, b, 1e6, 0.001, tx_j_per_byte=2e-6, rx_j_per_byte=1e-6)
        for a in devices
        for b in devices
        if a != b and {a, b} != {'edge', 'bus'}
    }
    return Fleet(devices, links)


@pytest.fixture
def profile():
    return ModelProfile('m', (10, 10, 3), (UnitProfile('u', 1.0, 1, (1,), 4),))


def test_source_and_sink_pay_for_radio_when_they_run_no_stage(fleet, profile):
    journey = Journey('car', 'car', ('edge',), picture_bytes=300, result_bytes=50)
    spent = ends_energy(journey, fleet, profile)
    assert set(spent) == {'car'}
    assert spent['car'].compute_j == 0.0
    assert spent['car'].radio_j == pytest.approx(300 * 2e-6 + 50 * 1e-6)


def test_a_source_pays_for_coding_its_picture(fleet, profile):
    journey = Journey('car', 'edge', ('edge',), picture_bytes=100, result_bytes=50)
    assert ends_energy(journey, fleet, profile)['car'].compute_j == pytest.approx(300e-6 * 10.0)


def test_devices_with_a_stage_are_charged_there(fleet, profile):
    journey = Journey('car', 'edge', ('car', 'edge'), picture_bytes=0, result_bytes=50)
    assert ends_energy(journey, fleet, profile) == {}


def test_a_frame_without_trace_costs_nothing_known(fleet, profile):
    assert ends_energy(Journey('car', 'car', (), 300, 0), fleet, profile) == {}


def test_a_frame_over_a_link_that_is_not_there_is_refused(fleet, profile):
    with pytest.raises(UnknownNameError, match='edge > bus'):
        ends_energy(Journey('car', 'bus', ('car', 'edge'), 300, 9), fleet, profile)

"""Meters on file trees with the layouts of real boards, and on doubles of what is no file."""

import math
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapdtr_ros.energy import detection, ina3221
from lapdtr_ros.energy.errors import MeterError, MeterUnavailableError
from lapdtr_ros.energy.host import memory_share, temperature_c
from lapdtr_ros.energy.ina3221 import find_channels, open_ina3221
from lapdtr_ros.energy.integrator import PowerIntegrator, SampledMeter
from lapdtr_ros.energy.jtop import JtopMeter
from lapdtr_ros.energy.meter import Reading, watts_between
from lapdtr_ros.energy.nvml import NvmlMeter
from lapdtr_ros.energy.rails import (
    ACCELERATOR,
    CARRIER,
    CPU,
    GPU,
    INPUT,
    MEMORY,
    MODELLED,
    OTHER,
    SOC,
    Rail,
    board_rails,
    roles_of,
    split_rail,
)
from lapdtr_ros.energy.rapl import RaplMeter
from lapdtr_ros.errors import LapdtrError, UnknownNameError

LEGACY = {
    'nano': {'6-0040': ('POM_5V_IN', 'POM_5V_GPU', 'POM_5V_CPU')},
    'tx2': {
        '0-0040': ('VDD_SYS_GPU', 'VDD_SYS_SOC', 'VDD_4V0_WIFI'),
        '0-0041': ('VDD_IN', 'VDD_SYS_CPU', 'VDD_SYS_DDR'),
        '0-0042': ('VDD_MUX', 'VDD_5V0_IO_SYS', 'VDD_3V3_SYS'),
        '0-0043': ('VDD_3V3_IO_SLP', 'VDD_1V8_IO', 'VDD_3V3_SYS_M2'),
    },
    'xavier_nx': {'7-0040': ('VDD_IN', 'VDD_CPU_GPU_CV', 'VDD_SOC')},
}
HWMON = {
    'xavier_nx': {'7-0040': ('VDD_IN', 'VDD_CPU_GPU_CV', 'VDD_SOC')},
    'orin_nano': {'1-0040': ('VDD_IN', 'VDD_CPU_GPU_CV', 'VDD_SOC')},
    'agx_orin': {
        '1-0040': ('VDD_GPU_SOC', 'VDD_CPU_CV', 'VIN_SYS_5V0'),
        '1-0041': ('NC', 'VDDQ_VDD2_1V8AO', 'NC'),
    },
}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{content}\n')


def legacy_tree(root, chips, milliwatts=1000):
    for number, (address, rails) in enumerate(chips.items()):
        device = root / f'bus/i2c/drivers/ina3221x/{address}/iio:device{number}'
        for channel, rail in enumerate(rails):
            write(device / f'rail_name_{channel}', rail)
            write(device / f'in_voltage{channel}_input', 5000)
            write(device / f'in_current{channel}_input', 200)
            write(device / f'in_power{channel}_input', milliwatts * (channel + 1))
            write(device / f'crit_current_limit_{channel}', '32760 ma')


def hwmon_tree(root, chips):
    for number, (address, rails) in enumerate(chips.items()):
        device = root / f'bus/i2c/drivers/ina3221/{address}/hwmon/hwmon{number + 3}'
        write(device / 'name', 'ina3221')
        for channel, rail in enumerate(rails, start=1):
            write(device / f'in{channel}_label', rail)
            write(device / f'in{channel}_input', 5000)
            write(device / f'curr{channel}_input', 200 * channel)
            write(device / f'in{channel + 3}_input', 12)
        write(device / 'in7_label', 'sum of shunt voltages')


def counted(rails):
    return {rail.name for rail in rails if rail.counted}


@pytest.mark.parametrize('board', LEGACY)
def test_legacy_driver_gives_every_rail_of_the_board(tmp_path, board):
    legacy_tree(tmp_path, LEGACY[board])
    channels = find_channels(tmp_path)
    assert [c.rail for c in channels] == [rail for chip in LEGACY[board].values() for rail in chip]
    assert [c.watts() for c in channels] == [1.0, 2.0, 3.0] * len(LEGACY[board])


@pytest.mark.parametrize('board', HWMON)
def test_mainline_driver_multiplies_voltage_and_current_and_skips_unconnected(tmp_path, board):
    hwmon_tree(tmp_path, HWMON[board])
    channels = find_channels(tmp_path)
    names = [rail for chip in HWMON[board].values() for rail in chip if rail != 'NC']
    assert [c.rail for c in channels] == names
    assert channels[1].watts() == pytest.approx(2.0)


def test_totals_of_boards():
    nano, tx2 = LEGACY['nano']['6-0040'], [r for chip in LEGACY['tx2'].values() for r in chip]
    assert counted(board_rails(nano)) == {'POM_5V_IN'}
    assert counted(board_rails(tx2)) == {'VDD_IN'}
    orin = [r for chip in HWMON['agx_orin'].values() for r in chip if r != 'NC']
    # The memory rail hangs behind VIN_SYS_5V0 and must not be counted twice.
    assert counted(board_rails(orin)) == {'VDD_GPU_SOC', 'VDD_CPU_CV', 'VIN_SYS_5V0'}
    xavier = ('GPU', 'CPU', 'SOC', 'CV', 'VDDRQ', 'SYS5V')
    assert counted(board_rails(xavier)) == set(xavier)


@pytest.mark.parametrize(
    ('name', 'roles'),
    [
        ('POM_5V_IN', (INPUT,)),
        ('5V_IN', (INPUT,)),
        ('VDD_IN', (INPUT,)),
        ('POM_5V_GPU', (GPU,)),
        ('VDD_CPU_GPU_CV', (CPU, GPU, ACCELERATOR)),
        ('VDD_GPU_SOC', (GPU, SOC)),
        ('VDD_SYS_DDR', (MEMORY,)),
        ('VDDQ_VDD2_1V8AO', (MEMORY,)),
        ('VDDRQ', (MEMORY,)),
        ('VDD_MUX', (CARRIER,)),
        ('VIN_SYS_5V0', (OTHER,)),
    ],
)
def test_roles_follow_the_words_of_a_rail(name, roles):
    assert roles_of(name) == roles


def test_a_merged_rail_is_split_only_as_modelled():
    rail = Rail('VDD_CPU_GPU_CV', (CPU, GPU, ACCELERATOR), counted=False)
    parts = split_rail(rail, 10.0, {CPU: 0.3, GPU: 0.7, ACCELERATOR: 0.0})
    assert sum(parts.values()) == pytest.approx(10.0)
    assert {part.level for part in parts} == {MODELLED}
    assert not any(part.counted for part in parts)
    assert {part.label for part in parts} >= {'VDD_CPU_GPU_CV/gpu (modelled)'}
    with pytest.raises(LapdtrError, match='VDD_CPU_GPU_CV'):
        split_rail(rail, 10.0, {CPU: 0.5, GPU: 0.5})
    with pytest.raises(LapdtrError, match='summing to 1'):
        split_rail(rail, 10.0, {CPU: 0.5, GPU: 0.5, ACCELERATOR: 0.5})


def test_rails_of_the_same_name_carry_their_address(tmp_path):
    legacy_tree(tmp_path, {'0-0040': ('VDD_IN', 'X', 'Y'), '0-0041': ('VDD_IN', 'Z', 'W')})
    names = [channel.rail for channel in find_channels(tmp_path)]
    assert names == ['VDD_IN@0-0040', 'X', 'Y', 'VDD_IN@0-0041', 'Z', 'W']


def test_ina3221_meter_integrates_in_its_thread(tmp_path):
    legacy_tree(tmp_path, LEGACY['nano'], milliwatts=4000)
    meter = open_ina3221(tmp_path, period_s=0.01)
    try:
        first = meter.read()
        threading.Event().wait(0.25)
        watts = watts_between(first, meter.read())
    finally:
        meter.close()
    assert watts['POM_5V_IN'] == pytest.approx(4.0, rel=0.05)
    assert watts['POM_5V_CPU'] == pytest.approx(12.0, rel=0.05)


def test_a_machine_without_ina3221_says_so(tmp_path):
    with pytest.raises(MeterUnavailableError, match='no INA3221'):
        open_ina3221(tmp_path)


def test_a_power_file_without_number_is_named(tmp_path):
    legacy_tree(tmp_path, LEGACY['nano'])
    path = tmp_path / 'bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power1_input'
    write(path, '')
    with pytest.raises(MeterUnavailableError, match='in_power1_input holds no number'):
        open_ina3221(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads everything')
def test_unreadable_power_files_name_the_remedy(tmp_path):
    legacy_tree(tmp_path, LEGACY['nano'])
    path = tmp_path / 'bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input'
    path.chmod(0)
    with pytest.raises(MeterUnavailableError, match='chmod a\\+r'):
        open_ina3221(tmp_path)


def test_a_vanished_sensor_is_an_error_and_not_a_flat_line(tmp_path):
    legacy_tree(tmp_path, LEGACY['nano'])
    clock = Clock()
    integrator = PowerIntegrator(('POM_5V_IN',), clock)
    integrator.add({'POM_5V_IN': 2.0})
    integrator.failed('in_power0_input: No such device')
    clock.now += 1.0
    assert integrator.read().joules['POM_5V_IN'] == pytest.approx(2.0)
    clock.now += 2.0
    with pytest.raises(MeterError, match='No such device'):
        integrator.read()


def test_trapezoid_rule_is_exact_for_a_ramp():
    clock = Clock()
    integrator = PowerIntegrator(('a',), clock)
    for step in range(11):
        integrator.add({'a': float(step)})
        clock.now += 0.1
    clock.now -= 0.1
    assert integrator.read().joules['a'] == pytest.approx(5.0)


@given(st.lists(st.tuples(st.floats(-1.0, 50.0), st.floats(0.0, 0.5)), min_size=1, max_size=40))
def test_energy_never_falls_between_readings(samples):
    clock = Clock()
    integrator = PowerIntegrator(('a',), clock)
    last = 0.0
    for watts, pause in samples:
        integrator.add({'a': watts})
        clock.now += pause
        now = integrator.read().joules['a']
        assert now >= last
        last = now


def test_power_that_is_not_finite_is_refused():
    clock = Clock()
    integrator = PowerIntegrator(('a',), clock)
    integrator.add({'a': math.nan})
    clock.now += 3.0
    with pytest.raises(MeterError, match='power of a is nan'):
        integrator.read()


def test_a_sampled_meter_survives_a_failing_sensor():
    answers = iter([1.0])

    def sample():
        try:
            return {'a': next(answers)}
        except StopIteration:
            raise OSError('gone') from None

    meter = SampledMeter('test', (Rail('a', (OTHER,), True),), sample, period_s=0.01)
    threading.Event().wait(0.1)
    assert meter.read().joules['a'] > 0.0
    meter.close()


def rapl_tree(root, energies):
    for zone, (name, microjoules) in energies.items():
        write(root / f'class/powercap/{zone}/name', name)
        write(root / f'class/powercap/{zone}/energy_uj', microjoules)
        write(root / f'class/powercap/{zone}/max_energy_range_uj', 262143328850)
    write(root / 'class/powercap/intel-rapl/enabled', 1)


def test_rapl_counts_packages_and_memory_once(tmp_path):
    rapl_tree(
        tmp_path,
        {
            'intel-rapl:0': ('package-0', 1_000_000),
            'intel-rapl:0:0': ('core', 400_000),
            'intel-rapl:0:1': ('dram', 200_000),
            'intel-rapl:1': ('package-1', 500_000),
            'intel-rapl:1:0': ('core', 400_000),
            'intel-rapl:2': ('psys', 9_000_000),
        },
    )
    meter = RaplMeter(tmp_path)
    assert counted(meter.rails) == {'package-0', 'package-1', 'dram-0'}
    assert {rail.name for rail in meter.rails} >= {'core-0', 'core-1'}
    write(tmp_path / 'class/powercap/intel-rapl:0/energy_uj', 3_500_000)
    write(tmp_path / 'class/powercap/intel-rapl:0:1/energy_uj', 700_000)
    reading = meter.read()
    assert reading.joules['package-0'] == pytest.approx(2.5)
    assert meter.total_j(reading) == pytest.approx(3.0)


def test_rapl_goes_on_when_its_counter_wraps(tmp_path):
    rapl_tree(tmp_path, {'intel-rapl:0': ('package-0', 262143328850 - 1_000_000)})
    meter = RaplMeter(tmp_path)
    write(tmp_path / 'class/powercap/intel-rapl:0/energy_uj', 2_000_000)
    assert meter.read().joules['package-0'] == pytest.approx(3.0)
    write(tmp_path / 'class/powercap/intel-rapl:0/energy_uj', 2_500_000)
    assert meter.read().joules['package-0'] == pytest.approx(3.5)


def test_rapl_says_what_is_missing_or_broken(tmp_path):
    with pytest.raises(MeterUnavailableError, match='no RAPL counters'):
        RaplMeter(tmp_path)
    rapl_tree(tmp_path, {'intel-rapl:0': ('package-0', 'n/a')})
    with pytest.raises(MeterUnavailableError, match="'n/a'"):
        RaplMeter(tmp_path)


def test_rapl_that_vanishes_is_an_error(tmp_path):
    rapl_tree(tmp_path, {'intel-rapl:0': ('package-0', 1)})
    meter = RaplMeter(tmp_path)
    (tmp_path / 'class/powercap/intel-rapl:0/energy_uj').unlink()
    with pytest.raises(MeterError, match='energy_uj'):
        meter.read()


class NvmlDouble:
    """The five calls of pynvml that the meter uses, for two cards of which one has a counter."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.millijoules = 5000
        self.open = 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, number):
        return number

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if handle == 0:
            raise self.NVMLError('Not Supported')
        return self.millijoules


def test_nvml_counts_the_cards_that_have_a_counter():
    nvml = NvmlDouble()
    meter = NvmlMeter(nvml)
    nvml.millijoules += 2500
    assert meter.read().joules == {'gpu1': 2.5}
    meter.close()
    meter.close()
    assert nvml.open == 0


def test_nvml_without_a_driver_says_so():
    pynvml = pytest.importorskip('pynvml')
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(MeterUnavailableError, match='NVML does not start'):
            NvmlMeter()
    else:
        pynvml.nvmlShutdown()
        pytest.skip('this machine has an NVIDIA driver')


class JtopDouble:
    def __init__(self, rails):
        self.power = {'rail': {name: {'power': watts} for name, watts in rails.items()}}

    def start(self):
        if not self.power['rail']:
            return
        if 'broken' in self.power['rail']:
            raise RuntimeError('The jtop.service is not active')

    def ok(self):
        return True

    def close(self):
        self.power = {'rail': {}}


def test_jtop_gives_milliwatts_per_rail():
    meter = JtopMeter(lambda: JtopDouble({'VDD_IN': 7000, 'VDD_CPU_GPU_CV': 2000}))
    first = meter.read()
    threading.Event().wait(0.05)
    assert watts_between(first, meter.read()) == pytest.approx({'VDD_IN': 7, 'VDD_CPU_GPU_CV': 2})
    assert counted(meter.rails) == {'VDD_IN'}
    meter.close()


@pytest.mark.parametrize(
    ('rails', 'reason'), [({'broken': 1}, 'not active'), ({}, 'no power rails')]
)
def test_jtop_says_why_it_cannot_be_used(rails, reason):
    with pytest.raises(MeterUnavailableError, match=reason):
        JtopMeter(lambda: JtopDouble(rails))


def test_watts_of_no_time_are_unknown():
    reading = Reading(1.0, {'a': 1.0})
    assert watts_between(reading, reading) == {}


def test_detection_prefers_the_board_and_explains_the_rest(tmp_path):
    legacy_tree(tmp_path, LEGACY['xavier_nx'])
    rapl_tree(tmp_path, {'intel-rapl:0': ('package-0', 1)})
    meter = detection.open_meter(sysfs=tmp_path)
    assert meter.name == ina3221.NAME
    meter.close()
    found = {item.name: item for item in detection.find_meters(tmp_path)}
    assert set(found) == set(detection.METERS)
    for item in found.values():
        assert (item.meter is None) == bool(item.reason)
        if item.meter is not None:
            item.meter.close()
    assert found['rapl'].meter is not None


def test_a_pc_is_read_by_the_meters_of_its_parts(tmp_path):
    rapl_tree(tmp_path, {'intel-rapl:0': ('package-0', 0)})
    rapl, nvml = RaplMeter(tmp_path), NvmlDouble()
    meter = detection.CombinedMeter(NvmlMeter(nvml), rapl)
    write(tmp_path / 'class/powercap/intel-rapl:0/energy_uj', 4_000_000)
    nvml.millijoules += 6000
    assert meter.name == 'nvml+rapl'
    assert meter.total_j(meter.read()) == pytest.approx(10.0)
    meter.close()
    assert nvml.open == 0


def test_no_meter_at_all_lists_every_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(
        detection, '_PART_METERS', ('rapl',)
    )  # a test machine may have a real graphics card
    with pytest.raises(MeterUnavailableError, match=r'no INA3221.*jtop.*no RAPL'):
        detection.open_meter(sysfs=tmp_path)


def test_unknown_meters_are_refused_by_name(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'ina3221'"):
        detection.open_meter('ina3222', tmp_path)


def test_temperature_is_that_of_the_hottest_zone(tmp_path):
    assert math.isnan(temperature_c(tmp_path))
    write(tmp_path / 'class/thermal/thermal_zone0/temp', 41500)
    write(tmp_path / 'class/thermal/thermal_zone1/temp', 53250)
    write(tmp_path / 'class/thermal/thermal_zone2/temp', 'off')
    assert temperature_c(tmp_path) == pytest.approx(53.25)


def test_memory_share_counts_what_is_not_available(tmp_path):
    assert math.isnan(memory_share(tmp_path))
    write(tmp_path / 'meminfo', 'MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 250 kB')
    assert memory_share(tmp_path) == pytest.approx(0.75)

"""Energy, emulation and measured links of real device nodes, switched while frames flow."""

import math
import time

import pytest
import yaml

pytest.importorskip('lapdtr_ros.msg')

from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import BatteryState

from lapdtr_ros import qos, topics
from lapdtr_ros.bringup import (
    ProcessGroup,
    device_process,
    fleet_processes,
    planner_process,
    source_process,
)
from lapdtr_ros.datasets.noise import write_noise_scene
from lapdtr_ros.msg import DeviceTelemetry, FrameTrace
from lapdtr_ros.scenario import load_scenario

STREAM = 'near/camera0'


def write_scenario(folder, **execution):
    write_noise_scene(folder / 'scene', frames=3)
    content = {
        'name': 'test',
        'model': {'name': 'test_vit', 'weights': 'random:3'},
        'devices': {
            'near': {'class': 'raspberry_pi_4', 'battery_wh': 1.0, 'soc': 0.9},
            'far': {'class': 'raspberry_pi_4'},
        },
        'links': [{'between': ['near', 'far'], 'class': 'wifi5'}],
        'streams': {
            STREAM: {'source': 'near', 'dataset': 'scene', 'rate_hz': 50.0, 'frames': 100000}
        },
        'requirements': {'weights': {'energy': 0, 'period': 1}, 'pictures_stay': True},
        'execution': {'max_in_flight': 2, 'frame_timeout_s': 10.0, **execution},
    }
    path = folder / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


def set_parameters(peer, node, **values):
    client = peer.node.create_client(SetParameters, f'{node}/set_parameters')
    peer.wait(client.service_is_ready)
    request = SetParameters.Request(
        parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
    )
    future = client.call_async(request)
    peer.wait(future.done)
    return future.result().results


def newest(messages):
    return messages[-1] if messages else DeviceTelemetry()


def test_an_emulated_fleet_tells_energy_pace_and_links_and_is_switched_at_run_time(peer, tmp_path):
    path = write_scenario(tmp_path, emulate=True, time_scale=0.1)
    near = peer.collect(DeviceTelemetry, topics.telemetry('', 'near'), qos.telemetry())
    traces = peer.collect(FrameTrace, topics.frame_traces(''), qos.traces())
    specs = fleet_processes(load_scenario(path))
    with ProcessGroup(specs, tmp_path / 'logs'):
        peer.wait(lambda: len(traces) >= 12, 90.0)
        peer.wait(lambda: newest(near).link_targets == ['far'])
        first = newest(near)
        assert first.energy_source == DeviceTelemetry.EMULATED
        assert list(first.rails) == [f'{name} (modelled)' for name in ('idle', 'compute', 'radio')]
        assert sum(first.rail_power_w) == pytest.approx(first.power_w, rel=1e-3)
        assert first.compute_j > 0.0
        assert first.radio_j > 0.0
        assert first.energy_j > first.compute_j + first.radio_j
        assert first.soc == pytest.approx(0.9 - first.energy_j / first.battery_j, abs=2e-3)
        assert first.unit_time_ratio == pytest.approx(1.0, abs=0.3)
        assert 0.0 < first.memory_share < 1.0
        assert math.isnan(first.temperature_c)
        # Slow motion: 77 Mbit/s and 2 ms of the class within what Python and a busy machine add.
        figures = [first.link_bytes_per_s[0] / 9.6e6, first.link_delay_s[0] / 2e-3]
        assert any(0.3 < figure < 3.0 for figure in figures)

        assert set_parameters(peer, 'near/device', emulated_soc=0.25)[0].successful
        peer.wait(lambda: newest(near).soc < 0.26)
        assert newest(near).soc == pytest.approx(0.25, abs=0.01)
        assert set_parameters(peer, 'near/device', compute_slowdown=3.0)[0].successful
        peer.wait(lambda: newest(near).unit_time_ratio > 2.5)
        assert not set_parameters(peer, 'near/device', compute_slowdown=0.5)[0].successful
        assert not set_parameters(peer, 'near/device', emulated_soc=1.5)[0].successful
        assert set_parameters(peer, 'near/device', emulate=False)[0].successful
        peer.wait(lambda: newest(near).energy_source == DeviceTelemetry.MODELLED)


def test_a_slow_link_shows_in_telemetry_without_emulation(peer, tmp_path):
    path = write_scenario(tmp_path)
    near = peer.collect(DeviceTelemetry, topics.telemetry('', 'near'), qos.telemetry())
    traces = peer.collect(FrameTrace, topics.frame_traces(''), qos.traces())
    specs = [device_process(path, '', name) for name in ('near', 'far')]
    specs += [planner_process(path, ''), source_process(path, '', STREAM)]
    with ProcessGroup(specs, tmp_path / 'logs'):
        peer.wait(lambda: len(traces) >= 3 and near, 90.0)
        assert newest(near).energy_source == DeviceTelemetry.MODELLED
        assert not newest(near).link_targets
        results = set_parameters(peer, 'near/device', link_bytes_per_s=1e6, link_delay_s=0.05)
        assert all(result.successful for result in results)
        count = len(traces)
        peer.wait(lambda: len(traces) >= count + 10)
        peer.wait(lambda: newest(near).link_targets == ['far'])
        assert traces[-1].latency_s > 0.05


def test_a_battery_of_the_vehicle_replaces_the_modelled_one(peer, tmp_path):
    path = write_scenario(tmp_path)
    near = peer.collect(DeviceTelemetry, topics.telemetry('', 'near'), qos.telemetry())
    spec = device_process(path, '', 'near')
    spec.parameters.update({'battery_topic': '/bms', 'meter': 'battery_state'})
    publisher = peer.node.create_publisher(BatteryState, '/bms', 10)
    state = BatteryState(
        voltage=12.0,
        current=-2.0,
        charge=math.nan,
        capacity=math.nan,
        design_capacity=10.0,
        percentage=0.6,
        present=True,
    )

    def heard():
        publisher.publish(state)
        time.sleep(0.05)
        return newest(near).power_w > 0.0

    with ProcessGroup([spec], tmp_path / 'logs'):
        peer.wait(lambda: bool(near))
        assert math.isnan(near[0].soc)
        peer.wait(heard)
        last = newest(near)
    assert last.energy_source == DeviceTelemetry.MEASURED
    assert last.soc == pytest.approx(0.6)
    assert last.battery_j == pytest.approx(10.0 * 12.0 * 3600)
    assert last.power_w == pytest.approx(24.0, rel=0.3)
    assert list(last.rails) == ['battery']


def test_a_meter_that_is_not_there_stops_the_node_with_a_reason(tmp_path, peer):
    path = write_scenario(tmp_path)
    spec = device_process(path, '', 'near')
    spec.parameters.update({'meter': 'ina3221'})
    with ProcessGroup([spec], tmp_path / 'logs') as group:
        deadline = time.monotonic() + 30.0
        while group.process(spec.name).poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert group.process(spec.name).returncode == 1
    assert 'no INA3221' in (tmp_path / 'logs' / f'{spec.name}.log').read_text()

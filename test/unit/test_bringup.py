import signal
import subprocess
import sys
import time

import pytest

from lapdtr_ros.bringup import ProcessFailedError, ProcessGroup, ProcessSpec, fleet_processes
from lapdtr_ros.planning.classes import config_directory
from lapdtr_ros.scenario import load_scenario


@pytest.fixture
def scenario():
    return load_scenario(config_directory() / 'scenarios' / 'demo.yaml')


def test_a_scenario_becomes_one_process_per_device_a_planner_and_sources(scenario):
    specs = fleet_processes(scenario)
    assert [spec.name for spec in specs] == [
        'device_cav_391',
        'device_cav_400',
        'device_cav_409',
        'device_rsu_1',
        'planner',
        'fusion',
        *(f'source_cav_{agent}_camera{n}' for agent in (391, 400, 409) for n in (0, 3)),
    ]
    namespaces = {spec.name: spec.namespace for spec in specs}
    assert namespaces['planner'] == namespaces['fusion'] == '/'
    assert namespaces['source_cav_391_camera0'] == '/cav_391/camera0'


def test_a_fleet_namespace_goes_before_every_name(scenario):
    assert {spec.namespace.split('/')[1] for spec in fleet_processes(scenario, 'north')} == {
        'north'
    }
    assert all(spec.parameters['fleet'] == 'north' for spec in fleet_processes(scenario, 'north'))


def test_the_sink_and_the_fusion_are_waited_for(scenario):
    specs = {spec.name: spec.parameters for spec in fleet_processes(scenario, sinks=1)}
    assert specs['device_cav_391']['result_listeners'] == 3
    assert specs['source_cav_391_camera0']['trace_listeners'] == 2


def test_parameters_are_passed_as_ros_arguments():
    spec = ProcessSpec('x', 'device', '/cav_0', {'device': 'cav_0', 'autostart': False, 'n': 3})
    assert spec.command() == [
        sys.executable, '-m', 'lapdtr_ros.nodes.device', '--ros-args', '-r', '__ns:=/cav_0',
        '-p', 'device:=cav_0', '-p', 'autostart:=false', '-p', 'n:=3',
    ]  # fmt: skip


class Script(ProcessSpec):
    """A process that runs a piece of Python instead of a node."""

    def command(self):
        return [sys.executable, '-c', self.executable]


def wait_for(path, text):
    deadline = time.monotonic() + 20
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_ends_early_is_reported_with_the_end_of_its_log(tmp_path):
    spec = Script('bad', 'import sys; print("weights are broken"); sys.exit(3)', '/')
    with ProcessGroup([spec], tmp_path) as group:
        group.process('bad').wait(20)
        with pytest.raises(ProcessFailedError, match=r'(?s)bad ended with code 3.*are broken'):
            group.check()


def test_a_process_that_ignores_the_interrupt_is_killed(tmp_path):
    code = (
        'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); '
        'print("up", flush=True); time.sleep(60)'
    )
    group = ProcessGroup([Script('deaf', code, '/')], tmp_path)
    with group:
        wait_for(tmp_path / 'deaf.log', 'up')
        assert group.stop(patience_s=0.3) == {'deaf': -signal.SIGKILL}


def test_leaving_the_group_ends_its_processes(tmp_path):
    spec = Script('sleeper', 'import time; print("up", flush=True); time.sleep(60)', '/')
    with ProcessGroup([spec], tmp_path) as group:
        wait_for(tmp_path / 'sleeper.log', 'up')
        process = group.process('sleeper')
    assert process.poll() is not None


def test_the_command_explains_itself_and_its_errors(tmp_path):
    def run(*arguments):
        command = [sys.executable, '-m', 'lapdtr_ros.cli', *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert 'plan' in run('--help').stdout
    missing = run('plan', str(tmp_path / 'no.yaml'))
    assert missing.returncode == 1
    assert 'no.yaml' in missing.stderr
    assert 'Traceback' not in missing.stderr
    assert run('plann').returncode == 2
    plan = run('plan', str(config_directory() / 'scenarios' / 'demo.yaml'))
    assert plan.returncode == 0
    assert 'chosen' in plan.stdout
    assert 'cav_391' in plan.stdout

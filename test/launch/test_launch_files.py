"""The launch files, read by the genuine ``launch`` where it is installed."""

from pathlib import Path

import pytest

pytest.importorskip('launch')
pytest.importorskip('launch_ros')

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.launch_description_sources import get_launch_description_from_python_launch_file

from lapdtr_ros.bringup import fleet_processes
from lapdtr_ros.launching import _device_class
from lapdtr_ros.planning.classes import config_directory
from lapdtr_ros.scenario import load_scenario

LAUNCH = Path(__file__).parents[2] / 'launch'
DEMO = config_directory() / 'scenarios' / 'demo.yaml'


def description(name):
    return get_launch_description_from_python_launch_file(str(LAUNCH / f'{name}.launch.py'))


def actions(name, **arguments):
    context = LaunchContext()
    found = []
    for entity in description(name).entities:
        if isinstance(entity, DeclareLaunchArgument):
            given = arguments.get(entity.name)
            if given is not None:
                context.launch_configurations[entity.name] = given
            else:
                entity.execute(context)
        elif isinstance(entity, OpaqueFunction):
            found += entity.execute(context)
    return found


@pytest.mark.parametrize('name', ['fleet', 'device', 'planner', 'fusion', 'recorder', 'carla'])
def test_every_argument_is_described(name):
    declared = [e for e in description(name).entities if isinstance(e, DeclareLaunchArgument)]
    everywhere = {'scenario', 'fleet', 'params_file', 'log_level', 'use_sim_time', 'respawn'}
    assert everywhere <= {d.name for d in declared}
    assert all(argument.description for argument in declared)


def test_fleet_starts_what_the_command_starts():
    nodes = actions('fleet', scenario=str(DEMO))
    expected = [spec.executable for spec in fleet_processes(load_scenario(DEMO))]
    assert [node.node_executable for node in nodes] == expected
    assert {node.node_package for node in nodes} == {'lapdtr_ros'}


def test_device_planner_and_fusion_start_one_node_each():
    (device,) = actions('device', scenario=str(DEMO), vehicle='rsu_1')
    (planner,) = actions('planner', scenario=str(DEMO))
    (fusion,) = actions('fusion', scenario=str(DEMO))
    nodes = (device, planner, fusion)
    assert [node.node_executable for node in nodes] == ['device', 'planner', 'fusion']


def test_a_vehicle_brings_the_sources_of_its_cameras():
    nodes = actions('device', scenario=str(DEMO), vehicle='cav_391')
    streams = [n for n, s in load_scenario(DEMO).file.streams.items() if s.source == 'cav_391']
    assert [node.node_executable for node in nodes] == ['device', *('source' for _ in streams)]


@pytest.mark.parametrize(
    ('given', 'expected'),
    [('orin_nano', 'jetson_orin_nano'), ('vehicle_pc', 'vehicle_pc'), ('', ''), ('nano', 'nano')],
)
def test_a_device_class_may_be_named_without_its_maker(given, expected):
    assert _device_class(given) == expected


def test_a_replay_evaluates_the_bag_through_the_nodes():
    given = {'bag': 'recording', 'model': 'm+detection', 'weights': 'w.safetensors'}
    (process,) = actions('replay', **given)
    texts = [part.text for words in process.cmd[1:] for part in words]
    assert texts[:3] == ['evaluate', 'recording', '--model=m+detection']
    assert '--live' in texts

"""Launch actions built on `lapdtr_ros.bringup`; the files in ``launch/`` only name them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.substitutions import ExecutableInPackage

from .bringup import (
    ProcessSpec,
    carla_bridge_process,
    device_process,
    evaluator_process,
    fleet_processes,
    fusion_process,
    planner_process,
    recorder_process,
    source_process,
)
from .planning.classes import config_directory
from .scenario import load_scenario

_ARGUMENTS = {
    'scenario': 'Path of the scenario YAML that all nodes of the fleet share',
    'fleet': 'Namespace of the fleet, empty for none',
    'params_file': 'YAML of ROS parameters for the nodes, e.g. qos_overrides; empty for none',
    'log_level': 'debug, info, warn, error or fatal',
    'use_sim_time': 'Take the time from /clock',
    'autostart': 'Configure and activate the nodes without waiting for a lifecycle manager',
    'respawn': 'Start a node again two seconds after it died',
}
# A busy board needs more than launch's five seconds to end a process that holds torch.
_PATIENCE_S = '15'
_RESPAWN_DELAY_S = 2.0
_DEFAULTS = {
    'scenario': str(config_directory() / 'scenarios' / 'vehicles.yaml'),
    'fleet': '',
    'params_file': '',
    'log_level': 'info',
    'use_sim_time': 'false',
    'autostart': 'true',
    'respawn': 'false',
}


def fleet_description() -> LaunchDescription:
    """All processes of a scenario on this machine."""

    def specs(get: Callable[[str], str]) -> Iterable[ProcessSpec]:
        return fleet_processes(load_scenario(get('scenario')), get('fleet'), int(get('frames')))

    return _description(specs, {'frames': ('0', 'Frames per stream; 0: as the scenario says')})


def device_description() -> LaunchDescription:
    """The device node of one device, for its vehicle's computer."""

    def specs(get: Callable[[str], str]) -> Iterable[ProcessSpec]:
        scenario = load_scenario(get('scenario'))
        path, fleet, vehicle = scenario.path, get('fleet'), get('vehicle')
        hearing = 1 if scenario.file.fusion else 0
        mine = [name for name, s in scenario.file.streams.items() if s.source == vehicle]
        cameras = mine if get('cameras') == 'true' else []
        return [
            device_process(path, fleet, vehicle, hearing, _device_class(get('device'))),
            *(source_process(path, fleet, name, hearing) for name in cameras),
        ]

    return _description(
        specs,
        {
            'vehicle': (None, 'Name of this computer in the scenario, e.g. cav_0'),
            'device': ('', 'Its hardware class, e.g. orin_nano; empty: as the scenario says'),
            'cameras': ('true', 'Also start the sources of the cameras of this vehicle'),
        },
    )


def _device_class(text: str) -> str:
    """Full name of a device class; ``orin_nano`` stands for ``jetson_orin_nano``."""
    names = [path.stem for path in (config_directory() / 'devices').glob('*.yaml')]
    longer = [name for name in names if name.endswith(f'_{text}')]
    return longer[0] if text and text not in names and len(longer) == 1 else text


def planner_description() -> LaunchDescription:
    """The planner node."""

    def specs(get: Callable[[str], str]) -> Iterable[ProcessSpec]:
        return [planner_process(Path(get('scenario')), get('fleet'))]

    return _description(specs, {})


def fusion_description() -> LaunchDescription:
    """The fusion node, for the computer that needs the detections."""

    def specs(get: Callable[[str], str]) -> Iterable[ProcessSpec]:
        return [fusion_process(Path(get('scenario')), get('fleet'))]

    return _description(specs, {})


def recorder_description() -> LaunchDescription:
    """The recorder node, which writes all topics of the fleet into a new rosbag2 directory."""

    def specs(get: Callable[[str], str]) -> Iterable[ProcessSpec]:
        return [recorder_process(Path(get('bag')), get('fleet'))]

    return _description(specs, {'bag': (None, 'Directory of the recording; it must not exist')})


def carla_description() -> LaunchDescription:
    """The CARLA bridge, the fleet of a scenario and the evaluator; all end with the bridge."""

    def specs(get: Callable[[str], str]) -> Iterable[ProcessSpec]:
        scenario, fleet = load_scenario(get('scenario')), get('fleet')
        bridge = carla_bridge_process(
            Path(get('cosimulation')),
            fleet,
            host=get('host'),
            port=int(get('port')),
            ticks=int(get('ticks')),
            dump=get('dump'),
        )
        return [
            bridge,
            *fleet_processes(scenario, fleet),
            evaluator_process(scenario.path, fleet, get('out')),
        ]

    extra: dict[str, tuple[str | None, str]] = {
        'cosimulation': (
            str(config_directory() / 'carla' / 'three_vehicles.yaml'),
            'YAML of the co-simulation, ours or a scenario of OpenCDA',
        ),
        'host': ('', 'Host of the CARLA server; empty: as the YAML says'),
        'port': ('0', 'Port of the CARLA server; 0: as the YAML says'),
        'ticks': ('0', 'End after so many ticks; 0: run until Ctrl-C'),
        'dump': ('', 'Directory for an OPV2V copy of everything; empty: none'),
        'out': ('', 'JSON file for the accuracy at the end; empty: only tell'),
    }
    return _description(specs, extra, ends_with='carla_bridge')


def replay_description() -> LaunchDescription:
    """A recording through the live nodes to accuracy, latency, energy, utilisation and bytes."""
    arguments = {
        'bag': (None, 'Directory of the recording'),
        'model': (None, 'Name of a model with the head detection'),
        'weights': (None, 'Its weights, e.g. a .safetensors file'),
        'scenario': ('', 'Scenario whose devices and links to use; empty: one board per vehicle'),
        'out': ('out/replay', 'Where to write the figures and reports'),
    }

    def actions(context: LaunchContext) -> list[ExecuteProcess]:
        given = {name: LaunchConfiguration(name).perform(context) for name in arguments}
        fleet = ['--plan', given['scenario']] if given['scenario'] else ['--live']
        options = [f'--{name}={given[name]}' for name in ('model', 'weights', 'out')]
        command = ExecutableInPackage('lapdtr', 'lapdtr_ros')
        evaluate = [command, 'evaluate', given['bag'], *options, *fleet]
        return [ExecuteProcess(cmd=evaluate, output='screen', on_exit=Shutdown())]

    return LaunchDescription([*_declared(arguments), OpaqueFunction(function=actions)])


def _description(
    specs: Callable[[Callable[[str], str]], Iterable[ProcessSpec]],
    extra: dict[str, tuple[str | None, str]],
    ends_with: str = '',
) -> LaunchDescription:
    arguments = {name: (_DEFAULTS.get(name), text) for name, text in _ARGUMENTS.items()} | extra

    def actions(context: LaunchContext) -> list[Node]:
        def get(name: str) -> str:
            return LaunchConfiguration(name).perform(context)

        return [_node(spec, get, ends_all=spec.name == ends_with) for spec in specs(get)]

    return LaunchDescription([*_declared(arguments), OpaqueFunction(function=actions)])


def _declared(arguments: dict[str, tuple[str | None, str]]) -> list[DeclareLaunchArgument]:
    """Launch arguments from (default, description) by name; None is no default."""
    return [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in arguments.items()
    ]


def _node(spec: ProcessSpec, get: Callable[[str], str], ends_all: bool) -> Node:
    switches = {name: get(name) == 'true' for name in ('use_sim_time', 'autostart')}
    return Node(
        package='lapdtr_ros',
        executable=spec.executable,
        namespace=spec.namespace,
        # A user's file comes last, so that it wins.
        parameters=[{**spec.parameters, **switches}, *filter(None, [get('params_file')])],
        arguments=['--ros-args', '--log-level', get('log_level')],
        output='screen',
        respawn=get('respawn') == 'true' and not ends_all,
        on_exit=Shutdown() if ends_all else None,
        respawn_delay=_RESPAWN_DELAY_S,
        sigterm_timeout=_PATIENCE_S,
        sigkill_timeout=_PATIENCE_S,
    )

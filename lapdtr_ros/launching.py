"""Launch actions built on `lapdtr_ros.bringup`; the files in ``launch/`` only name them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from .bringup import (
    ProcessSpec,
    device_process,
    fleet_processes,
    fusion_process,
    planner_process,
)
from .scenario import load_scenario

_ARGUMENTS = {
    'scenario': 'Path of the scenario YAML that all nodes of the fleet share',
    'fleet': 'Namespace of the fleet, empty for none',
    'log_level': 'debug, info, warn, error or fatal',
    'use_sim_time': 'Take the time from /clock',
}
# A busy board needs more than launch's five seconds to end a process that holds torch.
_PATIENCE_S = '15'
_DEFAULTS = {'fleet': '', 'log_level': 'info', 'use_sim_time': 'false'}


def fleet_description() -> LaunchDescription:
    """All processes of a scenario on this machine."""

    def specs(get: Callable[[str], str]) -> Iterable[ProcessSpec]:
        return fleet_processes(load_scenario(get('scenario')), get('fleet'), int(get('frames')))

    return _description(specs, {'frames': ('0', 'Frames per stream; 0: as the scenario says')})


def device_description() -> LaunchDescription:
    """The device node of one device, for its vehicle's computer."""

    def specs(get: Callable[[str], str]) -> Iterable[ProcessSpec]:
        scenario = load_scenario(get('scenario'))
        hearing = 1 if scenario.file.fusion else 0
        return [device_process(scenario.path, get('fleet'), get('device'), hearing)]

    return _description(specs, {'device': (None, 'Name of the device in the scenario')})


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


def _description(
    specs: Callable[[Callable[[str], str]], Iterable[ProcessSpec]],
    extra: dict[str, tuple[str | None, str]],
) -> LaunchDescription:
    arguments = {name: (_DEFAULTS.get(name), text) for name, text in _ARGUMENTS.items()} | extra

    def actions(context: LaunchContext) -> list[Node]:
        def get(name: str) -> str:
            return LaunchConfiguration(name).perform(context)

        return [_node(spec, get('log_level'), get('use_sim_time')) for spec in specs(get)]

    declared = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in arguments.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=actions)])


def _node(spec: ProcessSpec, log_level: str, use_sim_time: str) -> Node:
    return Node(
        package='lapdtr_ros',
        executable=spec.executable,
        namespace=spec.namespace,
        parameters=[{**spec.parameters, 'use_sim_time': use_sim_time == 'true'}],
        arguments=['--ros-args', '--log-level', log_level],
        output='screen',
        sigterm_timeout=_PATIENCE_S,
        sigkill_timeout=_PATIENCE_S,
    )

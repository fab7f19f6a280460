"""Writer of OPV2V directories, the counterpart of `lapdtr_ros.datasets.opv2v`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from lapdtr_ros.datasets.opv2v import PROTOCOL_NAME, AgentFrame, CameraModel, VehicleLabel

_PNG_COMPRESSION = 1  # level 6 takes four times as long for pictures 15 % smaller


def write_agent_frame(
    agent_dir: Path, frame: AgentFrame, images: Mapping[int, np.ndarray] | None = None
) -> None:
    """Write one agent at one timestamp as other OPV2V tools expect it.

    The YAML file comes last and at once: where it exists, the frame is complete.

    Args:
        agent_dir: folder of the agent, created when missing.
        frame: what to write; `image_paths` is not used.
        images: camera number to uint8 RGB of shape (height, width, 3).
    """
    agent_dir.mkdir(parents=True, exist_ok=True)
    for number, image in (images or {}).items():
        path = agent_dir / f'{frame.timestamp}_camera{number}.png'
        Image.fromarray(image).save(path, compress_level=_PNG_COMPRESSION)
    _write_yaml(agent_dir / f'{frame.timestamp}.yaml', _frame_content(frame))


def write_data_protocol(scenario_dir: Path, protocol: Mapping[str, Any]) -> None:
    """Write the simulation set-up of a scenario.

    Args:
        scenario_dir: folder of the scenario, created when missing.
        protocol: plain numbers, texts, lists and mappings.
    """
    scenario_dir.mkdir(parents=True, exist_ok=True)
    _write_yaml(scenario_dir / PROTOCOL_NAME, protocol)


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f'.{path.name}.partial')
    with partial.open('w', encoding='utf-8') as file:
        yaml.dump(dict(content), file, Dumper=_Dumper, default_flow_style=None)
    os.replace(partial, path)


class _Dumper(yaml.CSafeDumper):
    """The C dumper without anchors, which some readers of OPV2V do not expect."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _frame_content(frame: AgentFrame) -> dict[str, Any]:
    content: dict[str, Any] = {
        f'camera{number}': _camera_content(camera) for number, camera in frame.cameras.items()
    }
    content['ego_speed'] = float(frame.ego_speed)
    content['lidar_pose'] = _floats(frame.lidar_pose)
    content['plan_trajectory'] = [_floats(point) for point in frame.plan_trajectory]
    content['predicted_ego_pos'] = _floats(frame.predicted_ego_pos)
    content['true_ego_pos'] = _floats(frame.true_ego_pos)
    content['vehicles'] = {
        int(number): _vehicle_content(vehicle) for number, vehicle in frame.vehicles.items()
    }
    return content


def _camera_content(camera: CameraModel) -> dict[str, Any]:
    return {
        'cords': _floats(camera.pose),
        'extrinsic': np.asarray(camera.extrinsic, dtype=np.float64).tolist(),
        'intrinsic': np.asarray(camera.intrinsic, dtype=np.float64).tolist(),
    }


def _vehicle_content(vehicle: VehicleLabel) -> dict[str, Any]:
    return {
        'angle': _floats(vehicle.angle),
        'center': _floats(vehicle.center),
        'extent': _floats(vehicle.extent),
        'location': _floats(vehicle.location),
        'speed': float(vehicle.speed),
    }


def _floats(values: tuple[float, ...]) -> list[float]:
    return [float(value) for value in values]

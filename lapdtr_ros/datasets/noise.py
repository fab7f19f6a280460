"""A scene of noise pictures in the OPV2V layout: for measuring transport without rendering."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lapdtr_ros.perception.poses import camera_intrinsic

from .opv2v import AgentFrame, CameraModel
from .opv2v_writer import write_agent_frame, write_data_protocol

AGENT = 641
_STILL = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
_FOV_DEGREES = 100.0


def write_noise_scene(
    path: Path, *, frames: int, size: tuple[int, int] = (240, 320), seed: int = 0
) -> Path:
    """Write one standing vehicle whose front camera sees noise.

    Args:
        path: directory of the scene, created when missing.
        frames: number of pictures.
        size: (height, width) of the pictures.
        seed: of the noise.
    """
    height, width = size
    random = np.random.default_rng(seed)
    camera = CameraModel(_STILL, camera_intrinsic(width, height, _FOV_DEGREES), np.eye(4))
    for index in range(frames):
        frame = AgentFrame(
            timestamp=f'{2 * index:06d}',
            lidar_pose=_STILL,
            true_ego_pos=_STILL,
            predicted_ego_pos=_STILL,
            ego_speed=0.0,
            plan_trajectory=(),
            cameras={0: camera},
            vehicles={},
        )
        picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        write_agent_frame(path / str(AGENT), frame, {0: picture})
    write_data_protocol(path, {'world': {'seed': seed, 'fixed_delta_seconds': 0.05}})
    return path

"""``lapdtr evaluate``: detections of a split model in real nodes equal those made offline."""

import json

import numpy as np
import pytest
import yaml

pytest.importorskip('lapdtr_ros.msg')

from lapdtr_ros import cli
from lapdtr_ros.datasets.opv2v import AgentFrame, CameraModel, VehicleLabel
from lapdtr_ros.datasets.opv2v_writer import write_agent_frame
from lapdtr_ros.datasets.scene import CAMERA_MOUNTS, LIDAR_MOUNT, mounted
from lapdtr_ros.evaluation.run_record import read_record
from lapdtr_ros.evaluation.summary import summarise
from lapdtr_ros.perception.poses import camera_intrinsic, pose_to_matrix

MODEL = 'test_vit@64x96+detection'
STAMPS = ('000069', '000071', '000073')
CAMERAS = {10: (0, 1), 20: (0,)}
CAR = VehicleLabel(1, (12.0, 3.0, 0.0), (0.0, 0.0, 0.75), (2.2, 1.0, 0.75), (0.0, 20.0, 0.0), 0.0)


def view(stamp, agent):
    """A vehicle that moves on with time and sees one car."""
    own = (3.0 * agent + 0.5 * int(stamp[-2:]), 0.0, 0.0, 0.3, 4.0 * agent, -0.2)
    lidar = mounted(own, LIDAR_MOUNT)
    cameras = {}
    for number in CAMERAS[agent]:
        pose = mounted(own, CAMERA_MOUNTS[number])
        extrinsic = np.linalg.inv(pose_to_matrix(pose)) @ pose_to_matrix(lidar)
        cameras[number] = CameraModel(pose, camera_intrinsic(120, 90, 100.0), extrinsic)
    return AgentFrame(stamp, lidar, own, own, 0.0, (), cameras, {1: CAR})


@pytest.fixture
def dataset(tmp_path):
    """Two vehicles of which one has no picture at the second moment."""
    rng = np.random.default_rng(0)
    for agent in CAMERAS:
        for stamp in STAMPS:
            one = view(stamp, agent)
            pictures = {n: rng.integers(0, 255, (90, 120, 3), dtype=np.uint8) for n in one.cameras}
            write_agent_frame(tmp_path / 'data' / 'test' / 'scene' / str(agent), one, pictures)
    (tmp_path / 'data/test/scene/20/000071_camera0.png').unlink()
    return tmp_path / 'data'


@pytest.fixture
def fleet(tmp_path):
    """A fleet on which the highest frame rate needs a split."""
    content = {
        'name': 'two boards',
        'model': {'name': 'test_vit', 'weights': 'random:0'},
        'devices': {'near': {'class': 'raspberry_pi_4'}, 'far': {'class': 'raspberry_pi_4'}},
        'links': [{'between': ['near', 'far'], 'class': 'ethernet'}],
        'streams': {'near/camera0': {'source': 'near', 'image_topic': '/image'}},
        'requirements': {'weights': {'energy': 0, 'period': 1}, 'pictures_stay': True},
    }
    path = tmp_path / 'fleet.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


def test_live_detections_equal_those_made_offline(dataset, fleet, tmp_path):
    out = tmp_path / 'out'
    words = ['--model', MODEL, '--weights', 'random:0', '--plan', str(fleet), '--out', str(out)]
    assert cli.main(['evaluate', str(dataset), *words]) == 0

    document = json.loads((out / 'evaluation.json').read_text())
    live, offline = document['live'], document['offline']['fused']['wbf_noisy_or']
    assert live['equals_offline']
    agreement = live['agreement']['scene']
    assert agreement['moments'] == 3
    assert agreement['live_boxes'] == agreement['offline_boxes'] > 0
    assert agreement['max_abs_diff'] < 1e-4
    assert {k: v for k, v in live['fused'].items() if k != 'protocol'} == {
        k: v for k, v in offline.items() if k != 'protocol'
    }
    assert (live['frames_finished'], live['frames_lost'], live['pictures_refused']) == (8, 0, 1)

    record = read_record(out / 'scene' / 'run.json')
    assert max(len(frame.stages) for frame in record.frames) == 2
    assert record.accuracy.frames == 3
    assert record.equivalence.holds
    metrics = summarise(record).metrics
    assert len(metrics) == 5
    assert all(figure.value is not None for figure in metrics.values())
    assert 'Moment 000069' in (out / 'scene' / 'report.html').read_text()

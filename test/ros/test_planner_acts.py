"""A battery falls below its reserve, later a device dies: work moves and no frame is lost."""

import pytest
import yaml

pytest.importorskip('lapdtr_ros.msg')

from lapdtr_ros.bringup import Intervention, Outage
from lapdtr_ros.commands.run import run_scenario
from lapdtr_ros.datasets.noise import write_noise_scene
from lapdtr_ros.scenario import load_scenario

STREAM = 'weak/camera0'
FRAMES = 120


def write_scenario(folder):
    write_noise_scene(folder / 'scene', frames=6)
    battery = {'battery_wh': 100, 'soc': 0.8, 'reserve_soc': 0.2}
    content = {
        'name': 'acts',
        'model': {'name': 'test_vit', 'weights': 'random:3'},
        'devices': {
            'weak': {'class': 'raspberry_pi_4', **battery},
            'strong': {'class': 'jetson_orin_nano', **battery},
            'other': {'class': 'jetson_tx2', **battery},
        },
        'links': [
            {'between': ['weak', 'strong'], 'class': 'ethernet'},
            {'between': ['weak', 'other'], 'class': 'ethernet'},
            {'between': ['strong', 'other'], 'class': 'ethernet'},
        ],
        'streams': {STREAM: {'source': 'weak', 'dataset': 'scene', 'rate_hz': 10.0}},
        'requirements': {'weights': {'energy': 1}},
        'execution': {'max_in_flight': 4, 'frame_timeout_s': 60.0},
    }
    path = folder / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content))
    return load_scenario(path)


def devices(plan):
    return [stage.device for stage in plan.streams[0].stages]


def test_work_moves_from_a_low_battery_and_from_a_dead_device_and_no_frame_is_lost(tmp_path):
    acts = [
        Intervention(15, 'weak/device', {'emulated_soc': 0.1}),
        Outage(50, 'device_strong', back_s=1.0),
    ]
    record = run_scenario(write_scenario(tmp_path), tmp_path, frames=FRAMES, interventions=acts)

    assert [frame.seq for frame in sorted(record.frames, key=lambda f: f.seq)] == list(
        range(FRAMES)
    )
    assert {frame.outcome for frame in record.frames} == {'finished'}
    first, low, lost, *_ = record.plans
    assert devices(first) == ['weak']
    assert 'battery of weak at 10.0%' in low.reason
    assert devices(low) == ['strong']
    assert 'strong is lost' in lost.reason
    assert 'strong' not in devices(lost)

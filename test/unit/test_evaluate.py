"""``lapdtr evaluate`` offline, on good and bad directories, and the fleets it describes."""

import json
import math
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lapdtr_ros import cli
from lapdtr_ros.commands.evaluate import DetectedScene, EvaluateError, live_scenario
from lapdtr_ros.datasets.opv2v import AgentFrame, CameraModel, VehicleLabel, open_dataset
from lapdtr_ros.datasets.opv2v_writer import write_agent_frame
from lapdtr_ros.datasets.pictures import PictureSequence
from lapdtr_ros.datasets.scene import CAMERA_MOUNTS, LIDAR_MOUNT, mounted
from lapdtr_ros.evaluation.average_precision import EvaluationProtocol
from lapdtr_ros.evaluation.detected import DetectedFrame
from lapdtr_ros.perception.fusion import FusionSettings
from lapdtr_ros.perception.poses import camera_intrinsic, pose_to_matrix
from lapdtr_ros.scenario import ScenarioError, load_scenario

torch.set_num_threads(1)

MODEL = 'test_vit@64x96+detection'
WIDTH, HEIGHT = 120, 90
STAMPS = ('000069', '000071', '000073')
VEHICLES = ((1, (12.0, 3.0)), (2, (40.0, -3.0)))


def view(stamp, x, vehicles, cameras=(0, 1, 2, 3)):
    """An agent at (x, 0) that lists vehicles at the given places."""
    own = (x, 0.0, 0.0, 0.0, 0.0, 0.0)
    lidar = mounted(own, LIDAR_MOUNT)
    eyes = {}
    for number in cameras:
        pose = mounted(own, CAMERA_MOUNTS[number])
        extrinsic = np.linalg.inv(pose_to_matrix(pose)) @ pose_to_matrix(lidar)
        eyes[number] = CameraModel(pose, camera_intrinsic(WIDTH, HEIGHT, 100.0), extrinsic)
    labels = {
        i: VehicleLabel(i, (*place, 0.0), (0.0, 0.0, 0.75), (2.2, 1.0, 0.75), (0.0, 20.0, 0.0), 0.0)
        for i, place in vehicles.items()
    }
    return AgentFrame(stamp, lidar, own, own, 0.0, (), eyes, labels)


def write_scene(root, agents=(10, 20), stamps=STAMPS, vehicles=VEHICLES, cameras=(0, 1)):
    rng = np.random.default_rng(0)
    for place, agent in enumerate(agents):
        for stamp in stamps:
            one = view(stamp, 30.0 * place, dict(vehicles), cameras)
            pictures = {
                n: rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8) for n in one.cameras
            }
            write_agent_frame(root / 'test' / 'scene' / str(agent), one, pictures)
    return root


def evaluate(root, *arguments):
    words = ['evaluate', str(root), '--model', MODEL, '--weights', 'random:0']
    code = cli.main([*words, '--split', 'test', '--out', str(root / 'out'), *arguments])
    path = root / 'out' / 'evaluation.json'
    return code, json.loads(path.read_text())['offline'] if path.exists() else None


def test_offline_figures_of_one_and_of_all_vehicles_by_both_sorts(tmp_path, capsys):
    code, report = evaluate(write_scene(tmp_path))
    assert code == 0
    for kind in ('single', 'fused', 'single_local', 'fused_local'):
        for method in ('nms', 'wbf_max', 'wbf_noisy_or'):
            result = report[kind][method]
            assert all(0.0 <= result[f'ap{t}'] <= 1.0 for t in (30, 50, 70))
            assert (result['frames'], result['ground_truths']) == (3, 6)
            assert result['protocol']['split'].endswith('/test')
    assert report['single_local']['nms']['protocol']['sort'] == 'local'
    told = capsys.readouterr().out
    assert '3 moments, 6 vehicles to find' in told


def test_a_limit_cuts_the_moments(tmp_path):
    assert evaluate(write_scene(tmp_path), '--limit', '2')[1]['fused']['nms']['frames'] == 2


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['--model', 'test_vit'], r'add \+detection'),
        (['--split', 'validate'], "no split 'validate'"),
        (['--limit', '-1'], '--limit is -1'),
        (['--weights', 'nowhere.safetensors'], 'nowhere.safetensors'),
        (['--live', '--plan', 'x.yaml'], 'not allowed with'),
    ],
)
def test_wrong_arguments_are_named(tmp_path, capsys, arguments, text):
    write_scene(tmp_path, agents=(10,), stamps=STAMPS[:1])
    try:
        code, _ = evaluate(tmp_path, *arguments)
    except SystemExit as error:
        code = error.code
    assert code in (1, 2)
    assert re.search(text, capsys.readouterr().err)


# --- Bad input ------------------------------------------------------------------------------------


def agent_folder(root, agent):
    return root / 'test' / 'scene' / str(agent)


def change_yaml(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def test_a_missing_camera_is_left_out_and_the_rest_counts(tmp_path):
    write_scene(tmp_path)
    whole = evaluate(tmp_path)[1]['fused']['nms']
    (agent_folder(tmp_path, 20) / '000071_camera1.png').unlink()
    code, report = evaluate(tmp_path)
    assert code == 0
    assert report['fused']['nms']['frames'] == 3
    assert 0 < report['fused']['nms']['detections'] < whole['detections']


def test_only_moments_that_all_agents_share_are_evaluated(tmp_path):
    write_scene(tmp_path)
    (agent_folder(tmp_path, 20) / '000071.yaml').unlink()
    code, report = evaluate(tmp_path)
    assert (code, report['fused']['nms']['frames']) == (0, 2)


def test_a_roadside_unit_helps_but_never_leads(tmp_path):
    write_scene(tmp_path, agents=(10, -1))
    code, report = evaluate(tmp_path)
    assert code == 0
    assert report['fused']['nms']['detections'] > report['single']['nms']['detections']


def test_scenes_without_vehicles_have_no_accuracy(tmp_path):
    code, report = evaluate(write_scene(tmp_path, vehicles=()))
    assert code == 0
    assert report['fused']['nms']['ap50'] is None
    assert report['fused']['nms']['ground_truths'] == 0


def test_pictures_of_another_size_give_the_same_camera_and_other_shapes_are_left_out(tmp_path):
    write_scene(tmp_path)
    scene = tmp_path / 'test' / 'scene'
    before = PictureSequence(scene, 10, 0, (64, 96))[0]
    path = agent_folder(tmp_path, 10) / '000069_camera0.png'
    Image.open(path).resize((2 * WIDTH, 2 * HEIGHT)).save(path)
    after = PictureSequence(scene, 10, 0, (64, 96))[0]
    np.testing.assert_allclose(after.camera.intrinsic, before.camera.intrinsic)
    whole = evaluate(tmp_path)[1]['single']['nms']['detections']
    Image.open(path).resize((WIDTH, WIDTH)).save(path)
    code, report = evaluate(tmp_path)
    assert code == 0
    assert report['single']['nms']['detections'] < whole


@pytest.mark.parametrize('key', ['lidar_pose', 'true_ego_pos'])
def test_a_pose_without_numbers_stops_with_its_file(tmp_path, capsys, key):
    write_scene(tmp_path)
    path = agent_folder(tmp_path, 20) / '000071.yaml'
    change_yaml(path, lambda content: content[key].__setitem__(4, math.nan))
    code, report = evaluate(tmp_path)
    assert (code, report) == (1, None)
    told = capsys.readouterr().err
    assert '000071.yaml' in told
    assert key in told


def test_a_half_written_yaml_stops_with_its_file(tmp_path, capsys):
    write_scene(tmp_path)
    path = agent_folder(tmp_path, 20) / '000071.yaml'
    path.write_text(path.read_text()[:200])
    assert evaluate(tmp_path)[0] == 1
    assert '000071.yaml' in capsys.readouterr().err


# --- Pictures and fleets --------------------------------------------------------------------------


def test_pictures_carry_their_geometry_and_their_stamps_go_on_when_they_repeat(tmp_path):
    write_scene(tmp_path, agents=(10, -1))
    pictures = PictureSequence(tmp_path / 'test' / 'scene', 10, 1, (64, 96))
    stamps = [pictures[i].stamp_ns for i in range(7)]
    assert np.diff(stamps).tolist() == [100_000_000] * 6
    assert stamps[0] == 3_450_000_000
    one = pictures[4]
    expected = view('000071', 0.0, {}, (1,))
    assert one.lidar_pose == pytest.approx(expected.lidar_pose)
    np.testing.assert_allclose(one.camera.extrinsic, expected.cameras[1].extrinsic, atol=1e-9)
    np.testing.assert_allclose(
        one.camera.intrinsic, expected.cameras[1].resized(96, 64).intrinsic, atol=1e-9
    )
    assert one.frame_id == 'cav_10/camera1'
    roadside = PictureSequence(tmp_path / 'test' / 'scene', -1, 1, (64, 96))
    assert roadside[0].frame_id == 'rsu_1/camera1'


PROTOCOL = EvaluationProtocol('test')


def detected(root):
    scene = open_dataset(root, 'test')[0]
    moments = [
        DetectedFrame({agent.id: scene.frame(agent.id, stamp) for agent in scene.agents}, {})
        for stamp in scene.timestamps
    ]
    return DetectedScene(scene, tuple(moments))


def described(root, template=None):
    settings = FusionSettings('wbf', score_rule='mean')
    content = live_scenario(detected(root), template, MODEL, 'random:0', settings, PROTOCOL)
    path = root / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content))
    return load_scenario(path)


def test_a_fleet_is_made_with_one_board_per_vehicle_and_all_cameras(tmp_path):
    write_scene(tmp_path, agents=(10, 20, -1))
    (agent_folder(tmp_path, 20) / '000071_camera1.png').unlink()
    for stamp in STAMPS:
        (agent_folder(tmp_path, -1) / f'{stamp}_camera0.png').unlink()
    scenario = described(tmp_path)
    assert list(scenario.file.streams) == [
        'cav_10/camera0',
        'cav_10/camera1',
        'cav_20/camera0',
        'cav_20/camera1',
        'rsu_1/camera1',
    ]
    fusion = scenario.file.fusion
    assert (fusion.ego, fusion.method, fusion.score_rule) == ('cav_10', 'wbf', 'mean')
    assert fusion.iou_threshold == 0.3
    assert {stream.frames for stream in scenario.file.streams.values()} == {3}
    on_mains = {n for n, d in scenario.fleet.devices.items() if math.isinf(d.battery_j)}
    assert on_mains == {'rsu_1'}


def write_template(folder, *vehicles):
    content = {
        'name': 'mine',
        'model': {'name': 'test_vit', 'weights': 'random:1'},
        'devices': {
            'edge': {'class': 'edge_server'},
            **{name: {'class': 'jetson_nano', 'soc': 0.5, 'battery_wh': 480} for name in vehicles},
        },
        'links': [{'between': [vehicles[0], 'edge'], 'class': '5g'}],
        'streams': {f'{vehicles[0]}/camera0': {'source': vehicles[0], 'image_topic': '/image'}},
        'requirements': {'max_latency_s': 3.0},
        'solver': 'beam',
        'execution': {'max_in_flight': 1},
    }
    path = folder / 'template.yaml'
    path.write_text(yaml.safe_dump(content))
    return load_scenario(path)


def test_a_given_fleet_keeps_its_devices_and_gets_the_streams_of_the_scene(tmp_path):
    write_scene(tmp_path)
    scenario = described(tmp_path, write_template(tmp_path, 'van', 'cav_10'))
    sources = {stream.agent: stream.source for stream in scenario.file.streams.values()}
    assert sources == {10: 'cav_10', 20: 'van'}
    assert scenario.file.model.name == MODEL
    assert (scenario.file.solver, scenario.file.execution.max_in_flight) == ('beam', 1)
    assert scenario.requirements.max_latency_s == 3.0
    assert scenario.fleet.devices['van'].soc == 0.5


def test_a_given_fleet_with_too_few_devices_is_refused(tmp_path):
    write_scene(tmp_path, agents=(10, 20, 30))
    with pytest.raises(EvaluateError, match='2 devices for the 3 agents'):
        described(tmp_path, write_template(tmp_path, 'van'))


@pytest.mark.parametrize(
    ('fusion', 'text'),
    [
        ({'ego': 'c'}, r"fusion\.ego.*'c'"),
        ({'ego': 'van', 'deadline': 1.0}, "did you mean 'deadline_s'"),
        ({'ego': 'van', 'iou_threshold': 1.5}, 'iou_threshold'),
        ({'ego': 'van', 'score_rule': 'noisy-or'}, 'score_rule.*noisy_or'),
        ({}, r'fusion\.ego: is missing'),
    ],
)
def test_a_fusion_section_that_cannot_work_is_refused(tmp_path, fusion, text):
    path = write_template(tmp_path, 'van').path
    change_yaml(path, lambda content: content.update(fusion=fusion))
    with pytest.raises(ScenarioError, match=text):
        load_scenario(path)

import dataclasses
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

from lapdtr_ros.datasets import generator, render
from lapdtr_ros.datasets.generator import generate, generate_dataset, main
from lapdtr_ros.datasets.opv2v import open_dataset, read_image
from lapdtr_ros.datasets.render import Renderer, far_model, vehicle_model
from lapdtr_ros.datasets.roads import ROADS, build_layout
from lapdtr_ros.datasets.scene import GeneratorError, SceneConfig, build_scene
from lapdtr_ros.datasets.traffic import KINDS
from lapdtr_ros.datasets.visibility import visible
from lapdtr_ros.perception.boxes import Boxes, bev_iou
from lapdtr_ros.perception.geometry import project_to_image, transform_points, vehicle_corners
from lapdtr_ros.perception.poses import pose_to_matrix

CONFIG = SceneConfig(seed=1, road='crossing', frames=3, vehicles=2, width=160, height=120)


@pytest.fixture(scope='module')
def scene():
    return build_scene(CONFIG)


@pytest.fixture(scope='module')
def scenario_dir(tmp_path_factory):
    return generate(CONFIG, tmp_path_factory.mktemp('scenes'), progress=False, workers=1)


def yaml_bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*.yaml')}


# Files


def test_the_reader_opens_what_the_generator_wrote(scenario_dir, scene):
    (scenario,) = open_dataset(scenario_dir.parent)
    assert scenario.timestamps == ('000069', '000071', '000073')
    assert [agent.id for agent in scenario.agents] == [scene.ids[v] for v in scene.connected]
    assert scenario.agents[1].id - scenario.agents[0].id == 9
    for agent in scenario.agents:
        frame = scenario.frame(agent.id, '000071')
        assert set(frame.cameras) == {0, 1, 2, 3}
        assert agent.id not in frame.vehicles
        assert len(frame.vehicles) > 5
        assert len(frame.plan_trajectory) == 10
        for number, camera in frame.cameras.items():
            picture = read_image(frame.image_paths[number])
            assert picture.shape == (120, 160, 3)
            assert camera.size == (160, 120)
            assert picture.std() > 15  # there is something to see
    assert scenario.defects == []


def test_metadata_are_plain_numbers(scenario_dir):
    for path in scenario_dir.rglob('*.yaml'):
        assert '!!' not in path.read_text()
    protocol = yaml.safe_load((scenario_dir / 'data_protocol.yaml').read_text())
    assert {'world', 'vehicle_base', 'scenario', 'carla_traffic_manager'} <= set(protocol)
    assert protocol['generator'] == dataclasses.asdict(CONFIG)
    assert len(protocol['scenario']['single_cav_list']) == 2


def test_the_same_seed_gives_the_same_files(scenario_dir, tmp_path):
    again = generate(CONFIG, tmp_path, progress=False, workers=1)
    assert yaml_bytes(again) == yaml_bytes(scenario_dir)
    for picture in scenario_dir.rglob('*.png'):
        other = again / picture.relative_to(scenario_dir)
        np.testing.assert_array_equal(read_image(picture), read_image(other))


def test_another_seed_gives_another_scene(scene):
    other = build_scene(dataclasses.replace(CONFIG, seed=2))
    assert other.config.name != scene.config.name
    assert other.agent_frame(0, other.connected[0]).true_ego_pos != (
        scene.agent_frame(0, scene.connected[0]).true_ego_pos
    )


def test_several_processes_write_the_same_files(scenario_dir, tmp_path):
    """In a process of its own: workers import the main module again."""
    command = [sys.executable, '-m', 'lapdtr_ros.datasets.generator', '--out', str(tmp_path)]
    options = dataclasses.asdict(CONFIG)
    for name, value in options.items():
        command += [f'--{name}', str(value)]
    done = subprocess.run([*command, '--workers', '2'], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / CONFIG.name)
    assert yaml_bytes(tmp_path / CONFIG.name) == yaml_bytes(scenario_dir)


def test_a_complete_scenario_is_kept_and_another_one_is_not_overwritten(scenario_dir):
    before = {path: path.stat().st_mtime_ns for path in scenario_dir.rglob('*')}
    assert generate(CONFIG, scenario_dir.parent, progress=False, workers=1) == scenario_dir
    assert {path: path.stat().st_mtime_ns for path in scenario_dir.rglob('*')} == before
    with pytest.raises(GeneratorError, match='exists with another configuration'):
        generate(dataclasses.replace(CONFIG, road='curve'), scenario_dir.parent, progress=False)


def test_an_interrupted_scenario_leaves_nothing_and_is_redone(tmp_path, monkeypatch):
    stale = tmp_path / f'.{CONFIG.name}.partial' / '999'
    stale.mkdir(parents=True)
    write = generator.write_agent_frame
    monkeypatch.setattr(generator, 'write_data_protocol', lambda *_: pytest.fail('too late'))

    def interrupt(agent_dir, frame, images):
        write(agent_dir, frame, images)
        assert not (tmp_path / CONFIG.name).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(generator, 'write_agent_frame', interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(CONFIG, tmp_path, progress=False, workers=1)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    done = generate(dataclasses.replace(CONFIG, frames=1), tmp_path, progress=False, workers=1)
    assert list(tmp_path.iterdir()) == [done]
    assert not (done / '999').exists()


def test_a_dataset_has_disjoint_splits_and_is_continued(tmp_path):
    sizes = {'train': 2, 'test': 1}
    options = {'frames_per_scene': 1, 'width': 32, 'height': 24, 'progress': False, 'workers': 1}
    generate_dataset(tmp_path, sizes, **options)
    train, test = open_dataset(tmp_path, 'train'), open_dataset(tmp_path, 'test')
    assert (len(train), len(test)) == (2, 1)
    used = [scenario.protocol()['generator'] for scenario in (*train, *test)]
    assert len({config['seed'] for config in used}) == 3
    assert used[0]['road'] != used[1]['road']
    before = yaml_bytes(train[0].path)
    generate_dataset(tmp_path, {**sizes, 'validate': 1}, **options)
    assert yaml_bytes(train[0].path) == before
    assert len(open_dataset(tmp_path)) == 4


# Pictures


def _projected(frame, camera, label):
    """Rectangle (left, top, right, bottom) around the projected corners; None if one is behind."""
    corners = vehicle_corners([label.location], [label.center], [label.extent], [label.angle])
    lidar = transform_points(np.linalg.inv(pose_to_matrix(frame.lidar_pose)), corners)[0]
    pixels, depth = project_to_image(lidar, camera.extrinsic, camera.intrinsic)
    if (depth < 0.3).any():
        return None
    return np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])


def _overlap(one, two):
    size = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    return size.min() > 0


def _silhouette(scene, vehicle, frame, camera):
    """Rectangle around the projected vertices of the model itself, by the geometry under test."""
    label_pose = scene.vehicle_pose(frame, vehicle)
    vertices = vehicle_model(scene.traffic.kinds[vehicle]).vertices
    world = transform_points(pose_to_matrix(label_pose), vertices)
    local = transform_points(np.linalg.inv(pose_to_matrix(camera.pose)), world)
    pixels, _ = project_to_image(local, np.eye(4), camera.intrinsic)
    return np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])


def _tight(scene, frame_number, agent, number, mask, checked):
    """Compare the mask of every vehicle that nothing can hide with its label; count them."""
    frame = scene.agent_frame(frame_number, agent)
    camera = frame.cameras[number]
    everybody = scene.present_labels(frame_number, agent)
    boxes = {i: _projected(frame, camera, label) for i, label in everybody.items()}
    for label_id in frame.vehicles:
        box = boxes[label_id]
        if box is None or (box[:2] <= 0).any() or (box[2:] >= camera.size).any():
            continue
        others = (other for i, other in boxes.items() if i != label_id and other is not None)
        if (box[2:] - box[:2]).min() < 6 or any(_overlap(box, other) for other in others):
            continue
        vehicle = scene.ids.index(label_id)
        rows, columns = np.nonzero(mask == vehicle)
        assert len(rows), f'vehicle {label_id} is labelled but not there'
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        # The mask is where the geometry says, to the pixel; the box is tight around it.
        expected = _silhouette(scene, vehicle, frame_number, camera)
        np.testing.assert_allclose(seen, expected, atol=1.1)
        assert (seen[:2] >= box[:2] - 1).all()
        assert (seen[2:] <= box[2:] + 1).all()
        assert np.prod(seen[2:] - seen[:2]) > 0.6 * np.prod(box[2:] - box[:2])
        checked[number] += 1


def test_labelled_boxes_are_tight_around_the_rendered_vehicles():
    checked = dict.fromkeys(range(4), 0)
    renderer = Renderer(320, 240, instances=True)
    for seed, road in enumerate(ROADS):
        config = SceneConfig(seed=seed, road=road, frames=20, vehicles=4, width=320, height=240)
        scene = build_scene(config)
        renderer.load(scene)
        for frame_number in (0, 19):
            for agent in scene.connected:
                for number, mask in enumerate(renderer.masks(frame_number, agent)):
                    _tight(scene, frame_number, agent, number, mask, checked)
    renderer.close()
    assert min(checked.values()) >= 3, checked
    assert sum(checked.values()) >= 20, checked


def test_the_own_body_is_never_in_the_picture(scene):
    renderer = Renderer(160, 120, instances=True)
    renderer.load(scene)
    for agent in scene.connected:
        for mask in renderer.masks(0, agent):
            assert (mask != agent).all()
    renderer.close()


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.name)
def test_models_fill_the_box_of_their_kind_exactly(kind):
    length, width, height = kind.size
    # The bumpers of the far model are a few millimetres shorter, far below a pixel there.
    for model, tolerance in ((vehicle_model(kind), 1e-5), (far_model(kind), 0.02)):
        np.testing.assert_allclose(
            model.vertices.min(axis=0), (-length / 2, -width / 2, 0), atol=tolerance
        )
        np.testing.assert_allclose(
            model.vertices.max(axis=0), (length / 2, width / 2, height), atol=tolerance
        )
    red = vehicle_model(kind).vertices[np.array(vehicle_model(kind).parts) == 'lights.red']
    assert red[:, 0].mean() < 0  # brake lights are behind


def test_kinds_stay_within_the_height_that_benchmarks_evaluate():
    assert len(KINDS) >= 6
    assert max(kind.size[2] for kind in KINDS) < 2.9


def test_missing_packages_are_named_with_the_remedy(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None if name == 'smarts' else find(name)
    )
    with pytest.raises(GeneratorError, match=r'smarts are missing; pip install .*--no-deps'):
        render._model_directory()
    monkeypatch.setitem(sys.modules, 'gltf', None)
    render._panda.cache_clear()
    with pytest.raises(GeneratorError, match='gltf is missing; pip install'):
        Renderer(16, 16)
    render._panda.cache_clear()


def test_a_missing_driver_is_named_with_the_remedy(tmp_path):
    """In a process of its own, as drivers are loaded once."""
    command = [sys.executable, '-m', 'lapdtr_ros.datasets.generator', '--out', str(tmp_path)]
    environment = {**os.environ, '__EGL_VENDOR_LIBRARY_FILENAMES': os.devnull}
    done = subprocess.run(
        [*command, '--frames', '1', '--workers', '1'],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 1
    assert 'apt-get install libegl1' in done.stderr
    assert 'Traceback' not in done.stderr


# Roads and traffic


@pytest.mark.parametrize('road', ROADS)
def test_vehicles_keep_to_the_road_and_apart(road):
    for seed in range(3):
        scene = build_scene(SceneConfig(seed=seed, road=road, frames=40, vehicles=3))
        traffic = scene.traffic
        for frame in range(0, 40, 8):
            there = np.flatnonzero(traffic.present[frame])
            boxes = Boxes.from_vectors(scene.boxes(frame)[there])
            overlaps = bev_iou(boxes, boxes)
            np.fill_diagonal(overlaps, 0.0)
            assert overlaps.max() == 0.0, (road, seed, frame)
            assert (scene.layout.clearance(boxes.centers[:, :2]) < 0.0).all()
        moved = np.diff(traffic.states[:, :, :2], axis=0)
        assert np.linalg.norm(moved, axis=2).max() < 1.8  # 0.1 s apart
        speeds = traffic.states[:, list(scene.connected), 3]
        assert np.abs(np.diff(speeds, axis=0)).max() < 0.75


@pytest.mark.parametrize('road', ROADS)
def test_traffic_keeps_to_the_right(road):
    layout = build_layout(road, 120.0, np.random.default_rng(5))
    for route in layout.routes:
        x, y = route.points[10]
        yaw = route.yaw[10]
        centres = np.concatenate([r.centre for r in layout.roads])
        nearest = centres[np.linalg.norm(centres - (x, y), axis=1).argmin()] - (x, y)
        assert -np.sin(yaw) * nearest[0] + np.cos(yaw) * nearest[1] < -1.0  # centre is left


def test_connected_vehicles_move_and_can_cooperate():
    for seed in range(4):
        scene = build_scene(SceneConfig(seed=seed, road='curve', frames=20, vehicles=4))
        places = scene.traffic.states[10, list(scene.connected), :2]
        assert np.linalg.norm(places - places[0], axis=1).max() < 70.0
        assert len(set(scene.ids)) == len(scene.ids)
        names = [str(scene.ids[v]) for v in scene.connected]
        assert names == sorted(names)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('road', 'moon'),
        ('vehicles', 0),
        ('frames', 0),
        ('width', 3),
        ('density', 9.0),
        ('seed', -1),
    ],
)
def test_a_wrong_setting_is_named(field, value):
    with pytest.raises(GeneratorError, match=f'{field}.*{value}.*use'):
        SceneConfig(**{'seed': 0, field: value})


def test_settings_of_a_dataset_are_checked(tmp_path):
    with pytest.raises(GeneratorError, match="split 'trian' is unknown"):
        generate_dataset(tmp_path, {'trian': 1})
    with pytest.raises(GeneratorError, match='seed is 10000'):
        generate_dataset(tmp_path, {'train': 1}, seed=10_000)
    with pytest.raises(GeneratorError, match='workers is 0'):
        generate_dataset(tmp_path, {'train': 1}, workers=0)


def test_the_command_tells_errors_without_a_traceback(tmp_path, capsys):
    assert main(['--out', str(tmp_path), '--frames', '0']) == 1
    assert 'error: frames is 0' in capsys.readouterr().err


# Visibility


def _car(x, y, yaw=0.0, size=(4.5, 2.0, 1.5)):
    return (x, y, size[2] / 2, *size, yaw)


ORIGIN = np.array([0.0, 0.0, 1.9])
WALL = np.array([[10.0, 0.0, 2.0, 0.5, 8.0, 4.0, 0.0]])


def test_a_wall_hides_what_is_behind_it():
    cars = np.array([_car(20, 0), _car(20, 30), _car(5, 0), _car(-20, 0)])
    assert visible(ORIGIN, cars, WALL).tolist() == [False, True, True, True]


def test_half_a_car_is_enough():
    edge = 4.0 / 10.0 * 20.0  # where the shadow of the wall ends
    cars = np.array([_car(20, edge - 2.5), _car(20, edge + 0.5)])
    assert visible(ORIGIN, cars[:1], WALL).tolist() == [False]
    assert visible(ORIGIN, cars[1:], WALL).tolist() == [True]


def test_a_van_hides_a_car_but_a_car_does_not_hide_a_roof():
    nothing = np.empty((0, 7))
    van = _car(8, 0, size=(6.9, 2.4, 2.8))
    assert visible(ORIGIN, np.array([van, _car(16, 0)]), nothing).tolist() == [True, False]
    assert visible(ORIGIN, np.array([_car(8, 0), _car(16, 0)]), nothing).tolist() == [True, True]


def test_nothing_is_seen_beyond_the_range():
    cars = np.array([_car(119, 0), _car(121, 0)])
    assert visible(ORIGIN, cars, np.empty((0, 7))).tolist() == [True, False]


# Scenery


@pytest.mark.parametrize('road', ROADS)
def test_nothing_stands_on_the_road(road):
    scene = build_scene(SceneConfig(seed=3, road=road, frames=1, vehicles=2))
    scenery = scene.scenery
    assert len(scenery.blocks) > 10
    boxes = Boxes.from_vectors([block.vector for block in scenery.blocks])
    corners = boxes.bev_corners().reshape(-1, 2)
    assert scene.layout.clearance(corners).min() > 3.0  # nor on the sidewalk
    places = np.array([(thing.x, thing.y) for thing in (*scenery.trees, *scenery.lamps)])
    assert scene.layout.clearance(places).min() > 0.3
    overlaps = bev_iou(boxes, boxes)
    np.fill_diagonal(overlaps, 0.0)
    assert overlaps.max() == 0.0

import dataclasses
import logging
import math

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lapdtr_ros.datasets.opv2v import (
    AgentFrame,
    CameraModel,
    DatasetError,
    VehicleLabel,
    open_dataset,
    prefetch,
    read_image,
    time_s,
)
from lapdtr_ros.datasets.opv2v_writer import write_agent_frame, write_data_protocol
from lapdtr_ros.datasets.scene import CAMERA_MOUNTS, LIDAR_MOUNT, mounted
from lapdtr_ros.perception.geometry import (
    BOTTOM,
    corners_to_boxes,
    project_to_image,
    transform_points,
    vehicle_corners,
)
from lapdtr_ros.perception.poses import camera_intrinsic, matrix_to_pose, pose_to_matrix

SIZE = (8, 6)


def make_frame(timestamp='000069', size=SIZE, **changes):
    own = (100.0, -50.0, 0.05, 0.0, 30.0, 0.0)
    lidar = mounted(own, LIDAR_MOUNT)
    cameras = {}
    for number, mount in enumerate(CAMERA_MOUNTS):
        pose = mounted(own, mount)
        extrinsic = np.linalg.inv(pose_to_matrix(pose)) @ pose_to_matrix(lidar)
        cameras[number] = CameraModel(pose, camera_intrinsic(*size, 100.0), extrinsic)
    vehicle = VehicleLabel(
        7, (118.0, -36.0, 0.0), (0.02, 0.0, 0.72), (2.45, 1.06, 0.755), (0.0, 75.0, 0.0), 16.5
    )
    frame = AgentFrame(
        timestamp=timestamp,
        lidar_pose=lidar,
        true_ego_pos=own,
        predicted_ego_pos=(100.1, -50.1, 0.05, 0.0, -180.137, 0.0),
        ego_speed=-0.249,
        plan_trajectory=((101.0, -49.5, 21.0),),
        cameras=cameras,
        vehicles={7: vehicle},
    )
    return dataclasses.replace(frame, **changes)


def pictures(seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    return {n: rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8) for n in range(4)}


@pytest.fixture
def scenario_dir(tmp_path):
    """Two agents, three timestamps."""
    path = tmp_path / 'train' / '2021_08_18_19_48_05'
    for agent in ('650', '641'):
        for index, timestamp in enumerate(('000069', '000071', '000073')):
            write_agent_frame(path / agent, make_frame(timestamp), pictures(index))
    write_data_protocol(path, {'world': {'seed': 1}})
    return path


def edit(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


# Poses


@given(
    st.tuples(*[st.floats(-1000, 1000)] * 3, *[st.floats(-179, 179)] * 2, st.floats(-89, 89)),
)
def test_a_pose_survives_the_way_through_its_matrix(pose):
    matrix = pose_to_matrix(pose)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1.0)
    np.testing.assert_allclose(matrix_to_pose(matrix), pose, atol=1e-6)


@pytest.mark.parametrize('pitch', [90.0, -90.0])
def test_a_pose_that_looks_up_or_down_keeps_its_rotation(pitch):
    matrix = pose_to_matrix((1, 2, 3, 20, 40, pitch))
    np.testing.assert_allclose(pose_to_matrix(matrix_to_pose(matrix)), matrix, atol=1e-9)


def test_positive_angles_turn_right_and_lift_the_nose():
    np.testing.assert_allclose(pose_to_matrix((0, 0, 0, 0, 90, 0))[:3, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(pose_to_matrix((0, 0, 0, 0, 0, 90))[:3, 0], [0, 0, 1], atol=1e-12)


def test_a_pose_has_six_numbers():
    with pytest.raises(ValueError, match='got 3'):
        pose_to_matrix((1, 2, 3))


# Geometry of real files


def test_mounts_give_the_sensor_poses_and_extrinsics_of_real_files():
    frame = make_frame(size=(800, 600))
    expected = [
        (102.165064, -48.75, 1.05, 0, 30, 0),
        (99.85, -49.740192, 1.85, 0, 130, 0),
        (100.15, -50.259808, 1.85, 0, -70, 0),
        (98.267949, -51.0, 1.55, 0, -150, 0),
    ]
    np.testing.assert_allclose(frame.lidar_pose, (99.566987, -50.25, 1.95, 0, 30, 0), atol=1e-6)
    for number, pose in enumerate(expected):
        np.testing.assert_allclose(frame.cameras[number].pose, pose, atol=1e-6)
    c, s = 0.173648, 0.984808
    rows = {
        0: [[1, 0, 0, -3], [0, 1, 0, 0], [0, 0, 1, 0.9]],
        1: [[-c, s, 0, -0.208618], [-s, -c, 0, 0.544498], [0, 0, 1, 0.1]],
        2: [[-c, -s, 0, -0.208618], [s, -c, 0, -0.544498], [0, 0, 1, 0.1]],
        3: [[-1, 0, 0, -1.5], [0, -1, 0, 0], [0, 0, 1, 0.4]],
    }
    for number, matrix in rows.items():
        np.testing.assert_allclose(frame.cameras[number].extrinsic[:3], matrix, atol=1e-6)
    assert frame.cameras[0].intrinsic[0, 0] == pytest.approx(335.639852470912)
    assert frame.cameras[0].size == (800, 600)


def test_a_label_lands_where_carla_sees_it(tmp_path):
    write_agent_frame(tmp_path / '1', make_frame(size=(800, 600)), pictures(size=(800, 600)))
    (scenario,) = open_dataset(tmp_path)
    frame = scenario.frame(1, '000069')
    label = frame.vehicles[7]
    np.testing.assert_allclose(label.pose, (118.02, -36.0, 0.72, 0, 75, 0))
    world = vehicle_corners([label.location], [label.center], [label.extent], [label.angle])
    corners = transform_points(np.linalg.inv(pose_to_matrix(frame.lidar_pose)), world)[0]
    box = corners_to_boxes(corners)[0]
    np.testing.assert_allclose(box[:3], (23.1058, 3.1144, -1.23), atol=1e-4)
    assert box[6] == pytest.approx(math.pi / 4)
    bottom = [(25.5877, 4.0972), (24.0887, 5.5963), (20.6238, 2.1315), (22.1229, 0.6324)]
    np.testing.assert_allclose(corners[BOTTOM, :2], bottom, atol=1e-4)
    pixels, _ = project_to_image(corners, frame.cameras[0].extrinsic, frame.cameras[0].intrinsic)
    np.testing.assert_allclose(pixels.min(axis=0), (411.10, 291.91), atol=0.01)
    np.testing.assert_allclose(pixels.max(axis=0), (489.07, 320.66), atol=0.01)
    for number in (1, 2, 3):
        camera = frame.cameras[number]
        pixels, depth = project_to_image(corners, camera.extrinsic, camera.intrinsic)
        inside = (depth > 0) & (pixels >= 0).all(axis=1) & (pixels < (800, 600)).all(axis=1)
        assert not inside.any()


# Reading and writing


def test_what_is_written_is_read_back(tmp_path):
    frame, images = make_frame(), pictures()
    write_agent_frame(tmp_path / '641', frame, images)
    (scenario,) = open_dataset(tmp_path)
    read = scenario.frame(641, '000069')
    for name in ('timestamp', 'lidar_pose', 'true_ego_pos', 'predicted_ego_pos', 'ego_speed'):
        assert getattr(read, name) == getattr(frame, name)
    assert read.plan_trajectory == frame.plan_trajectory
    assert read.vehicles == frame.vehicles
    for number, camera in frame.cameras.items():
        assert read.cameras[number].pose == camera.pose
        np.testing.assert_array_equal(read.cameras[number].intrinsic, camera.intrinsic)
        np.testing.assert_array_equal(read.cameras[number].extrinsic, camera.extrinsic)
        np.testing.assert_array_equal(read_image(read.image_paths[number]), images[number])
    assert scenario.defects == []


def test_files_hold_what_other_tools_expect(scenario_dir):
    text = (scenario_dir / '641' / '000069.yaml').read_text()
    assert '&id' not in text
    assert '!!python' not in text
    content = yaml.safe_load(text)
    keys = {'lidar_pose', 'true_ego_pos', 'predicted_ego_pos', 'ego_speed', 'plan_trajectory'}
    assert keys | {'vehicles', 'camera0', 'camera1', 'camera2', 'camera3'} == set(content)
    assert set(content['camera0']) == {'cords', 'intrinsic', 'extrinsic'}
    assert set(content['vehicles'][7]) == {'location', 'center', 'extent', 'angle', 'speed'}
    assert sorted(path.name for path in scenario_dir.iterdir()) == [
        '641',
        '650',
        'data_protocol.yaml',
    ]


def test_an_empty_scene_is_written_as_an_empty_mapping(tmp_path):
    write_agent_frame(tmp_path / '641', make_frame(vehicles={}, plan_trajectory=()))
    content = yaml.safe_load((tmp_path / '641' / '000069.yaml').read_text())
    assert content['vehicles'] == {}
    assert content['plan_trajectory'] == []


def test_time_counts_ticks():
    assert time_s('000071') - time_s('000069') == pytest.approx(0.1)


@pytest.mark.parametrize('level', [0, 1, 2])
def test_a_root_a_split_and_a_scenario_can_be_opened(scenario_dir, level):
    root = [scenario_dir, scenario_dir.parent, scenario_dir.parent.parent][level]
    (scenario,) = open_dataset(root)
    assert scenario.name == '2021_08_18_19_48_05'
    assert scenario.timestamps == ('000069', '000071', '000073')
    assert scenario.protocol() == {'world': {'seed': 1}}


@pytest.mark.parametrize('asked', ['test_culver_city', 'test_culvercity'])
@pytest.mark.parametrize('there', ['test_culver_city', 'test_culvercity'])
def test_both_spellings_of_culver_city_are_known(tmp_path, asked, there):
    write_agent_frame(tmp_path / there / 'scene' / '641', make_frame())
    assert len(open_dataset(tmp_path, asked)) == 1


def test_a_split_that_is_not_there_is_named(scenario_dir):
    with pytest.raises(DatasetError, match="no split 'test'; it has train"):
        open_dataset(scenario_dir.parent.parent, 'test')
    with pytest.raises(DatasetError, match="split 'tset' is unknown"):
        open_dataset(scenario_dir.parent.parent, 'tset')


def test_the_ego_is_first_in_string_order_and_roadside_units_are_last(tmp_path):
    for agent in ('962', '1007', '-1', '1016'):
        write_agent_frame(tmp_path / agent, make_frame())
    (scenario,) = open_dataset(tmp_path)
    assert [agent.id for agent in scenario.agents] == [1007, 1016, 962, -1]
    assert scenario.ego.id == 1007
    assert scenario.agents[-1].is_roadside_unit


def test_prefetching_gives_every_timestamp_in_order_with_its_pictures(scenario_dir):
    (scenario,) = open_dataset(scenario_dir)
    snapshots = list(prefetch(scenario, cameras=(0, 2), workers=3, ahead=2))
    assert [snapshot.timestamp for snapshot in snapshots] == ['000069', '000071', '000073']
    for index, snapshot in enumerate(snapshots):
        assert list(snapshot.agents) == [641, 650]
        for decoded in snapshot.agents.values():
            assert decoded.frame.timestamp == snapshot.timestamp
            assert set(decoded.images) == {0, 2}
            np.testing.assert_array_equal(decoded.images[2], pictures(index)[2])


def test_prefetching_can_be_left_early_and_fails_at_the_bad_frame(scenario_dir):
    (scenario,) = open_dataset(scenario_dir)
    for _ in prefetch(scenario):
        break
    (scenario_dir / '650' / '000071_camera1.png').write_bytes(b'')
    stream = prefetch(scenario)
    assert next(stream).timestamp == '000069'
    with pytest.raises(DatasetError, match='000071_camera1'):
        next(stream)


# Defects


def test_a_missing_picture_costs_that_camera_only(scenario_dir, caplog):
    (scenario_dir / '641' / '000071_camera3.png').unlink()
    (scenario,) = open_dataset(scenario_dir)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert set(scenario.frame(641, '000071').cameras) == {0, 1, 2}
    assert set(scenario.frame(641, '000069').cameras) == {0, 1, 2, 3}
    assert len(scenario.defects) == 1
    assert '000071_camera3.png' in scenario.defects[0]
    assert caplog.text.count('camera3.png') == 1


def test_timestamps_that_an_agent_lacks_are_skipped(scenario_dir):
    (scenario_dir / '650' / '000071.yaml').unlink()
    (scenario,) = open_dataset(scenario_dir)
    assert scenario.timestamps == ('000069', '000073')
    assert '1 timestamps' in scenario.defects[0]


def test_files_of_a_replay_are_no_timestamps(scenario_dir):
    (scenario_dir / '641' / '000069_additional.yaml').write_text('{}')
    (scenario,) = open_dataset(scenario_dir)
    assert scenario.timestamps == ('000069', '000071', '000073')
    assert scenario.defects == []


@pytest.mark.parametrize('vehicles', [None, {}])
def test_no_vehicles_is_no_error(scenario_dir, vehicles):
    edit(scenario_dir / '641' / '000069.yaml', lambda content: content.update(vehicles=vehicles))
    (scenario,) = open_dataset(scenario_dir)
    assert scenario.frame(641, '000069').vehicles == {}


def test_ids_as_text_and_unknown_keys_are_understood(scenario_dir):
    def change(content):
        content['vehicles'] = {'7': {**content['vehicles'][7], 'bp_id': 'vehicle.audi.tt'}}
        content['RSU'] = False
        del content['plan_trajectory']

    edit(scenario_dir / '641' / '000069.yaml', change)
    (scenario,) = open_dataset(scenario_dir)
    frame = scenario.frame(641, '000069')
    assert list(frame.vehicles) == [7]
    assert frame.plan_trajectory == ()


def test_floats_without_a_dot_are_floats(scenario_dir):
    path = scenario_dir / '641' / '000069.yaml'
    path.write_text(path.read_text().replace('ego_speed: -0.249', 'ego_speed: -2e-6'))
    (scenario,) = open_dataset(scenario_dir)
    assert scenario.frame(641, '000069').ego_speed == -2e-6
    write_data_protocol(scenario_dir, {'noise': 1.0})
    (scenario_dir / 'data_protocol.yaml').write_text('noise: 1e-06')
    assert scenario.protocol()['noise'] == 1e-6


@pytest.mark.parametrize('share', [0.3, 0.6, 0.9])
def test_a_half_written_file_is_named(scenario_dir, share):
    path = scenario_dir / '641' / '000069.yaml'
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    (scenario,) = open_dataset(scenario_dir)
    with pytest.raises(DatasetError, match=r'641/000069\.yaml'):
        scenario.frame(641, '000069')


@pytest.mark.parametrize(
    ('field', 'change'),
    [
        ('lidar_pose', lambda c: c['lidar_pose'].__setitem__(2, math.nan)),
        ('true_ego_pos', lambda c: c['true_ego_pos'].pop()),
        ('predicted_ego_pos', lambda c: c.pop('predicted_ego_pos')),
        ('ego_speed', lambda c: c.update(ego_speed='fast')),
        (r'camera2\.extrinsic', lambda c: c['camera2']['extrinsic'].pop()),
        (r'camera1\.cords', lambda c: c['camera1'].pop('cords')),
        (r'vehicles\[7\]\.location', lambda c: c['vehicles'][7].update(location=[1, math.inf, 0])),
        (r'vehicles\[7\]', lambda c: c['vehicles'].update({7: None})),
        (r'vehicles\[car\]', lambda c: c.update(vehicles={'car': c['vehicles'][7]})),
        (r'plan_trajectory\[0\]', lambda c: c.update(plan_trajectory=[[1, 2]])),
    ],
)
def test_a_wrong_field_is_named(scenario_dir, field, change):
    edit(scenario_dir / '641' / '000069.yaml', change)
    (scenario,) = open_dataset(scenario_dir)
    with pytest.raises(DatasetError, match=rf'000069\.yaml: {field}'):
        scenario.frame(641, '000069')


def test_a_resized_picture_scales_its_intrinsic(scenario_dir):
    write_agent_frame(scenario_dir / '641', make_frame(), pictures(size=(4, 3)))
    (scenario,) = open_dataset(scenario_dir)
    camera = scenario.frame(641, '000069').cameras[0]
    assert camera.size == (4, 3)
    np.testing.assert_allclose(camera.intrinsic, camera_intrinsic(4, 3, 100.0))
    assert 'scaled' in scenario.defects[0]


def test_a_picture_of_another_shape_is_left_out(scenario_dir):
    write_agent_frame(scenario_dir / '641', make_frame(), {1: pictures(size=(6, 6))[1]})
    (scenario,) = open_dataset(scenario_dir)
    assert set(scenario.frame(641, '000069').cameras) == {0, 2, 3}
    assert 'aspect ratio' in scenario.defects[0]


def test_undecodable_pictures_are_named(tmp_path):
    path = tmp_path / '641' / '000069_camera0.png'
    with pytest.raises(DatasetError, match='does not exist'):
        read_image(path)
    write_agent_frame(tmp_path / '641', make_frame(), pictures(size=(80, 60)))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:30], b'', b'no picture at all'):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r'000069_camera0\.png is truncated or not'):
            read_image(path)


def test_what_is_no_dataset_is_told_with_the_layout(tmp_path):
    with pytest.raises(DatasetError, match='is not a directory'):
        open_dataset(tmp_path / 'nothing')
    (tmp_path / 'photos').mkdir()
    with pytest.raises(DatasetError, match=r'not an OPV2V directory.*<root>/<split>'):
        open_dataset(tmp_path)
    write_data_protocol(tmp_path / 'train' / 'scene', {})
    with pytest.raises(DatasetError, match='holds no agents'):
        open_dataset(tmp_path)
    (tmp_path / 'train' / 'scene' / '641').mkdir()
    with pytest.raises(DatasetError, match='share no timestamp'):
        open_dataset(tmp_path)


def test_unknown_agents_and_timestamps_are_named(scenario_dir):
    (scenario,) = open_dataset(scenario_dir)
    with pytest.raises(DatasetError, match='no agent 7; its agents are 641, 650'):
        scenario.frame(7, '000069')
    with pytest.raises(DatasetError, match=r'000070\.yaml does not exist'):
        scenario.frame(641, '000070')


def test_scenarios_that_are_still_being_written_are_skipped(scenario_dir):
    scenario_dir.rename(scenario_dir.with_name('.scene.partial'))
    with pytest.raises(DatasetError):
        open_dataset(scenario_dir.parent)

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('lapdtr_ros.msg')
pytest.importorskip('rosbags')

from geometry_msgs.msg import PoseStamped
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import Image

from lapdtr_ros import camera_messages, topics
from lapdtr_ros.datasets.opv2v import (
    AgentFrame,
    CameraModel,
    VehicleLabel,
    open_dataset,
    read_image,
)
from lapdtr_ros.datasets.opv2v_writer import write_agent_frame, write_data_protocol
from lapdtr_ros.nodes.bags import is_bag
from lapdtr_ros.nodes.bags.files import BagError, BagReader, BagWriter
from lapdtr_ros.nodes.bags.scenes import bag_to_scene, scene_to_bag
from lapdtr_ros.perception.poses import camera_intrinsic, matrix_to_pose, pose_to_matrix

LIDAR = (10.0, -4.0, 1.9, 1.0, 30.0, -2.0)
FRAMES = 3


def write_scene(path: Path) -> Path:
    """Two vehicles with two cameras and one object."""
    extrinsic = np.linalg.inv(pose_to_matrix((0.5, 0.2, -0.3, 0.0, 100.0, 3.0)))
    label = VehicleLabel(7, (20.0, 1.0, 0.1), (0.0, 0.0, 0.7), (2.4, 1.0, 0.7), (0.5, 70, 1), 36.0)
    random = np.random.default_rng(0)
    for agent in (641, 650):
        lidar = (LIDAR[0] + agent, *LIDAR[1:])
        pose = matrix_to_pose(pose_to_matrix(lidar) @ np.linalg.inv(extrinsic))
        camera = CameraModel(pose, camera_intrinsic(32, 24, 100.0), extrinsic)
        for index in range(FRAMES):
            frame = AgentFrame(
                timestamp=f'{70 + 2 * index:06d}',
                lidar_pose=lidar,
                true_ego_pos=(*lidar[:2], 0.0, *lidar[3:]),
                predicted_ego_pos=lidar,
                ego_speed=18.0,
                plan_trajectory=(),
                cameras={0: camera, 2: camera},
                vehicles={7: label},
            )
            pictures = {n: random.integers(0, 256, (24, 32, 3), dtype=np.uint8) for n in (0, 2)}
            write_agent_frame(path / str(agent), frame, pictures)
    write_data_protocol(path, {'world': {'seed': 0}})
    return path


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    directory = tmp_path_factory.mktemp('recording')
    scene = open_dataset(write_scene(directory / 'scene'))[0]
    scene_to_bag(scene, directory / 'bag')
    return scene, directory / 'bag'


def assert_same_scene(first, second):
    assert [a.id for a in first.agents] == [a.id for a in second.agents]
    assert first.timestamps == second.timestamps
    for agent in first.agents:
        for timestamp in first.timestamps:
            one, two = first.frame(agent.id, timestamp), second.frame(agent.id, timestamp)
            assert one.cameras.keys() == two.cameras.keys()
            assert two.ego_speed == pytest.approx(one.ego_speed)
            np.testing.assert_allclose(one.lidar_pose, two.lidar_pose, atol=1e-9)
            np.testing.assert_allclose(one.true_ego_pos, two.true_ego_pos, atol=1e-9)
            for key, label in one.vehicles.items():
                np.testing.assert_allclose(label.pose, two.vehicles[key].pose, atol=1e-9)
                np.testing.assert_allclose(label.extent, two.vehicles[key].extent)
                assert two.vehicles[key].speed == pytest.approx(label.speed)
            for number, camera in one.cameras.items():
                other = two.cameras[number]
                np.testing.assert_allclose(camera.extrinsic, other.extrinsic, atol=1e-9)
                np.testing.assert_allclose(camera.intrinsic, other.intrinsic, atol=1e-9)
                np.testing.assert_allclose(camera.pose, other.pose, atol=1e-9)
                pixels = read_image(one.image_paths[number])
                assert np.array_equal(pixels, read_image(two.image_paths[number]))


def recode(bag, out, storage, mode, *, keep=lambda topic: True, until=None):
    """The recording as another tool would have written it."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for file in sorted((Path(__file__).parents[2] / 'msg').glob('*.msg')):
        store.register(get_types_from_msg(file.read_text(), f'lapdtr_ros/msg/{file.stem}'))
    with Reader(bag) as reader:
        writer = Writer(out, version=9, storage_plugin=storage)
        if mode is not None:
            writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            connections = {
                c.id: writer.add_connection(c.topic, c.msgtype, typestore=store)
                for c in reader.connections
                if keep(c.topic)
            }
            for connection, stamp, data in reader.messages():
                if connection.id in connections:
                    writer.write(connections[connection.id], stamp, data)
    return out


def test_a_scene_survives_the_way_through_a_bag(recording, tmp_path):
    scene, bag = recording
    told = []
    result = bag_to_scene(bag, tmp_path / 'back', progress=lambda *a: told.append(a))
    assert (result.moments, result.incomplete) == (FRAMES, 0)
    assert told[-1][0] == told[-1][1] > 0
    assert_same_scene(scene, open_dataset(tmp_path / 'back')[0])


@pytest.mark.parametrize(
    ('storage', 'mode'),
    [
        (StoragePlugin.SQLITE3, None),
        (StoragePlugin.SQLITE3, CompressionMode.FILE),
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        (StoragePlugin.MCAP, CompressionMode.STORAGE),
        (StoragePlugin.MCAP, CompressionMode.MESSAGE),
    ],
)
def test_every_storage_and_compression_is_read(recording, tmp_path, storage, mode):
    scene, bag = recording
    other = recode(bag, tmp_path / 'other', storage, mode)
    bag_to_scene(other, tmp_path / 'back')
    assert_same_scene(scene, open_dataset(tmp_path / 'back')[0])


def test_raw_pictures_are_read(recording, tmp_path):
    scene, bag = recording
    with BagReader(bag) as reader, BagWriter(tmp_path / 'raw') as writer:
        for topic, stamp, msg in reader.messages(list(reader.topics)):
            if topic.endswith('/compressed'):
                pixels = camera_messages.any_picture_from_msg(msg)[:, :, ::-1]
                height, width, _ = pixels.shape
                raw = Image(header=msg.header, height=height, width=width, encoding='bgr8')
                raw.step = 3 * width
                raw.data = pixels.tobytes()
                writer.write(topic.removesuffix('/compressed'), raw, stamp)
            else:
                writer.write(topic, msg, stamp)
    bag_to_scene(tmp_path / 'raw', tmp_path / 'back')
    assert_same_scene(scene, open_dataset(tmp_path / 'back')[0])


def test_a_missing_topic_is_named(recording, tmp_path):
    other = recode(
        recording[1],
        tmp_path / 'other',
        StoragePlugin.MCAP,
        None,
        keep=lambda topic: topic != '/cav_650/camera2/mount',
    )
    with pytest.raises(BagError, match='lacks /cav_650/camera2/mount; it has'):
        bag_to_scene(other, tmp_path / 'back')


def test_a_bag_of_something_else_is_refused_with_its_topics(tmp_path):
    with BagWriter(tmp_path / 'bag') as bag:
        bag.write('/pose', PoseStamped(), 0)
    with pytest.raises(BagError, match=r'no picture topic.*it has /pose'):
        bag_to_scene(tmp_path / 'bag', tmp_path / 'back')


def test_a_moment_without_all_messages_is_left_out_and_counted(recording, tmp_path):
    with BagReader(recording[1]) as reader, BagWriter(tmp_path / 'gaps') as writer:
        first = True
        for topic, stamp, msg in reader.messages(list(reader.topics)):
            if topic == '/cav_650/lidar_pose' and first:
                first = False
                continue
            writer.write(topic, msg, stamp)
    result = bag_to_scene(tmp_path / 'gaps', tmp_path / 'back')
    assert (result.moments, result.incomplete) == (FRAMES - 1, 1)


def test_a_looping_recording_is_refused(recording, tmp_path):
    with BagReader(recording[1]) as reader, BagWriter(tmp_path / 'loop') as writer:
        for lap in range(2):
            for topic, stamp, msg in reader.messages(list(reader.topics)):
                writer.write(topic, msg, stamp + lap * 10**9)
    with pytest.raises(BagError, match=r'jump back .* looping'):
        bag_to_scene(tmp_path / 'loop', tmp_path / 'back')


def test_a_truncated_file_is_named_with_the_remedy(recording, tmp_path):
    shutil.copytree(recording[1], tmp_path / 'bag')
    file = next((tmp_path / 'bag').glob('*.mcap'))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BagError, match='ros2 bag reindex'):
        bag_to_scene(tmp_path / 'bag', tmp_path / 'back')


def test_a_recording_that_was_cut_off_is_named_with_the_remedy(recording, tmp_path):
    shutil.copytree(recording[1], tmp_path / 'bag')
    (tmp_path / 'bag' / 'metadata.yaml').unlink()
    assert is_bag(tmp_path / 'bag')
    with pytest.raises(BagError, match=r'no metadata\.yaml.*ros2 bag reindex'):
        BagReader(tmp_path / 'bag')


def test_damaged_metadata_is_named(recording, tmp_path):
    shutil.copytree(recording[1], tmp_path / 'bag')
    (tmp_path / 'bag' / 'metadata.yaml').write_text('rosbag2_bagfile_information: [1')
    with pytest.raises(BagError, match='bag'):
        BagReader(tmp_path / 'bag')


def test_a_type_that_is_not_installed_stops_only_who_wants_it(tmp_path):
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg('int32 x', 'vendor_msgs/msg/Thing'))
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        thing = writer.add_connection('/thing', 'vendor_msgs/msg/Thing', typestore=store)
        kind = store.types['vendor_msgs/msg/Thing']
        writer.write(thing, 0, store.serialize_cdr(kind(1), 'vendor_msgs/msg/Thing'))
    with BagReader(tmp_path / 'bag') as reader:
        assert reader.topics['/thing'].count == 1
        with pytest.raises(BagError, match=r"/thing holds vendor_msgs/msg/Thing.*'vendor_msgs'"):
            list(reader.messages(['/thing']))


def test_an_existing_directory_is_never_overwritten(tmp_path):
    with pytest.raises(BagError, match='exists'):
        BagWriter(tmp_path)


def test_what_is_written_can_be_read_with_its_qos(recording):
    with Reader(recording[1]) as reader:
        offered = {c.topic: c.ext.offered_qos_profiles for c in reader.connections}
    assert offered[topics.lidar_pose('', 'cav_641')][0].depth > 0

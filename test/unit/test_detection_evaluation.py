"""Offline evaluation: who takes part, what counts, and that known answers come out."""

import dataclasses

import numpy as np
import pytest
import torch

from lapdtr_ros.datasets.opv2v import AgentFrame, CameraModel, VehicleLabel, open_dataset
from lapdtr_ros.datasets.opv2v_writer import write_agent_frame
from lapdtr_ros.datasets.scene import CAMERA_MOUNTS, LIDAR_MOUNT, mounted
from lapdtr_ros.evaluation.average_precision import EvaluationProtocol
from lapdtr_ros.evaluation.detected import DetectedFrame, detection_grid, fused_boxes, score
from lapdtr_ros.evaluation.detector import (
    FUSIONS,
    Detector,
    detect_scenarios,
    evaluate_detector,
    run_units,
    score_detections,
)
from lapdtr_ros.evaluation.live import decode_outputs, fused_offline, live_precision, stamp_ns
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes
from lapdtr_ros.perception.detection_targets import decode, encode_targets
from lapdtr_ros.perception.fusion import NMS, FusionSettings
from lapdtr_ros.perception.ground_truth import ground_truth
from lapdtr_ros.perception.poses import camera_intrinsic, pose_to_matrix

torch.set_num_threads(1)

MODEL = 'test_vit@64x96+detection'
PROTOCOL = EvaluationProtocol('test', limits=CAMERA_RANGE)


def view(x, vehicles, yaw=0.0):
    """An agent at (x, 0) that lists vehicles at the given places."""
    own = (x, 0.0, 0.0, 0.0, yaw, 0.0)
    lidar = mounted(own, LIDAR_MOUNT)
    cameras = {}
    for number, mount in enumerate(CAMERA_MOUNTS):
        pose = mounted(own, mount)
        extrinsic = np.linalg.inv(pose_to_matrix(pose)) @ pose_to_matrix(lidar)
        cameras[number] = CameraModel(pose, camera_intrinsic(120, 90, 100.0), extrinsic)
    labels = {
        i: VehicleLabel(i, (*place, 0.0), (0.0, 0.0, 0.75), (2.2, 1.0, 0.75), (0.0, 20.0, 0.0), 0.0)
        for i, place in vehicles.items()
    }
    return AgentFrame('000069', lidar, own, own, 0.0, (), cameras, labels)


def perfect(frame):
    """Every agent finds exactly what it lists, with its front camera."""
    found = {agent: (ground_truth({agent: one}, agent),) for agent, one in frame.items()}
    return DetectedFrame(frame, found)


NEAR, FAR, LOST = (12.0, 3.0), (40.0, -3.0), (30.0, 8.0)
FRAME = {10: view(0.0, {1: NEAR}), 20: view(30.0, {1: NEAR, 2: FAR}, yaw=90.0)}


@pytest.mark.parametrize('method', FUSIONS)
def test_what_all_agents_list_is_found_by_all_agents_and_half_of_it_by_one(method):
    frames = [perfect(FRAME)]
    assert score(frames, PROTOCOL, FUSIONS[method], alone=False).ap70 == 1.0
    single = score(frames, PROTOCOL, FUSIONS[method], alone=True)
    assert single.ground_truths == 2
    assert single.ap70 == 0.5


def test_own_camera_labels_leave_out_what_only_others_list_and_what_lies_between_the_pictures():
    between = (12.0 * np.cos(np.radians(50)), 12.0 * np.sin(np.radians(50)))
    frame = {10: view(0.0, {1: NEAR, 3: between}), 20: FRAME[20]}
    result = score([perfect(frame)], PROTOCOL, FUSIONS[NMS], alone=True, own_camera_labels=True)
    everything = score([perfect(frame)], PROTOCOL, FUSIONS[NMS], alone=True)
    assert everything.ground_truths == 3
    assert result.ground_truths < everything.ground_truths
    assert (result.protocol.label_rule, result.protocol.vehicles) == ('camera', 1)


def test_agents_out_of_range_neither_help_nor_count():
    frame = {10: view(0.0, {1: NEAR}), 20: view(80.0, {2: FAR})}
    result = score([perfect(frame)], PROTOCOL, FUSIONS[NMS], alone=False)
    assert result.ground_truths == 1
    assert result.ap50 == 1.0


def test_two_views_of_one_vehicle_are_one_box():
    merged = fused_boxes(perfect(FRAME), [10, 20], FUSIONS[NMS])
    assert len(merged) == 2


def test_shifted_detections_lose_the_strict_threshold_first():
    detected = perfect(FRAME)
    moved = {
        agent: tuple(
            dataclasses.replace(b, centers=b.centers + np.array([0.7, 0, 0])) for b in boxes
        )
        for agent, boxes in detected.detections.items()
    }
    result = score([DetectedFrame(FRAME, moved)], PROTOCOL, FUSIONS[NMS], alone=False)
    assert result.ap30 == 1.0
    assert result.ap70 < 1.0


def test_a_report_states_a_protocol_with_every_figure():
    report = score_detections([perfect(FRAME)], PROTOCOL, 'm', 'w').as_dict()
    for kind in ('single', 'fused', 'single_own_labels', 'single_local', 'fused_local'):
        for method in FUSIONS:
            assert report[kind][method]['protocol']['split'] == 'test'
    assert report['single_local'][NMS]['protocol']['sort'] == 'local'


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    root = tmp_path_factory.mktemp('evaluation')
    rng = np.random.default_rng(0)
    for agent, one in FRAME.items():
        pictures = {n: rng.integers(0, 255, (90, 120, 3), dtype=np.uint8) for n in one.cameras}
        write_agent_frame(root / 'scene' / str(agent), one, pictures)
    return root


def test_detector_decodes_what_the_model_says_about_each_picture(scene):
    detector = Detector.load(MODEL, 'random:0')
    picture = np.random.default_rng(1).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    camera = FRAME[10].cameras[1]
    boxes = detector.detect([picture, picture], [camera, camera])
    values = detector.predict([picture])[0]
    expected = decode(values, camera.resized(96, 64), detector.grid, score_threshold=0.05)
    assert len(expected) > 0
    for one in boxes:
        np.testing.assert_allclose(one.vectors, expected.vectors, atol=1e-4)


def test_every_camera_of_every_agent_is_looked_at(scene):
    detector = Detector.load(MODEL, 'random:0')
    (frame,) = detect_scenarios(detector, open_dataset(scene), PROTOCOL)
    assert list(frame.detections) == [10, 20]
    assert [len(parts) for parts in frame.detections.values()] == [4, 4]
    fewer = dataclasses.replace(PROTOCOL, cameras=(0,), vehicles=1)
    (frame,) = detect_scenarios(detector, open_dataset(scene), fewer)
    assert {agent: len(parts) for agent, parts in frame.detections.items()} == {10: 1}


def test_untrained_detector_finds_nothing_worth_mentioning(scene):
    report = evaluate_detector(MODEL, 'random:0', open_dataset(scene))
    assert report.fused[NMS].ap50 < 0.1


def test_grid_is_that_of_the_output():
    grid = detection_grid(MODEL)
    assert (grid.rows, grid.columns, grid.height, grid.width) == (8, 12, 64, 96)


def test_running_units_gives_float32_in_any_precision():
    units = [torch.nn.Linear(4, 4)]
    features = torch.ones(1, 4)
    exact, coarse = (run_units(units, features, p) for p in (torch.float32, torch.bfloat16))
    assert exact.dtype == coarse.dtype == torch.float32
    assert not exact.requires_grad
    assert 0 < (exact - coarse).abs().max() < 0.05


def test_no_pictures_give_no_boxes():
    assert Detector.load(MODEL, 'random:0').detect([], []) == []
    assert len(fused_boxes(DetectedFrame(FRAME, {10: ()}), [10], FUSIONS[NMS])) == len(
        Boxes.empty()
    )


def perfect_output(stream, position):
    """What a perfect head says about a camera of the written scene."""
    agent, number = CAMERAS[stream]
    grid = detection_grid(MODEL)
    camera = FRAME[agent].cameras[number].resized(grid.width, grid.height)
    return encode_targets(ground_truth({agent: FRAME[agent]}, agent), camera, grid).values[None]


CAMERAS = {f'{agent}/camera{number}': (agent, number) for agent in FRAME for number in range(4)}


def test_outputs_of_a_fleet_become_what_its_cameras_found(scene):
    (one,) = decode_outputs(open_dataset(scene)[0], CAMERAS, perfect_output, detection_grid(MODEL))
    assert one.ego == 10
    assert {agent: len(parts) for agent, parts in one.detections.items()} == {10: 4, 20: 4}
    together = fused_offline([one], FusionSettings())
    assert list(together) == [stamp_ns(one)]
    assert live_precision([(one, together[stamp_ns(one)])], PROTOCOL).ap70 == 1.0
    alone = score([one], PROTOCOL, FusionSettings(), alone=True)
    assert 0 < alone.ap50 < 1.0


def test_moments_and_outputs_that_never_came_count_as_nothing_found(scene):
    (one,) = decode_outputs(
        open_dataset(scene)[0], CAMERAS, lambda stream, position: None, detection_grid(MODEL)
    )
    assert one.detections == {10: (), 20: ()}
    nothing = live_precision([(one, None)], PROTOCOL)
    assert (nothing.ap50, nothing.detections) == (0.0, 0)
    assert nothing.ground_truths > 0

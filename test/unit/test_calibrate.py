"""Calibration runs: candidate plans, the predictor, and the whole command on a tiny detector."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lapdtr_ros.calibration import candidates
from lapdtr_ros.calibration.checkpoint import Checkpoint
from lapdtr_ros.calibration.errors import CalibrateError
from lapdtr_ros.calibration.frames import choose_moments
from lapdtr_ros.calibration.options import CalibrationOptions
from lapdtr_ros.calibration.prediction import fit_curve, fit_joint, margin
from lapdtr_ros.calibration.run import calibrate
from lapdtr_ros.calibration.trials import TrialRunner, trial_of
from lapdtr_ros.cli import build_parser
from lapdtr_ros.datasets.opv2v import AgentFrame, CameraModel, VehicleLabel, open_dataset
from lapdtr_ros.datasets.opv2v_writer import write_agent_frame
from lapdtr_ros.datasets.scene import CAMERA_MOUNTS, LIDAR_MOUNT, mounted
from lapdtr_ros.elastic.store import known_levels
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.features.calibration import Calibration
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.perception.poses import camera_intrinsic, pose_to_matrix
from lapdtr_ros.planning.accuracy import load_table
from lapdtr_ros.planning.plan import LOSSLESS, CutSetting

torch.set_num_threads(1)

MODEL, WEIGHTS = 'test_vit:blocks.2@64x96+detection', 'random:3'
SPEC = model_spec(MODEL)
UNITS = len(SPEC.unit_names)
FOUR_BITS = CutSetting(bits=4)
FEWER = CutSetting(keep=12, form='cluster', bits=4)


def quiet(items, _title):
    return items


# --- Prediction


@given(st.floats(-1.0, 1.0), st.floats(0.5, 2.0))
def test_the_joint_fit_finds_a_power_law(alpha, gamma):
    totals = [0.01, 0.05, 0.2]
    fit = fit_joint(totals, [np.exp(alpha) * total**gamma for total in totals])
    assert fit.alpha == pytest.approx(alpha, abs=1e-6)
    assert fit.gamma == pytest.approx(gamma, abs=1e-6)
    assert fit.plans == 3


def test_errors_that_fall_with_their_sum_are_refused():
    with pytest.raises(CalibrateError, match='measure more plans'):
        fit_joint([0.1, 0.2], [0.3, 0.2])


measured = st.lists(st.tuples(st.floats(1e-4, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=20)


@settings(max_examples=200)
@given(measured, st.floats(0.1, 1.0))
def test_the_curve_is_valid_and_never_above_the_undisturbed_model(points, baseline):
    curve = fit_curve(baseline, *zip(*points, strict=True))  # Curve refuses what is not monotone
    assert curve.accuracy[0] == baseline
    assert max(curve.accuracy) == baseline


@given(st.lists(st.floats(0.01, 0.5), min_size=1, max_size=8, unique=True))
def test_the_curve_goes_through_accuracies_that_fall_steadily(errors):
    errors = sorted(errors)
    accuracies = [0.8 - 0.5 * error for error in errors]
    curve = fit_curve(0.8, errors, accuracies)
    np.testing.assert_allclose(np.interp(errors, curve.error, curve.accuracy), accuracies)


def test_the_margin_is_the_error_on_plans_that_were_left_out():
    errors = np.linspace(0.02, 0.3, 15)
    straight = 0.8 - 0.5 * errors
    exact = fit_joint(list(errors), list(errors))
    assert margin(0.8, exact, errors, errors, straight) < 0.02
    noisy = straight + np.tile([0.1, -0.1, 0.0], 5)
    assert margin(0.8, exact, errors, errors, noisy) > 0.05


# --- Candidates


def test_tokens_are_summarised_and_maps_only_quantized():
    tokens = candidates.cut_settings(SPEC.layout, 24)
    assert {setting.keep for setting in tokens} == {0, 18, 12, 6}
    maps = candidates.cut_settings(dataclasses.replace(SPEC.layout, kind='nchw'), 24)
    assert {setting.keep for setting in maps} == {0}


def test_the_total_error_is_the_sum_of_all_single_effects():
    singles = {
        candidates.packed_cut(UNITS, 2, FOUR_BITS): 0.01,
        candidates.narrow_unit(UNITS, 0, 1): 0.1,
        candidates.narrow_unit(UNITS, 1, 1): 1.0,
        candidates.whole(UNITS, quality=85): 10.0,
    }
    trial = trial_of((2, 1, FOUR_BITS), (UNITS, 0, LOSSLESS), quality=85)
    assert candidates.total_error(trial, singles) == pytest.approx(11.11)
    assert candidates.total_error(candidates.whole(UNITS), singles) == 0


def test_combined_plans_are_different_useful_and_repeatable():
    ways = {cut: candidates.cut_settings(SPEC.layout, 24) for cut in range(1, UNITS)}
    singles = {candidates.packed_cut(UNITS, c, s): 0.01 for c, all_ in ways.items() for s in all_}
    singles |= {candidates.narrow_unit(UNITS, u, 1): 0.01 for u in range(UNITS)}
    plans = candidates.combined(UNITS, (0, 1), ways, singles, 20, seed=5)
    assert len(set(plans)) == 20
    assert plans == candidates.combined(UNITS, (0, 1), ways, singles, 20, seed=5)
    for plan in plans:
        assert 0.002 <= candidates.total_error(plan, singles) <= 0.4
        keeps = [stage.cut.keep for stage in plan.stages if stage.cut.keep]
        assert keeps == sorted(set(keeps), reverse=True)


# --- Trials


@pytest.fixture(scope='module')
def picture():
    return np.random.default_rng(0).integers(0, 256, SPEC.picture_shape, dtype=np.uint8)


def test_an_undisturbed_trial_is_the_model_itself(picture):
    (outcome,) = TrialRunner(MODEL, WEIGHTS, '', (), 1).run(picture, [candidates.whole(UNITS)])
    whole = StageRunner(MODEL, WEIGHTS, 0, UNITS)
    np.testing.assert_array_equal(outcome.values, whole.run(picture))
    body = whole.run_range(picture, 0, UNITS - 1)
    np.testing.assert_array_equal(outcome.features.numpy(), body)
    assert outcome.cut_bytes == ()


def test_trials_that_share_work_come_out_as_if_run_alone(picture):
    runner = TrialRunner(MODEL, WEIGHTS, '', (), 1)
    trials = [
        candidates.whole(UNITS),
        candidates.packed_cut(UNITS, 2, FEWER),
        trial_of((2, 0, FEWER), (3, 0, FOUR_BITS), (UNITS, 0, LOSSLESS)),
        candidates.packed_cut(UNITS, UNITS - 1, FOUR_BITS),
        candidates.whole(UNITS, quality=50),
    ]
    for together, trial in zip(runner.run(picture, trials), trials, strict=True):
        (alone,) = runner.run(picture, [trial])
        np.testing.assert_array_equal(together.values, alone.values)
        np.testing.assert_array_equal(together.features.numpy(), alone.features.numpy())
        assert together.cut_bytes == alone.cut_bytes
        assert len(together.cut_bytes) == len(trial.stages) - 1


def test_features_of_trials_are_back_on_their_grid(picture):
    runner = TrialRunner(MODEL, WEIGHTS, '', (), 1)
    whole, fewer = runner.run(
        picture, [candidates.whole(UNITS), candidates.packed_cut(UNITS, 2, FEWER)]
    )
    assert whole.features.shape == fewer.features.shape
    assert not torch.equal(whole.features, fewer.features)


# --- Checkpoint


def test_kept_results_are_not_made_again_unless_options_change(tmp_path):
    made = []

    def make():
        made.append(1)
        return {'x': np.arange(3)}

    for options in ({'seed': 1}, {'seed': 1}, {'seed': 2}):
        result = Checkpoint(tmp_path / 'partial', options).get('a', make)
        np.testing.assert_array_equal(result['x'], np.arange(3))
    assert len(made) == 2
    Checkpoint(tmp_path / 'partial', {}).remove()
    assert not (tmp_path / 'partial').exists()


# --- The whole run


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Two scenes of three moments: a vehicle with two cameras sees another one."""
    root = tmp_path_factory.mktemp('scenes')
    generator = np.random.default_rng(0)
    lidar = mounted((0.0,) * 6, LIDAR_MOUNT)
    cameras = {}
    for number in (0, 3):
        pose = mounted((0.0,) * 6, CAMERA_MOUNTS[number])
        extrinsic = np.linalg.inv(pose_to_matrix(pose)) @ pose_to_matrix(lidar)
        cameras[number] = CameraModel(pose, camera_intrinsic(120, 90, 100.0), extrinsic)
    other = VehicleLabel(
        7, (15.0, 0.0, 0.0), (0.0, 0.0, 0.75), (2.2, 1.0, 0.75), (0.0, 0.0, 0.0), 0.0
    )
    for scene in ('a', 'b'):
        for stamp in range(3):
            frame = AgentFrame(
                timestamp=f'{stamp:06d}',
                lidar_pose=lidar,
                true_ego_pos=(0.0,) * 6,
                predicted_ego_pos=(0.0,) * 6,
                ego_speed=0.0,
                plan_trajectory=(),
                cameras=cameras,
                vehicles={7: other},
            )
            pictures = {
                number: generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)
                for number in cameras
            }
            write_agent_frame(root / scene / '100', frame, pictures)
    return root


def options_for(scenes, out):
    return CalibrationOptions(
        MODEL,
        WEIGHTS,
        dataset=scenes,
        fit_dataset=scenes,
        out=out,
        name='tiny',
        frames=2,
        fit_pictures=3,
        trial_pictures=1,
        plans=3,
        rated_plans=1,
        savings=(0.005, 0.02),
        threads=1,
    )


def test_moments_come_from_all_scenes_before_any_gives_a_second(scenes):
    def chosen():
        return [(s.name, stamp) for s, stamp in choose_moments(open_dataset(scenes), 4, 0, scenes)]

    assert {name for name, _ in chosen()[:2]} == {'a', 'b'}
    assert len(set(chosen())) == 4
    assert chosen() == chosen()


def test_more_moments_than_there_are_is_refused(scenes):
    with pytest.raises(CalibrateError, match='6 moments, but 7 are asked for'):
        choose_moments(open_dataset(scenes), 7, 0, scenes)


def test_a_model_without_detections_is_refused(scenes, tmp_path):
    options = dataclasses.replace(options_for(scenes, tmp_path), model='test_vit')
    with pytest.raises(CalibrateError, match=r'\+detection'):
        calibrate(options, quiet)


@pytest.fixture(scope='module')
def finished(scenes, tmp_path_factory):
    """Options and report of a run without interruptions."""
    options = options_for(scenes, tmp_path_factory.mktemp('finished'))
    return options, calibrate(options, quiet)


class StoppedError(Exception):
    pass


def test_a_stopped_run_goes_on_and_ends_the_same(scenes, finished, tmp_path):
    _, through = finished
    options, titles = options_for(scenes, tmp_path / 'stopped'), []

    def stop_after_one_moment(items, title):
        titles.append(title)
        for number, item in enumerate(items):
            if title.startswith('accuracies') and number == 1:
                raise StoppedError
            yield item

    with pytest.raises(StoppedError):
        calibrate(options, stop_after_one_moment)
    assert 'statistics' in titles
    titles.clear()

    def remember(items, title):
        titles.append(title)
        return items

    resumed = calibrate(options, remember)
    assert 'statistics' not in titles  # the levels were not fitted again
    assert resumed.errors == through.errors
    assert [r.ap for r in resumed.rated.values()] == [r.ap for r in through.rated.values()]
    assert not list(options.out.rglob('*.partial'))


def test_the_files_fit_each_other_and_the_model(finished):
    options, report = finished
    table = load_table(options.table)
    table.check_fits(MODEL, UNITS)
    source = Calibration(options.out / table.calibration, MODEL, WEIGHTS)
    levels = known_levels(source)
    assert tuple(sorted(table.level_effects)) == levels
    assert len(levels) >= 1
    for level in table.levels:
        assert level.error[0] == level.error[-1] == 0.0  # embedding and head stay
        assert sum(level.flops) < UNITS
        assert max(level.parameter_bytes) <= 1.0
    assert {effect.cut for effect in table.cuts} == set(range(1, UNITS))
    mean = source.cut_mean(1)
    assert mean is not None
    assert mean.shape == (25, 64)
    undisturbed = next(iter(report.rated))
    assert undisturbed == candidates.whole(UNITS)
    assert table.accuracy == pytest.approx(report.rated[undisturbed].ap50, abs=1e-6)
    assert str(options.out) not in options.table.read_text(encoding='utf-8')
    assert source.metadata['command'] == options.command


def test_the_command_line_reaches_the_options():
    required = {'weights': 'w', 'dataset': 'd', 'fit-dataset': 'f', 'out': 'o', 'frames': '3'}
    arguments = [part for name, value in required.items() for part in (f'--{name}', value)]
    parsed = build_parser().parse_args(['calibrate', 'm', *arguments])
    assert (parsed.model, parsed.frames, parsed.seed) == ('m', 3, CalibrationOptions.seed)

"""Run records of emulated fleets: times of the fleet, energy of all ends, honest words."""

import dataclasses

import pytest
import yaml

from lapdtr_ros.evaluation.run_builder import RunBuilder
from lapdtr_ros.evaluation.run_record import EMULATED, MEASURED, from_json, to_json
from lapdtr_ros.evaluation.summary import summarise, verdict
from lapdtr_ros.execution.frames import FINISHED, FrameOutcome, StageRecord
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.scenario import ScenarioError, load_scenario

STREAM = 'near/camera0'


def builder(folder, **execution):
    content = {
        'name': 'test',
        'model': {'name': 'test_vit', 'weights': 'random:3'},
        'devices': {'near': {'class': 'raspberry_pi_4'}, 'far': {'class': 'raspberry_pi_4'}},
        'links': [{'between': ['near', 'far'], 'class': 'wifi5'}],
        'streams': {STREAM: {'source': 'near', 'dataset': 'scene'}},
        'execution': execution,
    }
    path = folder / 'scenario.yaml'
    path.write_text(yaml.safe_dump(content))
    return RunBuilder(load_scenario(path), profile_model('test_vit'))


def outcome(*devices):
    trace = tuple(StageRecord(name, 0, 1, 0, 0.5, 2.0, 10, 40, 3.0) for name in devices)
    return FrameOutcome(STREAM, 0, 1, FINISHED, 5.0, 1000, trace=trace)


def run(folder, frame, ratio=1.0, measured=False, **execution):
    made = builder(folder, **execution)
    made.add_outcome(frame, 1e9)
    for name in ('near', 'far'):
        made.add_telemetry(1e9, name, 1.0, 1.0, 0.5, 0, ratio, measured)
    return made.build()


def test_times_of_an_emulated_run_are_those_of_the_fleet(tmp_path):
    record = run(tmp_path, outcome('near'), emulate=True, time_scale=0.1)
    (frame,) = record.frames
    assert (record.time_level, record.time_scale) == (EMULATED, 0.1)
    assert frame.latency_s == pytest.approx(0.5)
    assert frame.stages[0].compute_s == pytest.approx(0.2)
    assert frame.stages[0].queue_s == pytest.approx(0.05)
    assert from_json(to_json(record)) == record


def test_time_scale_means_nothing_without_emulation(tmp_path):
    record = run(tmp_path, outcome('near'), time_scale=0.1)
    assert (record.time_level, record.time_scale) == (MEASURED, 1.0)
    assert record.frames[0].latency_s == 5.0


def test_frames_pay_for_what_source_and_sink_send_and_receive(tmp_path):
    (alone,) = run(tmp_path, outcome('near')).frames
    (away,) = run(tmp_path, outcome('far')).frames
    assert alone.energy_j == pytest.approx(3.0)
    # wifi5: 15 nJ/bit for 1000 bytes of picture, 8 nJ/bit for 40 bytes of result, JPEG coding.
    radio_j = 8e-9 * (15 * 1000 + 8 * 40)
    assert away.ends_j > radio_j
    assert away.energy_j == pytest.approx(3.0 + away.ends_j)


def test_energy_is_measured_only_if_every_device_has_a_meter(tmp_path):
    assert run(tmp_path, outcome('near'), measured=True).energy_level == MEASURED
    mixed = builder(tmp_path)
    mixed.add_telemetry(1e9, 'near', 1.0, 1.0, 0.5, 0, 1.0, True)
    mixed.add_telemetry(1e9, 'far', 1.0, 1.0, 0.5, 0, 1.0, False)
    assert mixed.build().energy_level == EMULATED


def test_a_host_that_was_too_slow_is_told(tmp_path):
    slow = run(tmp_path, outcome('near'), ratio=2.5, emulate=True)
    assert 'slower than their class: near (2.5 times)' in verdict(slow, summarise(slow))
    fine = run(tmp_path, outcome('near'), emulate=True)
    assert 'kept the pace' in verdict(fine, summarise(fine))
    plain = dataclasses.replace(slow, time_level=MEASURED)
    assert 'slower' not in verdict(plain, summarise(plain))


@pytest.mark.parametrize('scale', [0.0, -1.0])
def test_impossible_time_scales_are_refused(tmp_path, scale):
    with pytest.raises(ScenarioError, match='time_scale'):
        builder(tmp_path, emulate=True, time_scale=scale)

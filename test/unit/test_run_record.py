import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lapdtr_ros.errors import UnknownNameError
from lapdtr_ros.evaluation.run_record import (
    EMULATED,
    FINISHED,
    LOST,
    MEASURED,
    ROADSIDE,
    SIMULATED,
    VEHICLE,
    BaselineRecord,
    DeviceRecord,
    Equivalence,
    FrameRecord,
    HostRecord,
    PlanRecord,
    RunRecord,
    RunRecordError,
    StageRecord,
    StageSpan,
    StreamPlanRecord,
    TelemetryRecord,
    describe_stages,
    from_json,
    read_record,
    to_json,
    write_record,
)
from lapdtr_ros.evaluation.summary import (
    number,
    show,
    size,
    summarise,
    summary_json,
    verdict,
    write_summary,
)
from lapdtr_ros.evaluation.tables import PlanRow, print_plan_table, print_summary

STREAM = 'car/cam'
SPANS = (StageSpan('car', 0, 2), StageSpan('rsu', 2, 4))


def frame(seq, sent_s, latency_s, energies_j=(0.2, 0.1), outcome=FINISHED, epoch=1):
    car_j, rsu_j = energies_j
    stages = (
        StageRecord('car', 0, 2, 0.001, 0.020, 600, 400, car_j, sent_s + 0.002),
        StageRecord('rsu', 2, 4, 0.003, 0.010, 400, 50, rsu_j),
    )
    return FrameRecord(STREAM, seq, epoch, sent_s, latency_s, outcome, 600, stages)


@pytest.fixture
def record():
    """Four frames every 0.1 s: three finished, one lost after its first stage, one heard twice."""
    lost = replace(frame(3, 0.3, math.nan, outcome=LOST), stages=frame(3, 0.3, 0).stages[:1])
    plan = StreamPlanRecord(STREAM, 'car', 'car', SPANS, 0.3, 0.04, 0.02)
    return RunRecord(
        name='by hand',
        scenario='two devices',
        started_at='2025-01-01T00:00:00+00:00',
        model='toy',
        weights='random:0',
        host=HostRecord('cpu', 2, 1),
        devices=(
            DeviceRecord('car', 'small', VEHICLE, 1000.0, 4000.0, 1000.0),
            DeviceRecord('rsu', 'large', ROADSIDE),
        ),
        plans=(PlanRecord(1, 0.0, 'first plan', 'exact', (plan,)),),
        frames=(
            frame(0, 0.0, 0.040),
            frame(1, 0.1, 0.050, (0.4, 0.1)),
            frame(1, 0.1, 0.090, (9.0, 9.0)),
            frame(2, 0.2, 0.060, (math.nan, 0.1)),
            lost,
        ),
        telemetry=(TelemetryRecord(0.5, 'car', 0.9, 1.0, 0.2, 0),),
        equivalence=Equivalence(3, 2e-6, 'whole model'),
        baselines=(
            BaselineRecord('all on car', 0.8, 0.1, EMULATED),
            BaselineRecord('simulated car', 0.8, 0.1, SIMULATED),
        ),
        unit_flops=(1.0, 2.0, 3.0, 4.0),
        command='lapdtr run toy',
    )


def test_frames_are_counted_once_and_duplicates_and_losses_apart(record):
    summary = summarise(record)
    assert summary.frames_sent.value == 4
    assert summary.frames_finished.value == 3
    assert summary.frames_lost.value == 1
    assert summary.frames_duplicated.value == 1


def test_a_frame_given_up_but_finished_later_is_not_lost(record):
    late = replace(record, frames=(*record.frames, frame(3, 0.3, 0.5)))
    summary = summarise(late)
    assert (summary.frames_finished.value, summary.frames_lost.value) == (4, 0)


def test_latency_is_taken_over_the_first_result_of_finished_frames(record):
    summary = summarise(record)
    assert summary.latency_p50_ms.value == pytest.approx(50.0)
    assert summary.latency_p95_ms.value == pytest.approx(59.0)
    assert summary.latency_p50_ms.level == MEASURED


def test_steady_rate_leaves_out_slow_start_and_end(record):
    slow = [frame(0, 0.0, 5.0)]
    steady = [frame(i, 10 + i * 0.1, 0.05) for i in range(1, 19)]
    end = [frame(19, 60.0, 5.0)]
    summary = summarise(replace(record, frames=(*slow, *steady, *end)))
    assert summary.frames_per_s.value == pytest.approx(10.0)


def test_energy_leaves_out_frames_of_unknown_energy(record):
    summary = summarise(record)
    assert summary.energy_mj.value == pytest.approx((300 + 500) / 2)
    assert summary.energy_mj.level == EMULATED
    car, rsu = summary.devices
    assert car.energy_mj.value == pytest.approx((200 + 400) / 2)
    assert car.energy_mj.value + rsu.energy_mj.value == pytest.approx(summary.energy_mj.value)


def test_busy_share_counts_lost_and_repeated_work_over_the_span_of_the_run(record):
    car, rsu = summarise(record).devices
    # From the first picture at 0 s to the lost one at 0.3 s, the last event of the run.
    assert car.busy_share.value == pytest.approx(5 * 0.020 / 0.3)
    assert rsu.busy_share.value == pytest.approx(4 * 0.010 / 0.3)
    assert summarise(record).busiest_share.value == pytest.approx(5 * 0.020 / 0.3)
    assert car.queue_ms.value == pytest.approx(1.0)
    assert car.memory_share.value == pytest.approx(0.25)
    assert rsu.memory_share.value is None


def test_only_payload_between_different_devices_is_communication(record):
    summary = summarise(record)
    hops = {hop.cut: (hop.source, hop.target, hop.bytes_per_frame.value) for hop in summary.hops}
    assert hops == {0: ('car', 'car', 600), 2: ('car', 'rsu', 400), 4: ('rsu', 'car', 50)}
    assert summary.communication_bytes.value == pytest.approx(450.0)
    assert summary.communication_bytes.level == MEASURED


def test_a_frame_under_a_plan_that_was_not_heard_still_counts(record):
    unheard = summarise(replace(record, plans=()))
    assert [hop.source for hop in unheard.hops] == [STREAM, 'car', 'rsu']
    assert unheard.communication_bytes.value == pytest.approx(1050.0)
    assert unheard.epochs[0].frames == 3


def test_energy_is_compared_within_a_level_only(record):
    same, other = (c for c in summarise(record).comparisons if c.quantity == 'energy')
    assert same.run.value == pytest.approx(400.0)
    assert same.saving.value == pytest.approx(0.5)
    assert same.run.level == same.baseline.level
    assert other.run.value is None
    assert other.saving.value is None
    assert other.baseline.value == pytest.approx(800.0)


def test_latency_is_compared_when_the_run_has_the_level_of_the_baseline(record):
    measured, emulated = (
        next(c for c in summarise(r).comparisons if c.quantity == 'latency')
        for r in (record, replace(record, time_level=EMULATED))
    )
    assert measured.saving.value is None
    assert emulated.saving.value == pytest.approx(0.5)


def test_figures_of_a_simulation_are_never_called_measured(record):
    simulated = replace(record, time_level=SIMULATED, energy_level=SIMULATED)
    assert '"measured"' in summary_json(record)
    assert '"measured"' not in summary_json(simulated)


def test_epochs_have_their_own_figures(record):
    frames = (frame(0, 0.0, 0.04), frame(1, 0.1, 0.08, (0.5, 0.1), epoch=2))
    first, second = summarise(replace(record, frames=frames)).epochs
    assert (first.epoch, first.latency_p50_ms.value) == (1, pytest.approx(40.0))
    assert (second.epoch, second.energy_mj.value) == (2, pytest.approx(600.0))


def test_the_five_metrics_of_the_paper_are_named_and_accuracy_is_absent(record):
    metrics = summarise(record).metrics
    assert list(metrics) == [
        'latency',
        'energy consumption',
        'accuracy',
        'resource utilization',
        'communication overhead',
    ]
    assert metrics['accuracy'].value is None


def test_an_empty_run_has_a_summary_without_values(record):
    summary = summarise(replace(record, frames=(), telemetry=()))
    assert summary.frames_sent.value == 0
    assert summary.latency_p50_ms.value is None
    assert summary.energy_mj.value is None
    assert summary.frames_per_s.value is None
    assert summary.communication_bytes.value is None


def test_the_verdict_tells_losses_and_equality(record):
    text = verdict(record, summarise(record))
    assert '3 of 4 frames finished, 1 lost, 1 second copies dropped' in text
    assert 'Split equals unsplit' in text
    for difference in (1e-3, math.nan):
        broken = replace(record, equivalence=Equivalence(3, difference, 'whole model'))
        assert 'DIFFERS FROM' in verdict(broken, summarise(broken))
    unchecked = replace(record, equivalence=None)
    assert 'not compared' in verdict(unchecked, summarise(unchecked))


def test_no_compared_frame_is_no_equality():
    assert not Equivalence(0, 0.0, 'whole model').holds


def test_json_round_trip_keeps_every_field(record, tmp_path):
    known = replace(record, frames=tuple(f for f in record.frames if f.seq < 2))
    assert from_json(to_json(known)) == known
    path = tmp_path / 'run.json'
    write_record(known, path)
    assert read_record(path) == known


def test_json_has_null_for_unknown_and_reads_it_as_nan(record):
    text = to_json(record)
    json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
    back = from_json(text)
    assert math.isnan(back.frames[3].stages[0].energy_j)
    assert back.frames[3].stages[1].start_s is None
    assert back.devices[1].battery_j is None
    assert to_json(back) == text


numbers = st.floats(0, 1e6)
stage_records = st.builds(
    StageRecord,
    device=st.just('car'),
    start=st.integers(0, 2),
    stop=st.integers(3, 4),
    queue_s=numbers,
    compute_s=numbers,
    received_bytes=st.integers(0, 2**40),
    sent_bytes=st.integers(0, 2**40),
    energy_j=numbers,
    start_s=st.none() | numbers,
)
frame_records = st.builds(
    FrameRecord,
    stream=st.text(),
    seq=st.integers(0, 2**63),
    epoch=st.integers(0, 9),
    sent_s=numbers,
    latency_s=numbers,
    outcome=st.sampled_from((FINISHED, LOST)),
    picture_bytes=st.integers(0, 2**40),
    stages=st.lists(stage_records, max_size=2).map(tuple),
)


@given(frames=st.lists(frame_records, max_size=4), name=st.text(), baseline=numbers)
def test_any_record_survives_json_and_has_a_summary_that_is_json(frames, name, baseline):
    record = RunRecord(
        name=name,
        scenario='',
        started_at='',
        model='',
        weights='',
        host=HostRecord('', 1, 1),
        devices=(DeviceRecord('car', '', VEHICLE),),
        frames=tuple(frames),
        baselines=(BaselineRecord('', baseline, baseline, EMULATED),),
    )
    assert from_json(to_json(record)) == record
    summary = json.loads(summary_json(record))['summary']
    counts = (summary[f'frames_{word}']['value'] for word in ('finished', 'lost', 'sent'))
    finished, lost, sent = counts
    assert finished + lost == sent


def damaged(record, change):
    document = json.loads(to_json(record))
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda d: d.update(version=99), 'schema version 99'),
        (lambda d: d.update(format='x'), 'not a run record'),
        (lambda d: d.pop('run'), 'run is None, expected an object'),
        (lambda d: d['run'].pop('model'), 'model'),
        (lambda d: d['run'].update(modle='x'), 'did you mean'),
        (lambda d: d['run'].update(name=3), 'run.name is 3, expected a text'),
        (lambda d: d['run']['frames'][0].update(seq='a'), r'run.frames\[0\].seq'),
        (lambda d: d['run']['frames'][0].update(sent_s=True), 'expected a number'),
        (lambda d: d['run'].update(frames={}), 'run.frames is {}, expected a list'),
        (lambda d: d['run']['frames'][0].update(outcome='gone'), 'outcome'),
        (lambda d: d['run'].update(time_level='guessed'), 'time_level'),
        (lambda d: d['run']['devices'].pop(), "device in a run record 'rsu'"),
        (lambda d: d['run'].update(unit_flops=[1.0]), 'unit_flops has 1 entries'),
    ],
)
def test_damaged_json_is_refused_with_the_place(record, change, words):
    with pytest.raises((RunRecordError, UnknownNameError), match=words):
        from_json(damaged(record, change))


def test_a_file_that_was_cut_off_is_refused_with_its_name(record, tmp_path):
    path = tmp_path / 'run.json'
    path.write_text(to_json(record)[:200])
    with pytest.raises(RunRecordError, match=r'run\.json.*not JSON'):
        read_record(path)
    with pytest.raises(RunRecordError, match=r'nothing\.json'):
        read_record(tmp_path / 'nothing.json')


def test_summary_file_gives_value_unit_and_level_of_each_metric(record, tmp_path):
    path = tmp_path / 'summary.json'
    write_summary(record, path)
    document = json.loads(path.read_text(encoding='utf-8'))
    assert document['metrics']['latency'] == {
        'value': pytest.approx(50.0),
        'unit': 'ms',
        'level': MEASURED,
    }
    assert document['run'] == 'by hand'


def test_stages_read_with_their_last_unit():
    spans = (StageSpan('a', 0, 5), StageSpan('b', 5, 6))
    assert describe_stages(spans) == 'a: 0-4 → b: 5'


@pytest.mark.parametrize(
    ('value', 'text'),
    [(None, '-'), (math.nan, '-'), (0.0, '0'), (3.0, '3'), (41.26, '41.3'), (0.04126, '0.0413')],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ('count', 'text'), [(0, '0 B'), (999, '999 B'), (150528, '150.5 kB'), (2e6, '2 MB')]
)
def test_sizes_have_a_prefix(count, text):
    assert size(count) == text


def printed(function, *arguments, width=80, encoding='utf-8'):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    function(*arguments, Console(file=stream, width=width))
    stream.flush()
    return raw.getvalue().decode(encoding)


def test_printed_summary_has_figures_levels_and_fits_the_terminal(record):
    text = printed(print_summary, record)
    assert max(map(len, text.splitlines())) <= 80
    assert '\x1b' not in text
    for words in ('first plan', '30.0 %', '400 mJ/frame', '450 B/frame', 'emulated', '1 lost'):
        assert words in text
    for name in summarise(record).metrics:
        assert name in text


def test_tables_print_on_an_ascii_terminal(record):
    text = printed(print_summary, record, encoding='ascii')
    assert text.isascii()
    rows = [PlanRow('exact', 'car: 0-1 → rsu: 2-3', 0.3, 0.04, 0.02)]
    assert 'car: 0-1 -> rsu: 2-3' in printed(print_plan_table, rows, encoding='ascii', width=100)


def test_plan_table_marks_the_chosen_plan_and_leaves_names_unread():
    rows = [
        PlanRow('exact', 'car: 0-1', 0.3, 0.04, 0.02, chosen=True),
        PlanRow('[bold]x', 'car: 0-3', 0.8, 0.1, math.inf, 'too slow'),
    ]
    chosen, other = (
        line
        for line in printed(print_plan_table, rows).splitlines()
        if 'exact' in line or '[bold]x' in line
    )
    assert chosen.strip().startswith('*')
    assert chosen.split()[-3:] == ['300', '40', '20']
    assert not other.strip().startswith('*')
    assert 'too slow' in other


def test_shares_and_absent_figures_read_well(record):
    summary = summarise(record)
    assert show(summary.accuracy) == '-'
    assert show(summary.busiest_share) == '33.3 %'
    assert np.isclose(summary.busiest_share.value, 1 / 3)

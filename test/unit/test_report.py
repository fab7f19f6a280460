import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from lapdtr_ros.evaluation import charts
from lapdtr_ros.evaluation.report import ReportError, ReportImage, render_report, write_report
from lapdtr_ros.evaluation.run_record import (
    EMULATED,
    FINISHED,
    LOST,
    ROADSIDE,
    SIMULATED,
    VEHICLE,
    AccuracyRecord,
    BaselineRecord,
    DeviceRecord,
    Equivalence,
    FrameRecord,
    HostRecord,
    PlanRecord,
    RunRecord,
    StageRecord,
    StageSpan,
    StreamPlanRecord,
    TelemetryRecord,
)
from lapdtr_ros.evaluation.svg import roof, ticks
from lapdtr_ros.evaluation.tables import print_summary

STREAM = 'cav_0/camera0'
PICTURE_BYTES = 224 * 224 * 3
FEATURE_BYTES = 196 * 192 * 4
RESULT_BYTES = 4000
# (device, start, stop, compute seconds, joules)
BEFORE = (('cav_0', 0, 6, 0.034, 0.31), ('rsu_0', 6, 14, 0.012, 0.12))
AFTER = (('cav_0', 0, 1, 0.006, 0.06), ('cav_1', 1, 6, 0.027, 0.16), ('rsu_0', 6, 14, 0.012, 0.12))
CHANGE_S = 3.0


def plan(epoch, time_s, reason, stages):
    spans = tuple(StageSpan(device, start, stop) for device, start, stop, _, _ in stages)
    stream = StreamPlanRecord(STREAM, 'cav_0', 'cav_0', spans, 0.43, 0.058, 0.034)
    return PlanRecord(epoch, time_s, reason, 'exact', (stream,))


def run_frames(count=120, period_s=0.05, change_at=60, seed=7):
    """Frames through a pipeline of devices that each serve one frame at a time."""
    noise = np.random.default_rng(seed)
    free_s = {}
    for seq in range(count):
        sent_s = 0.2 + seq * period_s
        epoch, layout = (1, BEFORE) if seq < change_at else (2, AFTER)
        now, stages = sent_s, []
        for index, (device, start, stop, compute_s, energy_j) in enumerate(layout):
            arrived = now + 0.003
            begin = max(arrived, free_s.get(device, 0.0))
            work = compute_s * noise.normal(1.0, 0.06)
            now = free_s[device] = begin + work
            stages.append(
                StageRecord(
                    device,
                    start,
                    stop,
                    begin - arrived,
                    work,
                    PICTURE_BYTES if index == 0 else FEATURE_BYTES,
                    RESULT_BYTES if index == len(layout) - 1 else FEATURE_BYTES,
                    energy_j * noise.normal(1.0, 0.03),
                    begin,
                )
            )
        yield FrameRecord(
            STREAM, seq, epoch, sent_s, now + 0.003 - sent_s, FINISHED, PICTURE_BYTES, tuple(stages)
        )


def realistic_record(**changes):
    times = np.arange(0.0, 6.5, 0.5)
    telemetry = [
        TelemetryRecord(float(t), name, soc - slope * float(t), float(t) * 4, 0.6, 1)
        for name, soc, slope in (('cav_0', 0.26, 0.018), ('cav_1', 0.91, 0.008))
        for t in times
    ]
    record = RunRecord(
        name='platoon-demo',
        scenario='two_cars_one_rsu',
        started_at='2025-06-01T10:15:00+00:00',
        model='vit_tiny_patch16_224',
        weights='random:0',
        host=HostRecord('Example CPU @ 3.0 GHz', 4, 1),
        devices=(
            DeviceRecord('cav_0', 'raspberry_pi_4', VEHICLE, 36000.0, 2e9, 1.2e7),
            DeviceRecord('cav_1', 'jetson_tx2', VEHICLE, 72000.0, 6e9, 1.0e7),
            DeviceRecord('cav_2', 'jetson_tx2', VEHICLE, 72000.0),
            DeviceRecord('rsu_0', 'jetson_xavier_nx', ROADSIDE),
        ),
        plans=(
            plan(1, 0.0, 'first plan', BEFORE),
            plan(2, CHANGE_S, 'battery of cav_0 fell below its reserve of 21 %', AFTER),
        ),
        frames=tuple(run_frames()),
        telemetry=tuple(telemetry),
        equivalence=Equivalence(120, 2.4e-6, 'whole model on this host'),
        baselines=(
            BaselineRecord('best single device (rsu_0)', 0.52, 0.049, EMULATED),
            BaselineRecord('whole model on the source (cav_0)', 1.1, 0.121, EMULATED),
        ),
        unit_flops=(1.2e8, *[2.05e8] * 12, 4e5),
        command='lapdtr run two_cars_one_rsu --frames 120 --out out/platoon-demo',
    )
    return replace(record, **changes)


def lose(frame):
    return replace(frame, outcome=LOST, latency_s=math.nan, stages=frame.stages[:1])


def without_energy(frame):
    stage = replace(frame.stages[-1], energy_j=math.nan)
    return replace(frame, stages=(*frame.stages[:-1], stage))


def without_clocks(frame):
    return replace(frame, stages=tuple(replace(s, start_s=None) for s in frame.stages))


class Page(HTMLParser):
    """Structure of a report: sections, headings, texts, and whether its tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.open, self.texts, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == 'section':
            self.sections.append(attributes.get('id'))
        if tag not in {'meta', 'img'}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())

    @property
    def text(self):
        return ' '.join(self.texts)

    def classes(self, name):
        return sum(name in a.get('class', '').split() for _, a in self.tags)


SECTIONS = [
    'headline',
    'plans',
    'timeline',
    'latency',
    'energy',
    'batteries',
    'pictures',
    'figures',
    'reading',
]


def test_report_has_every_section_and_the_figures_with_their_levels():
    page = Page(render_report(realistic_record()))
    assert page.sections == SECTIONS
    for words in (
        'platoon-demo',
        'battery of cav_0 fell below its reserve',
        'Change to plan 2',
        '150.5 kB',
        'emulated',
        'measured',
        'Split equals unsplit',
        'lapdtr run two_cars_one_rsu',
        'best single device (rsu_0): 520 mJ',
    ):
        assert words in page.text


def test_report_refers_to_nothing_outside_itself():
    picture = np.zeros((4, 4, 3), np.uint8)
    text = render_report(realistic_record(), [ReportImage('camera', picture)])
    assert not re.search(r'https?://(?!www\.w3\.org/2000/svg)', text)
    for tag, attributes in Page(text).tags:
        assert tag not in {'script', 'link', 'iframe', 'object'}
        for name in ('src', 'href', 'xlink:href'):
            assert attributes.get(name, 'data:').startswith('data:')


def test_every_style_class_of_a_drawing_is_known_to_the_style_sheet():
    frames = tuple(lose(f) if f.seq == 60 else without_energy(f) for f in run_frames())
    pages = [Page(render_report(realistic_record(**c))) for c in ({}, {'frames': frames})]
    used = {
        name
        for page in pages
        for tag, attributes in page.tags
        if tag in {'rect', 'path', 'circle', 'text'}
        for name in attributes.get('class', '').split()
    }
    assert {'epoch-0', 'device-2', 'lost', 'unknown'} <= used
    # A solid first curve needs no dashes of its own.
    assert {name for name in used if f'.{name}' not in pages[0].text} == {'dash-0'}


def test_names_are_not_read_as_markup():
    record = realistic_record(name='<script>alert(1)</script>', command='a && b < c')
    text = render_report(record)
    assert '<script>' not in text
    assert 'a &amp;&amp; b &lt; c' in text


def test_report_of_a_run_without_frames():
    page = Page(render_report(realistic_record(frames=(), telemetry=(), equivalence=None)))
    assert [s for s in SECTIONS if s != 'batteries'] == page.sections
    assert 'Needs attention' in page.text
    assert 'no frame finished under this plan' in page.text


def test_report_of_a_run_that_never_got_a_plan():
    page = Page(
        render_report(
            realistic_record(frames=(), plans=(), unit_flops=(), devices=(), telemetry=())
        )
    )
    assert 'No plan was recorded' in page.text


def test_report_shows_lost_frames():
    frames = tuple(lose(f) if 58 <= f.seq < 63 else f for f in run_frames())
    page = Page(render_report(realistic_record(frames=frames)))
    assert 'Needs attention' in page.text
    assert '115 of 120 frames finished, 5 lost' in page.text
    # Each in the timeline and in the latency chart.
    assert page.classes('lost') == 2 * 5


def test_report_of_a_run_where_all_frames_were_lost():
    page = Page(render_report(realistic_record(frames=tuple(map(lose, run_frames(20))))))
    assert '0 of 20 frames finished, 20 lost' in page.text


def test_frames_of_unknown_energy_leave_a_gap_and_no_nan():
    frames = tuple(without_energy(f) if f.seq < 60 else f for f in run_frames())
    text = render_report(realistic_record(frames=frames))
    page = Page(text)
    assert page.classes('unknown') > 0
    assert 'nan' not in re.sub(r'<style>.*</style>', '', text, flags=re.S).lower()


def test_no_known_energy_at_all_leaves_only_gaps():
    text = render_report(realistic_record(frames=tuple(map(without_energy, run_frames()))))
    assert '>nan' not in text.lower()
    assert Page(text).classes('unknown') > 0


def test_estimated_starts_are_hollow_and_told():
    exact = Page(render_report(realistic_record()))
    guessed = Page(render_report(realistic_record(frames=tuple(map(without_clocks, run_frames())))))
    assert exact.classes('guessed') == 0
    assert 'estimated start' not in exact.text
    assert guessed.classes('guessed') > 0
    assert 'estimated start' in guessed.text


def test_baselines_of_another_level_are_not_drawn_beside_the_run():
    far = (BaselineRecord('whole model, simulated', 1.0, 0.1, SIMULATED),)
    page = Page(render_report(realistic_record(baselines=far)))
    assert page.classes('baseline') == 0
    assert 'other-bar' not in {a.get('class') for _, a in page.tags}
    assert 'energy of whole model, simulated 1000 mJ/frame (simulated)' in page.text


def test_the_size_of_a_report_does_not_grow_with_the_run():
    short = render_report(realistic_record())
    frames = tuple(run_frames(5000, change_at=2500))
    readings = tuple(
        TelemetryRecord(i * 0.5, name, 0.5, 1.0, 0.5, 0)
        for i in range(500)
        for name in ('cav_0', 'cav_1')
    )
    long = render_report(realistic_record(frames=frames, telemetry=readings))
    assert len(long) < 2 * len(short)


def test_plan_drawing_has_a_bar_per_stage_and_lanes_that_compare():
    record = realistic_record()
    first, second = (
        Page(str(charts.plan_figure(record, p, p.streams[0], ()))) for p in record.plans
    )
    bars = [sum(tag == 'rect' for tag, _ in page.tags) for page in (first, second)]
    assert bars == [2, 3]
    assert all('cav_1' in page.text for page in (first, second))
    assert 'cav_2' not in first.text


def test_timeline_shows_frames_on_both_sides_of_the_change():
    (window,) = charts.windows(realistic_record())
    assert window.epoch == 2
    assert {frame.epoch for frame in window.frames} == {1, 2}
    (steady,) = charts.windows(realistic_record(frames=tuple(run_frames(30, change_at=99))))
    assert steady.epoch is None


def test_images_are_embedded_and_shrunk(tmp_path):
    wide = np.zeros((20, 4000, 3), np.uint8)
    path = tmp_path / 'report.html'
    write_report(realistic_record(), path, [ReportImage('camera', wide, 'what there is')])
    page = Page(path.read_text(encoding='utf-8'))
    (source,) = (a['src'] for tag, a in page.tags if tag == 'img')
    with Image.open(io.BytesIO(base64.b64decode(source.partition(',')[2]))) as picture:
        assert picture.size == (960, 5)
    assert 'what there is' in page.text


def test_an_image_of_another_kind_is_refused():
    with pytest.raises(ReportError, match="'odd' is neither PNG nor JPEG"):
        render_report(realistic_record(), [ReportImage('odd', b'GIF89a')])


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ReportError, match='choose another path'):
        write_report(realistic_record(), tmp_path / 'no' / 'report.html')


@pytest.mark.parametrize(
    ('low', 'high', 'expected'),
    [(0, 60, [0, 20, 40, 60]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3, 3, [3])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high, 5) == expected


def test_one_slow_frame_does_not_press_the_others_to_the_ground():
    assert roof([50.0] * 99 + [5000.0]) < 100
    assert roof([math.nan]) > 0


PROTOCOL = {
    'split': 'two scenes',
    'sort': 'global',
    'cameras': [0, 3],
    'communication_range_m': 70.0,
    'limits': {'x': [-51.2, 51.2], 'y': [-40, 40], 'z': [-3.0, 1.0]},
}


def test_what_the_ego_and_all_vehicles_find_is_told_with_what_it_depends_on():
    together = AccuracyRecord(0.61, 0.4321, 0.1, 9, 250, 300, PROTOCOL)
    alone = AccuracyRecord(0.3, 0.1234, 0.05, 9, 250, 80, PROTOCOL)
    record = realistic_record(accuracy=together, accuracy_alone=alone)
    page = render_report(record)
    for text in ('0.432', '0.123', '9 moments of two scenes', 'y -40 to 40 m', 'cameras 0, 3'):
        assert text in page
    assert 'id="detections"' not in render_report(realistic_record())

    console = Console(width=90, file=io.StringIO())
    print_summary(record, console)
    told = console.file.getvalue()
    assert '0.432' in told
    assert '0.123' in told
    assert 'global sort' in told


def test_wide_pictures_take_the_whole_page():
    narrow = ReportImage('a', np.zeros((10, 20, 3), np.uint8))
    wide = ReportImage('b', np.zeros((10, 1288, 3), np.uint8))
    page = render_report(realistic_record(), [narrow, wide])
    assert page.count('<figure class="wide">') == 1


def test_streams_with_one_plan_share_a_drawing():
    record = realistic_record()
    first = record.plans[0].streams[0]
    other = replace(first, stream='cav_0/camera3')
    plans = (replace(record.plans[0], streams=(first, other)), *record.plans[1:])
    assert f'<b>{first.stream}, cav_0/camera3</b>' in render_report(replace(record, plans=plans))
    unlike = (replace(plans[0], streams=(first, replace(other, energy_j=9.0))), *plans[1:])
    assert '<b>cav_0/camera3</b>' in render_report(replace(record, plans=unlike))

import dataclasses
import io
import math

from rich.console import Console

from lapdtr_ros.evaluation.overview import SILENT_S, DeviceState, FleetOverview
from lapdtr_ros.execution.frames import FINISHED, LOST, FrameOutcome, StageRecord
from lapdtr_ros.planning.plan import CutSetting, FleetPlan, Plan, Stage, StreamDecision

STREAM = 'cav_1/camera0'
NANO = DeviceState('cav_1', 'jetson_nano', 'emulated', 0.5, False, 6.25, 0.8, 2, 3)


def shown(overview, now_s, width=110):
    console = Console(file=io.StringIO(), width=width)
    console.print(overview.render(now_s))
    return console.file.getvalue()


def plan(epoch, reason='a reason'):
    cut = CutSetting(keep=64, form='cluster', bits=4)
    stages = (Stage('cav_1', 0, 3, 2, cut), Stage('rsu_1', 3, 14))
    content = Plan(STREAM, 'm', 'cav_1', 'cav_1', stages)
    decision = StreamDecision(content, 'w', 0.2, 0.1, 0.05)
    return FleetPlan(epoch, 'planner', 'exact', reason, {STREAM: decision})


def outcome(seq, latency_s=0.1, kind=FINISHED):
    record = StageRecord('cav_1', 0, 3, 0, 0.0, 0.05, 0, 0, 0.25)
    return FrameOutcome(STREAM, seq, 3, kind, latency_s, 0, trace=(record, record))


def test_a_silent_fleet_says_what_to_check():
    assert 'ROS_DOMAIN_ID' in shown(FleetOverview(0.0), 4.0)


def test_the_plan_shows_levels_and_how_features_are_packed():
    overview = FleetOverview(0.0)
    overview.add_plan(plan(3), 'battery', 1.0)
    text = shown(overview, 2.0)
    for part in ('cav_1: 0-2, level 2 (64 tokens, 4 bit)', 'rsu_1: 3-13', 'battery', 'a reason'):
        assert part in text


def test_an_old_plan_does_not_replace_a_newer_one():
    overview = FleetOverview(0.0)
    overview.add_plan(plan(3, 'new'), 'first', 1.0)
    overview.add_plan(plan(2, 'stale'), 'first', 2.0)
    assert 'stale' not in shown(overview, 2.0)


def test_figures_are_those_of_the_last_seconds():
    overview = FleetOverview(0.0)
    overview.add_outcome(outcome(0, latency_s=7.0), 1.0)
    for seq in range(1, 21):
        overview.add_outcome(outcome(seq), 90.0 + seq / 10)
    overview.add_outcome(outcome(21, kind=LOST), 92.0)
    line = next(line for line in shown(overview, 92.0).splitlines() if STREAM in line)
    figures = line.split()
    assert figures[figures.index('yet') + 1] == '2'  # frames per second
    assert figures.count('100') == 2  # both percentiles, ms
    assert '500' in figures  # mJ
    assert '21' in figures  # finished since the beginning


def test_devices_show_battery_or_mains_and_their_trouble():
    overview = FleetOverview(0.0)
    overview.add_device(NANO, 1.0)
    mains = dataclasses.replace(NANO, name='rsu_1', on_mains=True, power_w=math.nan, note='refused')
    overview.add_device(mains, 1.0)
    text = shown(overview, 1.5)
    assert '50' in text
    assert 'mains' in text
    assert 'refused' in text
    assert 'silent' not in text


def test_a_device_that_stopped_talking_is_marked():
    overview = FleetOverview(0.0)
    overview.add_device(NANO, 1.0)
    assert 'silent for 4 s' in shown(overview, 1.0 + SILENT_S + 1.0)


def test_eighty_columns_are_enough():
    overview = FleetOverview(0.0)
    overview.add_plan(plan(3, 'word ' * 60), 'lost', 1.0)
    overview.add_device(NANO, 1.0)
    overview.add_outcome(outcome(0), 1.0)
    text = shown(overview, 2.0, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert 'jetson' in text

import math

import numpy as np
import pytest

pytest.importorskip('rerun')

from lapdtr_ros.evaluation.live_view import LiveView, LiveViewError, page_address
from lapdtr_ros.evaluation.overview import DeviceState
from lapdtr_ros.execution.frames import FINISHED, LOST, FrameOutcome, StageRecord
from lapdtr_ros.perception.boxes import Boxes
from lapdtr_ros.perception.cooperation import COMPLETE, FusedFrame
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision

STREAM = 'cav_1/camera0'


def fill(view):
    stages = (Stage('cav_1', 0, 3), Stage('rsu_1', 3, 14))
    plan = Plan(STREAM, 'm', 'cav_1', 'cav_1', stages)
    decision = StreamDecision(plan, 'w', 0.2, 0.1, 0.05)
    view.add_device(DeviceState('idle_1', 'c', 'modelled', 1.0, True, math.nan, 0.0, 0, 0), 0.0)
    view.add_plan(FleetPlan(1, 'p', 'exact', 'a reason', {STREAM: decision}), 'first', 0.5)
    view.add_device(DeviceState('cav_1', 'c', 'emulated', 0.5, False, 6.0, 0.8, 2, 1), 1.0)
    record = StageRecord('cav_1', 0, 3, 0, 0.0, 0.05, 0, 0, 0.25)
    view.add_outcome(FrameOutcome(STREAM, 0, 1, FINISHED, 0.1, 0, trace=(record,)), 1.5)
    view.add_outcome(FrameOutcome(STREAM, 1, 1, LOST, 0.1, 0), 2.0)
    view.add_picture(STREAM, np.zeros((24, 32, 3), np.uint8), 2.5)
    boxes = Boxes.from_vectors([[10, 5, 0, 4, 2, 1.5, 0.3]], [0.9])
    streams = (STREAM,)
    view.add_fused(FusedFrame(0, 'cav_1', 'nms', COMPLETE, streams, (), (), 0.0, 0, boxes), 3.0)


def test_everything_is_in_the_recording(tmp_path):
    from rerun.chunk import RrdReader

    path = tmp_path / 'run' / 'view.rrd'
    view = LiveView(save=path)
    fill(view)
    view.close()
    assert path.stat().st_size > 1000
    store = RrdReader(path).store()
    paths = {str(p) for p in store.schema().entity_paths()}
    assert {
        '/decisions',
        '/fleet',
        f'/latency/{STREAM}',
        f'/energy/{STREAM}',
        '/battery/cav_1',
        '/load/idle_1',
        f'/cameras/{STREAM}',
        '/scene/detections',
    } <= paths
    assert '/battery/idle_1' not in paths
    assert '/power/idle_1' not in paths


def test_a_taken_port_is_named():
    view = LiveView(web_port=19490, grpc_port=19491)
    assert view.address == page_address(19490, 19491)
    try:
        fill(view)
        with pytest.raises(LiveViewError, match='19490'):
            LiveView(web_port=19490, grpc_port=19491)
    finally:
        view.close()

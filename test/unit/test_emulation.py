"""Paced computing, shaped links and measured hops, on clocks of our own."""

import math
import threading
import time
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapdtr_ros.execution.emulation import (
    EmulationError,
    LinkEstimator,
    LinkFigures,
    Pacer,
    PaceSettings,
    Postman,
    ShapedLink,
    hop_seconds,
)
from lapdtr_ros.execution.frames import StageRecord
from lapdtr_ros.planning.fleet import Link


class Clock:
    """Goes on when somebody sleeps, and a little at every look, as real ones do."""

    def __init__(self, step=1e-5):
        self.now = 50.0
        self.step = step
        self.slept = []

    def __call__(self):
        self.now += self.step
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def pacer(clock, **settings):
    return Pacer(PaceSettings(**settings), clock, clock.sleep)


def test_a_fast_machine_waits_for_the_class():
    clock = Clock()
    held = pacer(clock, emulate=True)
    began = clock.now
    clock.now += 0.02
    paced = held.hold(0.1, began)
    assert paced.took_s == pytest.approx(0.1, abs=1e-3)
    assert paced.ratio == pytest.approx(1.0, abs=0.01)
    assert held.behind == 0


def test_a_slow_machine_says_by_how_much():
    clock = Clock()
    held = pacer(clock, emulate=True)
    began = clock.now
    clock.now += 0.3
    paced = held.hold(0.1, began)
    assert not clock.slept
    assert paced.took_s == pytest.approx(0.3, abs=1e-3)
    assert paced.ratio == pytest.approx(3.0, rel=0.01)
    assert (held.stages, held.behind) == (1, 1)
    assert held.worst == pytest.approx(3.0, rel=0.01)


def test_slow_motion_lets_a_machine_emulate_a_faster_one():
    clock = Clock()
    held = pacer(clock, emulate=True, time_scale=0.1)
    began = clock.now
    clock.now += 0.3
    paced = held.hold(0.1, began)
    assert paced.took_s == pytest.approx(1.0, abs=1e-3)
    assert paced.ratio == pytest.approx(1.0, abs=0.01)
    assert held.behind == 0


def test_a_slowdown_shows_as_ratio_with_and_without_emulation():
    for emulate in (True, False):
        clock = Clock()
        held = pacer(clock, emulate=emulate, slowdown=2.0)
        began = clock.now
        clock.now += 0.05
        paced = held.hold(0.05, began)
        assert paced.took_s == pytest.approx(0.1, abs=1e-3)
        assert paced.ratio == pytest.approx(2.0, rel=0.01)


def test_without_emulation_another_class_is_no_deviation_but_the_own_class_is():
    for of_class, ratio in ((False, 1.0), (True, 4.0)):
        clock = Clock()
        held = pacer(clock, of_class=of_class)
        began = clock.now
        clock.now += 0.2
        assert held.hold(0.05, began).ratio == pytest.approx(ratio, rel=0.01)
        assert not clock.slept


def test_ratio_is_unknown_before_the_first_stage_and_after_a_change():
    clock = Clock()
    held = pacer(clock, emulate=True)
    assert math.isnan(held.ratio)
    held.hold(0.01, clock.now)
    assert held.ratio == pytest.approx(1.0, abs=0.05)
    held.forget()
    assert math.isnan(held.ratio)


def test_real_waiting_is_precise():
    held = Pacer(PaceSettings(emulate=True))
    began = time.monotonic()
    held.hold(0.02, began)
    # Only the lower bound is certain on a busy machine.
    assert time.monotonic() - began >= 0.02


@pytest.mark.parametrize(
    'settings',
    [
        {'slowdown': 0.5},
        {'slowdown': math.inf},
        {'slowdown': math.nan},
        {'time_scale': 0.0},
        {'time_scale': math.nan},
    ],
)
def test_impossible_paces_are_refused_by_name(settings):
    with pytest.raises(EmulationError, match=r'slowdown|time_scale'):
        PaceSettings(**settings)


def test_a_message_takes_transfer_and_delay():
    link = ShapedLink(LinkFigures(1000.0, 0.5))
    assert link.arrival(2000, 10.0, 1.0) == pytest.approx(12.5)


def test_messages_wait_for_the_link_and_not_for_the_delay():
    link = ShapedLink(LinkFigures(1000.0, 0.5))
    link.arrival(1000, 10.0, 1.0)
    assert link.arrival(1000, 10.0, 1.0) == pytest.approx(12.5)
    # Free again: only its own transfer and delay count.
    assert link.arrival(1000, 20.0, 1.0) == pytest.approx(21.5)


def test_slow_motion_stretches_links():
    link = ShapedLink(LinkFigures(1000.0, 0.5))
    assert link.arrival(1000, 10.0, 0.1) == pytest.approx(25.0)


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.floats(0.0, 0.1)), min_size=1, max_size=50),
    st.floats(0.0, 0.2),
    st.floats(0.0, 0.5),
)
def test_order_rate_and_delay_hold_under_jitter_and_loss(messages, jitter, loss):
    figures = LinkFigures(50_000.0, 0.01, jitter, loss)
    link, now, last = ShapedLink(figures, 'seed'), 0.0, -math.inf
    sent = 0
    for size, pause in messages:
        now += pause
        sent += size
        arrival = link.arrival(size, now, 1.0)
        assert arrival >= last
        assert arrival >= now + size / 50_000.0 + max(0.0, 0.01 - jitter) - 1e-9
        assert arrival >= sent / 50_000.0
        last = arrival


def test_jitter_spreads_the_delay_and_keeps_its_mean():
    link = ShapedLink(LinkFigures(math.inf, 0.01, 0.004))
    delays = [link.arrival(10, float(now), 1.0) - now for now in range(4000)]
    assert fmean(delays) == pytest.approx(0.01, rel=0.05)
    assert stdev(delays) == pytest.approx(0.004, rel=0.15)


def test_jitter_is_the_same_for_the_same_seed():
    def arrivals(seed):
        link = ShapedLink(LinkFigures(1e6, 0.01, 0.02, 0.1), seed)
        return [link.arrival(10, float(i), 1.0) for i in range(20)]

    assert arrivals('a > b') == arrivals('a > b')
    assert arrivals('a > b') != arrivals('b > a')


def test_figures_of_a_link_change_at_run_time():
    link = ShapedLink(LinkFigures(1000.0, 0.0))
    assert link.arrival(1000, 0.0, 1.0) == pytest.approx(1.0)
    link.change(LinkFigures(100.0, 0.0), 5.0)
    assert link.arrival(1000, 5.0, 1.0) == pytest.approx(15.0)


def test_a_backlog_goes_at_the_new_rate():
    link = ShapedLink(LinkFigures(1000.0, 0.0))
    assert link.arrival(4000, 0.0, 1.0) == pytest.approx(4.0)
    link.change(LinkFigures(2000.0, 0.0), 2.0)
    assert link.arrival(2000, 2.0, 1.0) == pytest.approx(4.0)
    link.change(LinkFigures(math.inf, 0.0), 3.0)
    assert link.arrival(10**6, 3.0, 1.0) == pytest.approx(3.0)


def test_the_postman_delivers_in_time_and_order_without_blocking():
    postman, delivered, done = Postman(), [], threading.Event()
    began = time.monotonic()
    postman.deliver(began + 0.10, lambda: (delivered.append('late'), done.set()))
    postman.deliver(began + 0.05, lambda: delivered.append('first'))
    postman.deliver(began + 0.05, lambda: delivered.append('second'))
    assert time.monotonic() - began < 0.05
    assert len(postman) == 3
    assert done.wait(5.0)
    assert delivered == ['first', 'second', 'late']
    assert time.monotonic() - began >= 0.1
    postman.close()


def test_a_closed_postman_drops_what_waits():
    postman, delivered = Postman(), []
    postman.deliver(time.monotonic() + 0.05, lambda: delivered.append(1))
    postman.close()
    time.sleep(0.1)
    assert not delivered


def record(device, start, stop, started_s, compute_s=0.0, queue_s=0.0, sent=100):
    return StageRecord(
        device, start, stop, round(started_s * 1e9), queue_s, compute_s, 10, sent, 0.0
    )


def test_a_hop_lasts_from_the_end_of_a_stage_to_its_arrival():
    trace = (
        record('a', 0, 3, started_s=1.0, compute_s=0.2, sent=500),
        record('b', 3, 5, started_s=1.5, queue_s=0.1),
    )
    target, size, seconds = hop_seconds(trace, 'a')
    assert (target, size) == ('b', 500)
    assert seconds == pytest.approx(0.2)
    assert hop_seconds(trace, 'b') is None


def test_hops_that_clocks_make_negative_or_that_resume_elsewhere_are_not_counted():
    early = (record('a', 0, 3, 1.0, compute_s=0.2), record('b', 3, 5, 1.1))
    assert hop_seconds(early, 'a') is None
    gap = (record('a', 0, 3, 1.0), record('b', 2, 5, 1.5))
    assert hop_seconds(gap, 'a') is None


def test_large_messages_measure_the_rate_and_small_ones_the_delay():
    estimator = LinkEstimator(Link('a', 'b', bytes_per_s=1000.0, latency_s=0.1))
    assert math.isnan(estimator.bytes_per_s)
    estimator.add(1000, 2.1)
    assert estimator.bytes_per_s == pytest.approx(500.0)
    assert math.isnan(estimator.delay_s)
    estimator.add(10, 0.31)
    assert estimator.delay_s == pytest.approx(0.3)


def test_one_stray_hop_does_not_move_the_estimate():
    estimator = LinkEstimator(Link('a', 'b', bytes_per_s=1000.0, latency_s=0.0))
    for seconds in (1.0, 1.0, 30.0, 1.0, 1.0):
        estimator.add(1000, seconds)
    assert estimator.bytes_per_s == pytest.approx(1000.0)


def test_a_stalled_message_ends_what_was_known_of_a_link():
    estimator = LinkEstimator(Link('a', 'b', bytes_per_s=1000.0, latency_s=0.0))
    for _ in range(5):
        estimator.add(1000, 1.0)
    estimator.stall(1000, 4.0)
    assert estimator.bytes_per_s == pytest.approx(250.0)


@given(st.floats(1e3, 1e7), st.floats(0.0, 0.1), st.integers(1, 10**6))
def test_the_estimate_of_an_ideal_link_is_its_figures(rate, delay, size):
    link = Link('a', 'b', rate, delay)
    estimator = LinkEstimator(link)
    estimator.add(size, ShapedLink(LinkFigures(rate, delay)).arrival(size, 0.0, 1.0))
    found = (estimator.bytes_per_s / rate, estimator.delay_s / max(delay, 1e-12))
    assert any(math.isclose(v, 1.0, rel_tol=1e-4) for v in found) or delay + size / rate < 1e-6

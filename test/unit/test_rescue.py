"""The protocol that rides out losses, without ROS: any order of messages, any loss."""

import collections

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lapdtr_ros.execution.device import (
    Delivery,
    DeviceCore,
    DuplicateFrameError,
    Holding,
    Job,
    RefusedFrameError,
    RefusedReportError,
    run_job,
)
from lapdtr_ros.execution.frames import Feature, Packet
from lapdtr_ros.execution.recovery import DeviceWatch, Recovery, has_gone
from lapdtr_ros.execution.rescue import Rescue
from lapdtr_ros.execution.source import EpochGate, FrameLedger, InFlight
from lapdtr_ros.planning.plan import FleetPlan, Plan, Stage, StreamDecision
from lapdtr_ros.planning.profile import ModelProfile, UnitProfile

STREAM = 'cav_0/camera0'
UNITS = 6
PROFILE = ModelProfile(
    'toy', (2, 2, 3), tuple(UnitProfile(f'u{i}', 1e6, 100, (1, 1), 4) for i in range(UNITS))
)
NAMES = ('a', 'b', 'c', 'd')


class Recorder:
    """Units that add their number + 1 and remember that they ran."""

    def __init__(self, runs):
        self.runs = runs

    def run_packet(self, packet, start, stop, cut):
        total = packet.to_array().astype(np.float32).max() + sum(range(start + 1, stop + 1))
        self.runs.append((start, stop))
        return Packet.of_array(np.full((1, 1, 1), total, np.float32))


def fleet_plan(epoch, *stages):
    plan = Plan(STREAM, 'toy', 'a', 'a', tuple(Stage(*stage) for stage in stages))
    decision = StreamDecision(plan, 'random:0', 0.0, 0.0, 0.0)
    return FleetPlan(epoch, 'planner', 'exact', 'test', {STREAM: decision})


class World:
    """A source, devices and a network that delivers when it is told to."""

    def __init__(self):
        self.now = 0.0
        self.ledger = FrameLedger(4, 1e9)
        self.gate = EpochGate(STREAM)
        self.rescue = Rescue(STREAM, self.ledger, self.gate)
        self.cores, self.jobs, self.runs = {}, {}, {}
        self.lives = collections.Counter()
        self.frozen = set()
        self.links = collections.defaultdict(collections.deque)
        self.results = {}
        self.duplicates = 0
        self.seq = 0
        self.plan = None
        for name in NAMES:
            self.start(name)

    def start(self, name):
        self.lives[name] += 1
        self.cores[name] = DeviceCore(name, lambda model: PROFILE, lambda plan, stream: 0.0)
        self.jobs[name], self.runs[name] = collections.deque(), []
        if self.plan is not None:
            self.give(name, self.plan)
        self.report(name)

    def give(self, name, plan):
        for key in self.cores[name].apply(plan):
            self.cores[name].loaded_stage(key, Recorder(self.runs[name]))

    def report(self, name):
        if name in self.cores and name not in self.frozen:
            epochs = list(self.cores[name].ready_epochs())
            self.rescue.heard(name, str(self.lives[name]), epochs)

    def alive(self):
        return [name for name in NAMES if name in self.cores and name not in self.frozen]

    def replan(self, cuts):
        """The planner's part: a plan over the devices that are there."""
        names = self.alive()
        if not names:
            return
        cuts = sorted({1 + cut % (UNITS - 1) for cut in cuts})[: len(names) - 1]
        bounds = [0, *cuts, UNITS]
        turn = sum(cuts) % len(names)
        names = names[turn:] + names[:turn]
        stages = zip(names, bounds[:-1], bounds[1:], strict=False)
        self.plan = fleet_plan((self.plan.epoch if self.plan else 0) + 1, *stages)
        self.gate.add_plan(self.plan)
        for name in self.alive():
            self.give(name, self.plan)
            self.report(name)

    def send_frame(self):
        plan = self.gate.current()
        if plan is None or not self.ledger.may_send:
            return
        packet = Packet.of_array(np.full(PROFILE.picture_shape, self.seq % 7, np.uint8), 'raw')
        path = self.rescue.path(plan)
        frame = InFlight(self.seq, plan.epoch, self.now, 0, '', packet, path, self.now)
        self.ledger.sent(frame)
        self.seq += 1
        self.post('source', path[0].device, self.feature(frame, 0))

    @staticmethod
    def feature(frame, round):
        return Feature(STREAM, frame.seq, frame.epoch, 0, frame.packet, round=round)

    def post(self, sender, target, output):
        self.links[sender, target].append((self.lives[target], output))

    def deliver(self, link):
        _, target = link
        life, output = self.links[link].popleft()
        if target == 'source':
            frame = self.ledger.finished(output.seq)
            if frame is not None:
                assert output.seq not in self.results
                self.results[output.seq] = output
            return
        if target not in self.cores or life != self.lives[target]:
            return  # it was on its way to a process that is gone
        try:
            self.follow(target, self.cores[target].accept(output, self.now))
        except DuplicateFrameError:
            self.duplicates += 1
        except RefusedFrameError:
            assert self.cores[target].newest_epoch < output.epoch

    def follow(self, name, step):
        if isinstance(step, Job):
            self.jobs[name].append(step)
        elif isinstance(step, Delivery):
            self.post(name, step.target or 'source', step.output)

    def work(self, name):
        if self.jobs[name] and name not in self.frozen and name in self.cores:
            job = self.jobs[name].popleft()
            core = self.cores[name]
            self.follow(name, core.finished(job, *run_job(name, job), now=self.now))

    def kill(self, name):
        if name in self.cores:
            del self.cores[name]
            self.jobs[name].clear()
            self.frozen.discard(name)
            self.rescue.lost(name)

    def freeze(self, name):
        if name in self.alive():
            self.frozen.add(name)
            self.rescue.lost(name)

    def thaw(self, name):
        if name in self.frozen:
            self.frozen.discard(name)
            if self.plan is not None:
                self.give(name, self.plan)
            self.report(name)

    def mend(self):
        orders = self.rescue.settle(self.now)
        if orders is not None:
            question = orders.question
            for frame in orders.restarts:
                self.post('source', frame.path[0].device, self.feature(frame, question.round))
            for seq, holder in orders.holders.items():
                if holder in self.alive():
                    steps = self.cores[holder].resume(
                        STREAM, 0, [seq], question.epoch, question.round, self.now
                    )
                    for step in steps:
                        self.follow(holder, step)
        question = self.rescue.ask(self.now)
        if question is not None:
            for name in self.alive():
                holdings = self.cores[name].holdings(
                    STREAM, 0, question.seqs, question.epoch, question.round
                )
                self.rescue.answers.answer(name, question.round, holdings)

    def tell_status(self):
        plan = self.gate.current()
        epoch = plan.epoch if plan else 0
        under_way = [frame.seq for frame in self.ledger.frames]
        for name in self.alive():
            self.cores[name].retire(STREAM, self.ledger.oldest_epoch(epoch))
            self.cores[name].done(STREAM, 0, self.seq, under_way)

    def settle_all(self):
        """Nothing is lost any more; everything that is under way must come to its end."""
        for name in NAMES:
            self.thaw(name)
            if name not in self.cores:
                self.start(name)
        self.replan([2, 4])
        for _ in range(60):
            self.now += 0.3
            for link in list(self.links):
                while self.links[link]:
                    self.deliver(link)
            for name in NAMES:
                while self.jobs[name]:
                    self.work(name)
            self.mend()
            if not len(self.ledger) and not any(self.links.values()):
                return
        raise AssertionError(f'frames never finish: {self.ledger.frames}')

    def check(self):
        assert sorted(self.results) == list(range(self.seq))
        for seq, result in self.results.items():
            assert result.packet.to_array().item() == seq % 7 + sum(range(1, UNITS + 1))
            bounds = [(record.start, record.stop) for record in result.trace]
            assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
            assert bounds[-1][1] == UNITS


EVENTS = st.one_of(
    st.just(('send_frame',)),
    st.just(('mend',)),
    st.just(('tell_status',)),
    st.tuples(st.just('deliver'), st.integers(0, 30)),
    st.tuples(st.just('deliver'), st.integers(0, 30)),
    st.tuples(st.just('work'), st.sampled_from(NAMES)),
    st.tuples(st.just('work'), st.sampled_from(NAMES)),
    st.tuples(st.sampled_from(['kill', 'freeze', 'thaw', 'revive']), st.sampled_from(NAMES)),
    st.tuples(st.just('replan'), st.lists(st.integers(0, 10), max_size=3)),
    st.tuples(st.just('pass_time'), st.floats(0.0, 0.7)),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, min_size=20, max_size=120))
def test_every_frame_finishes_once_and_right_whatever_is_lost(events):
    world = World()
    world.replan([2, 4])
    for name, *arguments in events:
        if name == 'deliver':
            waiting = [link for link in sorted(world.links) if world.links[link]]
            if waiting:
                world.deliver(waiting[arguments[0] % len(waiting)])
        elif name == 'pass_time':
            world.now += arguments[0]
        elif name == 'revive':
            if arguments[0] not in world.cores:
                world.start(*arguments)
        else:
            getattr(world, name)(*arguments)
    world.settle_all()
    world.check()


def one_turn(world):
    for link in list(world.links):
        while world.links[link]:
            world.deliver(link)
    for name in NAMES:
        while world.jobs[name]:
            world.work(name)


def run_until_quiet(world):
    while any(world.links.values()) or any(world.jobs.values()):
        one_turn(world)


@pytest.mark.parametrize('steps', range(12))
@pytest.mark.parametrize('victim', NAMES[:3])
def test_a_single_loss_costs_no_unit_that_survived(victim, steps):
    """One frame through a, b, c; the victim is killed after any number of steps."""
    world = World()
    world.plan = fleet_plan(1, ('a', 0, 2), ('b', 2, 4), ('c', 4, UNITS))
    world.gate.add_plan(world.plan)
    for name in NAMES:
        world.give(name, world.plan)
        world.report(name)
    world.send_frame()
    for _ in range(steps):
        ready = [link for link in world.links if world.links[link]]
        if ready:
            world.deliver(ready[0])
        else:
            for name in NAMES:
                world.work(name)
    lost = {unit for start, stop in world.runs[victim] for unit in range(start, stop)}
    world.kill(victim)
    names = [name for name in NAMES if name != victim]
    world.plan = fleet_plan(2, (names[2], 0, 3), (names[1], 3, 5), (names[0], 5, UNITS))
    world.gate.add_plan(world.plan)
    for name in names:
        world.give(name, world.plan)
        world.report(name)
    for _ in range(6):
        world.now += 0.05
        world.mend()
        one_turn(world)
    run_until_quiet(world)
    world.check()
    ran = [
        unit for name in names for start, stop in world.runs[name] for unit in range(start, stop)
    ]
    again = {unit for unit, count in collections.Counter(ran).items() if count > 1}
    # What the victim had run and passed on survives elsewhere: it is not run again either.
    assert not again
    assert set(range(UNITS)) - set(ran) <= lost


def test_a_frame_in_hand_goes_on_under_the_new_plan_and_is_not_sent_again():
    world = World()
    world.plan = fleet_plan(1, ('a', 0, 2), ('b', 2, UNITS))
    world.gate.add_plan(world.plan)
    for name in NAMES:
        world.give(name, world.plan)
        world.report(name)
    world.send_frame()
    world.deliver(('source', 'a'))
    world.work('a')
    world.deliver(('a', 'b'))
    world.kill('a')
    world.replan([3])
    world.mend()
    world.mend()
    assert world.rescue.moved == 0
    assert [frame.epoch for frame in world.ledger.frames] == [2]
    run_until_quiet(world)
    world.check()


def test_a_copy_that_was_under_way_when_a_device_was_asked_is_dropped():
    world = World()
    world.plan = fleet_plan(1, ('a', 0, 2), ('b', 2, 4), ('c', 4, UNITS))
    world.gate.add_plan(world.plan)
    for name in NAMES:
        world.give(name, world.plan)
        world.report(name)
    world.send_frame()
    world.deliver(('source', 'a'))
    world.work('a')
    world.kill('c')
    world.plan = fleet_plan(2, ('a', 0, 2), ('d', 2, UNITS))
    world.gate.add_plan(world.plan)
    for name in world.alive():
        world.give(name, world.plan)
        world.report(name)
    world.mend()
    world.deliver(('a', 'b'))
    assert world.duplicates == 1
    world.mend()
    run_until_quiet(world)
    world.check()
    assert world.runs['b'] == []


def test_without_a_plan_that_works_frames_wait():
    world = World()
    world.plan = fleet_plan(1, ('a', 0, UNITS))
    world.gate.add_plan(world.plan)
    for name in NAMES:
        world.give(name, world.plan)
        world.report(name)
    world.send_frame()
    world.kill('a')
    world.now = 100.0
    world.mend()
    assert world.rescue.moved == 0
    world.start('a')
    world.mend()
    world.mend()
    run_until_quiet(world)
    world.check()


def test_a_frame_on_a_slow_link_is_asked_for_less_and_less_often():
    world = World()
    world.plan = fleet_plan(1, ('a', 0, UNITS))
    world.gate.add_plan(world.plan)
    world.give('a', world.plan)
    world.report('a')
    world.send_frame()
    asked_s = []
    for tenth in range(1, 160):
        question = world.rescue.ask(0.1 * tenth)
        if question is None:
            continue
        asked_s.append(0.1 * tenth)
        for name in NAMES:
            world.rescue.answers.answer(name, question.round, [])
        assert world.rescue.settle(0.1 * tenth).restarts
    assert asked_s == pytest.approx([1.1, 3.2, 7.3, 15.4])


def test_a_restart_is_a_new_life_and_breaks_a_way():
    watch = DeviceWatch()
    assert not watch.heard('a', 'one')
    watch.heard('b', 'one')
    path = watch.path(fleet_plan(1, ('a', 0, 2), ('b', 2, UNITS)).streams[STREAM].plan)
    assert watch.intact(path)
    assert watch.heard('a', 'two')
    assert not watch.intact(path)
    assert watch.intact(path[1:])
    watch.lost('b')
    assert watch.present == {'a'}
    watch.heard('b', 'one')
    assert not watch.intact(path[1:])


def test_the_newest_feature_wins_and_its_receiver_before_its_sender():
    recovery = Recovery(0.5)
    question = recovery.ask([1, 2, 3], 7, ['a', 'b'], 0.0)
    recovery.answer('a', question.round, [Holding(1, 2, False), Holding(2, 4, False)])
    assert recovery.settle(0.1) is None
    recovery.answer('b', question.round, [Holding(1, 2, True), Holding(2, 3, True)])
    found = {entry.seq: entry.device for entry in recovery.settle(0.2)}
    assert found == {1: 'b', 2: 'a', 3: ''}
    assert recovery.question is None


def test_silent_devices_are_waited_for_a_bounded_time_and_old_answers_ignored():
    recovery = Recovery(0.5)
    old = recovery.ask([1], 7, ['a'], 0.0)
    assert recovery.settle(0.49) is None
    assert recovery.settle(0.51)[0].device == ''
    recovery.ask([1], 7, ['a'], 1.0)
    recovery.answer('a', old.round, [Holding(1, 2, False)])
    recovery.answer('stranger', recovery.question.round, [Holding(1, 2, False)])
    assert recovery.settle(1.1) is None


def test_what_a_device_told_before_it_was_lost_is_not_used():
    recovery = Recovery(0.5)
    question = recovery.ask([1], 7, ['a'], 0.0)
    recovery.answer('a', question.round, [Holding(1, 2, False)])
    recovery.forget('a')
    assert recovery.settle(0.1)[0].device == ''


def test_unknown_orders_are_refused_by_name():
    world = World()
    world.replan([2])
    with pytest.raises(RefusedReportError, match='not known'):
        world.cores['a'].resume(STREAM, 0, [0], 99, 1, 0.0)
    with pytest.raises(RefusedReportError, match='not known'):
        world.cores['a'].holdings('nobody', 0, [0], 1, 1)


@pytest.mark.parametrize(
    ('alive', 'change', 'silent_s', 'gone'),
    [(0, -1, 0.1, True), (1, -1, 0.9, True), (1, -1, 0.3, False), (2, 1, 0.9, False)],
)
def test_a_stranger_on_the_topic_neither_hides_nor_feigns_a_loss(alive, change, silent_s, gone):
    assert has_gone(alive, change, silent_s) == gone

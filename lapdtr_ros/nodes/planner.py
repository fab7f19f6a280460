"""The planner node: decides who runs which units of every stream, and changes that when it pays."""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import sys
import time
from collections.abc import Mapping
from functools import partial

from rcl_interfaces.msg import SetParametersResult
from rclpy.event_handler import QoSLivelinessChangedInfo, SubscriptionEventCallbacks
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.evaluation.run_record import describe_stages
from lapdtr_ros.execution.recovery import has_gone
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.msg import DeviceTelemetry, PartitionPlan
from lapdtr_ros.planning.leadership import Leadership
from lapdtr_ros.planning.monitor import (
    FIRST,
    LIMITS,
    USER,
    Cause,
    FleetMonitor,
    ReadingError,
)
from lapdtr_ros.planning.plan import FleetPlan, StreamDecision
from lapdtr_ros.planning.redistribution import (
    COST,
    FULL,
    STOPPED,
    Decision,
    Redistributor,
    Task,
)
from lapdtr_ros.planning.streams import StreamRequest, plan_streams
from lapdtr_ros.scenario import Scenario, load_scenario

from .base import (
    ERROR,
    MOST_PLAN_BYTES,
    MOST_REPORT_BYTES,
    OK,
    WARN,
    Diagnosis,
    ManagedNode,
    accepted,
    changed,
    declare,
    refused,
    run_node,
)
from .planner_parameters import (
    LIMIT_PARAMETERS,
    PlannerParameters,
    PolicyParameters,
    TriggerParameters,
    requirements_of,
    updated,
)

# Devices are looked at this often; a loss shows at most so much later than it could.
_TICK_S = 0.1

# A device that claims to know a plan far ahead of all others is not believed.
_MOST_EPOCHS_AHEAD = 10_000


class PlannerNode(ManagedNode):
    """Plans once all devices are heard, and again when telemetry, losses or users give a reason.

    A planner that finds a running plan adopts it. Where another planner leads already, it listens
    and takes over when that one is gone.

    Parameters:
        See `PlannerParameters`, `TriggerParameters`, `PolicyParameters` and `CommonParameters`.

    Subscriptions:
        <fleet>/<device>/telemetry (DeviceTelemetry): of every device of the scenario.
        <fleet>/plan (PartitionPlan): finds other planners.
        <fleet>/active_plan (PartitionPlan): the plan that the sources use.

    Publishers:
        <fleet>/plan (PartitionPlan): latched; the newest fleet plan. While this planner leads.
    """

    def __init__(self) -> None:
        super().__init__('planner')
        self.parameters = declare(self, PlannerParameters)
        self._trigger_parameters = declare(self, TriggerParameters)
        self._policy_parameters = declare(self, PolicyParameters)
        # Two processes may have the same node name, also on different machines.
        host = f'{socket.gethostname()}:{os.getpid()}'
        self._identity = f'{self.get_fully_qualified_name()}@{host}'
        self._publisher: Publisher | None = None
        self._heard_s: dict[str, float] = {}
        self._problem = ''
        self._summary = 'waiting for devices'
        self._refused = 0
        self._last_refused = ''
        self._began = 0.0

    def configure(self) -> None:
        """Read the scenario and check that a plan exists for its fleet."""
        self._scenario: Scenario = load_scenario(self.common.scenario)
        self._profile = self._scenario.with_accuracy(profile_model(self._scenario.file.model.name))
        self._check(self.parameters)
        self._leadership = Leadership(self._identity)
        self._epoch = 0
        self._known_epoch = 0
        self._active: FleetPlan | None = None
        self._started = False
        self._monitor = FleetMonitor(self._scenario.fleet, self._trigger_parameters.triggers())
        self._redistributor = Redistributor(
            self._monitor, self._task(self.parameters), self._policy_parameters.policy()
        )
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.add_post_set_parameters_callback(self._on_parameters_set)

    def activate(self) -> None:
        """Listen to the devices."""
        self._began = time.monotonic()
        fleet = self.common.fleet
        for device in self._scenario.fleet.devices:
            self.listen(
                DeviceTelemetry,
                topics.telemetry(fleet, device),
                partial(self._on_telemetry, device),
                qos.telemetry(),
                MOST_REPORT_BYTES,
                SubscriptionEventCallbacks(liveliness=partial(self._on_liveliness, device)),
            )
        self.listen(
            PartitionPlan,
            topics.active_plan(fleet),
            self._on_active_plan,
            qos.active_plan(len(self._scenario.file.streams)),
            MOST_PLAN_BYTES,
        )
        self.listen(
            PartitionPlan,
            topics.plan(fleet),
            self._on_plan,
            qos.plan(qos.PLANS_WAITING),
            MOST_PLAN_BYTES,
            SubscriptionEventCallbacks(liveliness=self._on_planners),
        )
        self.every(_TICK_S, self._tick)

    def cleanup(self) -> None:
        """Stop leading."""
        self._resign()

    def diagnose(self) -> list[Diagnosis]:
        """What is planned, how well the fleet is served, and who is missing."""
        return [
            self._diagnose_plan(),
            self._diagnose_service(),
            self._diagnose_devices(),
            self._diagnose_planners(),
        ]

    def _diagnose_plan(self) -> Diagnosis:
        values = {'epoch': str(self._epoch), 'devices': ' '.join(sorted(self._monitor.present))}
        if self._problem:
            return Diagnosis('plan', ERROR, self._problem, values)
        return Diagnosis('plan', OK if self._epoch else WARN, self._summary, values)

    def _diagnose_service(self) -> Diagnosis:
        service = self._redistributor.service
        level = {FULL: OK, STOPPED: ERROR}.get(service.grade, WARN)
        values = {'grade': service.grade, 'rate': f'{service.rate:g}'}
        return Diagnosis('service', level, str(service) or 'all that was asked for', values)

    def _diagnose_devices(self) -> Diagnosis:
        missing, low = self._monitor.missing, self._monitor.low_batteries
        values = {'refused': str(self._refused), 'low batteries': ' '.join(low)}
        told = [f'not there: {", ".join(missing)}'] if missing else []
        told += [f'battery below reserve: {", ".join(low)}'] if low else []
        told += [self._last_refused] if self._refused else []
        return Diagnosis('devices', WARN if told else OK, '; '.join(told) or 'all there', values)

    def _diagnose_planners(self) -> Diagnosis:
        problem = self._leadership.problem
        return Diagnosis('planners', WARN if problem else OK, problem or 'this planner leads')

    def _on_telemetry(self, device: str, msg: DeviceTelemetry) -> None:
        try:
            if msg.device != device:
                raise ReadingError(f'{msg.device!r} reports on the topic of {device}')
            self._monitor.hear(conversions.reading_from_msg(msg), time.monotonic())
            self._heard_s[device] = time.monotonic()
        except LapdtrError as error:
            self._refused += 1
            self._last_refused = f'telemetry refused: {error}'
            raise
        # A planner that restarts must not reuse an epoch number that devices already know.
        epoch = max([msg.epoch, *msg.ready_epochs])
        if epoch <= self._epoch + _MOST_EPOCHS_AHEAD or not self._started:
            self._known_epoch = max(self._known_epoch, epoch)
        self._think()

    def _on_liveliness(self, device: str, info: QoSLivelinessChangedInfo) -> None:
        silent_s = time.monotonic() - self._heard_s.get(device, -math.inf)
        if has_gone(info.alive_count, info.alive_count_change, silent_s):
            why = f'no sign of life within its lease of {qos.LIVELINESS_LEASE_S:g} s'
            self._monitor.lose(device, why)
            self._think()

    def _on_active_plan(self, msg: PartitionPlan) -> None:
        plan = conversions.fleet_plan_from_msg(msg)
        if self._active is None or plan.epoch > self._active.epoch:
            self._active = plan

    def _on_plan(self, msg: PartitionPlan) -> None:
        if msg.planner == self._identity:
            return
        plan = conversions.fleet_plan_from_msg(msg)
        stamp_ns = conversions.time_from_msg(msg.header.stamp)
        if self._leadership.heard(plan.planner, plan.epoch, stamp_ns):
            self._resign()
            self._adopt(plan)
        self.get_logger().warning(self._leadership.problem)

    def _on_planners(self, info: QoSLivelinessChangedInfo) -> None:
        """Other planners came or went; the own publisher does not count."""
        self._count_planners(info.alive_count)

    def _count_planners(self, others: int) -> None:
        if self._leadership.others_alive(others):
            self.get_logger().warning('the planner that led is gone: this one takes over')
            self._monitor.tell(Cause(FIRST, 'planner', 'the planner before is gone', urgent=True))
            self._think()

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            self._check(updated(self.parameters, parameters))
        except LapdtrError as error:
            return refused(str(error))
        return accepted()

    def _on_parameters_set(self, parameters: list[Parameter]) -> None:
        before = self.parameters
        self.parameters = updated(before, parameters)
        self._trigger_parameters = updated(self._trigger_parameters, parameters)
        self._policy_parameters = updated(self._policy_parameters, parameters)
        self._monitor.triggers = self._trigger_parameters.triggers()
        self._redistributor.policy = self._policy_parameters.policy()
        if self.parameters == before:
            return
        self._redistributor.task = self._task(self.parameters)
        values = {k: v for k, v in changed(parameters).items() if hasattr(before, k)}
        told = ', '.join(f'{name} = {value}' for name, value in values.items())
        kind = LIMITS if set(values) & set(LIMIT_PARAMETERS) else USER
        self._monitor.tell(Cause(kind, told, f'user set {told}', urgent=True))
        self._think()

    def _check(self, parameters: PlannerParameters) -> None:
        """Raise if no plan exists under ``parameters`` with the devices as described."""
        task = self._task(parameters)
        plan_streams(
            task.profile,
            self._scenario.fleet,
            task.requirements,
            task.requests,
            weights=task.weights,
            solver=task.solver,
        )

    def _task(self, parameters: PlannerParameters) -> Task:
        file = self._scenario.file
        return Task(
            self._profile,
            {
                name: StreamRequest(section.source, self._scenario.sink(name), section.rate_hz)
                for name, section in file.streams.items()
            },
            requirements_of(self._scenario.requirements, parameters),
            file.model.weights,
            parameters.solver or file.solver,
            parameters.objective,
            parameters.dtr_weight,
        )

    def _tick(self) -> None:
        self._monitor.tick(time.monotonic())
        if not self._leadership.leads:
            # A planner that died before its lease was known shows only in the graph.
            self._count_planners(self.count_publishers(topics.plan(self.common.fleet)))
        self._think()

    def _think(self) -> None:
        """Decide if there is a reason to, and publish what was decided."""
        if not self._leadership.leads:
            self._monitor.take()
            return
        if not self._started and not self._start_planning():
            return
        try:
            decision = self._redistributor.decide(time.monotonic())
        except LapdtrError as error:
            self._problem = str(error)
            self.get_logger().error(f'no new plan: {error}')
            return
        if decision is not None:
            self._act(decision)

    def _start_planning(self) -> bool:
        """The first plan, or the one that is in force already; whether there is enough to start."""
        waited_out = time.monotonic() - self._began >= self.parameters.wait_s
        missing = self._monitor.missing
        if not self._monitor.present or (missing and not waited_out):
            return False
        if self._known_epoch and self._active is None and not waited_out:
            return False  # the devices run a plan, and its source has not been heard yet
        self._started = True
        self._monitor.take()
        text = 'first plan'
        if self._active is not None:
            # Devices that know a newer plan, e.g. one that stopped the streams, ignore older ones.
            newer = self._known_epoch > self._active.epoch
            epoch = self._known_epoch + 1 if newer else self._active.epoch
            found = dataclasses.replace(self._active, planner=self._identity, epoch=epoch)
            self._adopt(found)
            self._publish(found)
            text = f'plan {self._active.epoch} found in force'
        if missing:
            text += f', not heard: {", ".join(missing)}'
        self._monitor.tell(Cause(FIRST, 'planner', text, urgent=True))
        return True

    def _adopt(self, plan: FleetPlan) -> None:
        self._started = True
        self._epoch = max(self._epoch, plan.epoch)
        self._redistributor.adopt(plan.streams, time.monotonic())
        self._summary = _summary(plan.streams)

    def _act(self, decision: Decision) -> None:
        self._problem = ''
        spent_ms = decision.seconds * 1e3
        if not decision.changed:
            self.get_logger().info(
                f'plan {self._epoch} stays ({decision.reason}; {spent_ms:.0f} ms)'
            )
            return
        self._epoch = max(self._epoch, self._known_epoch) + 1
        task = self._redistributor.task
        plan = FleetPlan(
            self._epoch,
            self._identity,
            task.solver if task.objective == COST else task.objective,
            decision.reason,
            decision.streams,
            decision.cause.kind,
            decision.alternatives,
            decision.moving,
        )
        self._publish(plan)
        self._summary = _summary(plan.streams)
        self.get_logger().info(
            f'plan {plan.epoch} ({plan.reason}; {spent_ms:.0f} ms): {self._summary}'
        )

    def _publish(self, plan: FleetPlan) -> None:
        if self._publisher is None:
            topic = topics.plan(self.common.fleet)
            self._publisher = self.create_publisher(PartitionPlan, topic, qos.plan())
        stamp = self.get_clock().now().to_msg()
        self._leadership.published(plan.epoch, conversions.time_from_msg(stamp))
        self._publisher.publish(conversions.fleet_plan_to_msg(plan, stamp))

    def _resign(self) -> None:
        """Without a publisher the devices see that this planner does not lead."""
        if self._publisher is not None:
            self.destroy_publisher(self._publisher)
        self._publisher = None


def _summary(streams: Mapping[str, StreamDecision]) -> str:
    return '; '.join(_describe(decision) for decision in streams.values()) or 'all stopped'


def _describe(decision: StreamDecision) -> str:
    stages = describe_stages(decision.plan.stages)
    energy_mj, latency_ms = decision.energy_j * 1e3, decision.latency_s * 1e3
    return f'{decision.plan.stream}: {stages} ({energy_mj:.0f} mJ, {latency_ms:.0f} ms)'


def main(args: list[str] | None = None) -> int:
    """Entry point of ``ros2 run lapdtr_ros planner``."""
    return run_node(PlannerNode, args)


if __name__ == '__main__':
    sys.exit(main())

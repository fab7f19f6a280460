"""The planner node: decides who runs which units of every stream."""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass

from rcl_interfaces.msg import SetParametersResult
from rclpy.parameter import Parameter

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.errors import LapdtrError
from lapdtr_ros.evaluation.run_record import describe_stages
from lapdtr_ros.models.profiling import profile_model
from lapdtr_ros.msg import DeviceTelemetry, PartitionPlan
from lapdtr_ros.planning.fleet import Fleet, Requirements, Weights
from lapdtr_ros.planning.plan import FleetPlan, StreamDecision
from lapdtr_ros.planning.streams import StreamRequest, plan_streams
from lapdtr_ros.scenario import Scenario, load_scenario

from .base import (
    ERROR,
    OK,
    WARN,
    Diagnosis,
    ManagedNode,
    accepted,
    changed,
    declare,
    parameter,
    refused,
    run_node,
)

INF = float('inf')


@dataclass(frozen=True)
class PlannerParameters:
    """Parameters of the planner node. A negative value means: as the scenario says."""

    wait_s: float = parameter(
        10.0, 'Longest wait for all devices before the first plan [s]', minimum=0.0
    )
    solver: str = parameter('', 'literal, corrected, exact or beam', dynamic=True)
    energy_weight: float = parameter(-1.0, 'Weight of energy per frame', dynamic=True)
    latency_weight: float = parameter(-1.0, 'Weight of latency', dynamic=True)
    period_weight: float = parameter(-1.0, 'Weight of the frame period', dynamic=True)
    battery_weight: float = parameter(
        -1.0, 'How much dearer a joule of an empty battery is', dynamic=True
    )
    max_latency_s: float = parameter(-1.0, 'Limit on latency [s]', dynamic=True)
    max_period_s: float = parameter(-1.0, 'Limit on the frame period [s]', dynamic=True)
    max_energy_j: float = parameter(-1.0, 'Limit on energy per frame [J]', dynamic=True)


class PlannerNode(ManagedNode):
    """Plans once all devices are heard, and again when weights or limits change.

    Parameters:
        See `PlannerParameters` and `CommonParameters`.

    Subscriptions:
        <fleet>/<device>/telemetry (DeviceTelemetry): of every device of the scenario.

    Publishers:
        <fleet>/plan (PartitionPlan): latched; the newest fleet plan.
    """

    def __init__(self) -> None:
        super().__init__('planner')
        self.parameters = declare(self, PlannerParameters)
        self._heard: dict[str, DeviceTelemetry] = {}
        self._epoch = 0
        self._problem = ''
        self._summary = 'waiting for devices'
        self._pending_reason = ''
        self._began = 0.0

    def configure(self) -> None:
        """Read the scenario and check that a plan exists for its fleet."""
        self._scenario: Scenario = load_scenario(self.common.scenario)
        self._check(self.parameters)
        self._publisher = self.create_publisher(
            PartitionPlan,
            topics.plan(self.common.fleet),
            qos.plan(),
        )
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.add_post_set_parameters_callback(self._on_parameters_set)

    def activate(self) -> None:
        """Listen to the devices."""
        self._began = time.monotonic()
        self._pending_reason = 'first plan'
        for device in self._scenario.fleet.devices:
            topic = topics.telemetry(self.common.fleet, device)
            self.listen(DeviceTelemetry, topic, self._on_telemetry, qos.telemetry())
        self.every(0.5, self._plan_if_due)

    def diagnose(self) -> list[Diagnosis]:
        """What is planned, or why nothing is."""
        values = {'epoch': str(self._epoch), 'devices': ' '.join(sorted(self._heard))}
        if self._problem:
            return [Diagnosis('plan', ERROR, self._problem, values)]
        return [Diagnosis('plan', OK if self._epoch else WARN, self._summary, values)]

    def _on_telemetry(self, msg: DeviceTelemetry) -> None:
        self._heard[msg.device] = msg
        # A planner that restarts must not reuse an epoch number that devices already know.
        self._epoch = max([self._epoch, *msg.ready_epochs])
        self._plan_if_due()

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        values = {k: v for k, v in changed(parameters).items() if hasattr(self.parameters, k)}
        try:
            self._check(dataclasses.replace(self.parameters, **values))
        except LapdtrError as error:
            return refused(str(error))
        return accepted()

    def _on_parameters_set(self, parameters: list[Parameter]) -> None:
        values = {k: v for k, v in changed(parameters).items() if hasattr(self.parameters, k)}
        if values:
            self.parameters = dataclasses.replace(self.parameters, **values)
            told = ', '.join(f'{name} = {value}' for name, value in values.items())
            self._pending_reason = f'user set {told}'
            self._plan_if_due()

    def _check(self, parameters: PlannerParameters) -> None:
        """Raise if no plan exists under ``parameters`` with the devices as described."""
        self._solve(self._scenario.fleet, parameters)

    def _plan_if_due(self) -> None:
        if not self._pending_reason:
            return
        missing = set(self._scenario.fleet.devices) - set(self._heard)
        if missing and time.monotonic() - self._began < self.parameters.wait_s:
            return
        reason, self._pending_reason = self._pending_reason, ''
        if missing:
            reason += f'; not heard: {", ".join(sorted(missing))}'
        try:
            streams = self._solve(self._present_fleet(), self.parameters)
        except LapdtrError as error:
            self._problem = str(error)
            self.get_logger().error(f'no new plan ({reason}): {error}')
            return
        self._problem = ''
        self._publish(reason, streams)

    def _publish(self, reason: str, streams: dict[str, StreamDecision]) -> None:
        self._epoch += 1
        plan = FleetPlan(
            self._epoch, self.get_fully_qualified_name(), self._solver(), reason, streams
        )
        self._summary = '; '.join(_describe(decision) for decision in streams.values())
        self.get_logger().info(f'plan {plan.epoch} ({reason}): {self._summary}')
        stamp = self.get_clock().now().to_msg()
        self._publisher.publish(conversions.fleet_plan_to_msg(plan, stamp))

    def _solve(self, fleet: Fleet, parameters: PlannerParameters) -> dict[str, StreamDecision]:
        file = self._scenario.file
        return plan_streams(
            profile_model(file.model.name),
            fleet,
            _requirements(self._scenario.requirements, parameters),
            {
                name: StreamRequest(section.source, self._scenario.sink(name), section.rate_hz)
                for name, section in file.streams.items()
            },
            weights=file.model.weights,
            solver=parameters.solver or file.solver,
        )

    def _solver(self) -> str:
        return self.parameters.solver or self._scenario.file.solver

    def _present_fleet(self) -> Fleet:
        """The scenario's fleet without silent devices, with the batteries as last reported."""
        fleet = self._scenario.fleet
        devices = {
            name: dataclasses.replace(device, soc=self._heard[name].soc)
            for name, device in fleet.devices.items()
            if name in self._heard
        }
        links = {ends: link for ends, link in fleet.links.items() if set(ends) <= set(devices)}
        return Fleet(devices, links)


def _requirements(base: Requirements, parameters: PlannerParameters) -> Requirements:
    """The scenario's requirements with what the user changed since."""

    def chosen(value: float, otherwise: float) -> float:
        return value if value >= 0 else otherwise

    weights = Weights(
        energy=chosen(parameters.energy_weight, base.weights.energy),
        latency=chosen(parameters.latency_weight, base.weights.latency),
        period=chosen(parameters.period_weight, base.weights.period),
    )
    return dataclasses.replace(
        base,
        weights=weights,
        battery_weight=chosen(parameters.battery_weight, base.battery_weight),
        max_latency_s=chosen(parameters.max_latency_s, base.max_latency_s),
        max_period_s=chosen(parameters.max_period_s, base.max_period_s),
        max_energy_j=chosen(parameters.max_energy_j, base.max_energy_j),
    )


def _describe(decision: StreamDecision) -> str:
    stages = describe_stages(decision.plan.stages)
    energy_mj, latency_ms = decision.energy_j * 1e3, decision.latency_s * 1e3
    return f'{decision.plan.stream}: {stages} ({energy_mj:.0f} mJ, {latency_ms:.0f} ms)'


def main(args: list[str] | None = None) -> int:
    """Entry point of ``ros2 run lapdtr_ros planner``."""
    return run_node(PlannerNode, args)


if __name__ == '__main__':
    sys.exit(main())

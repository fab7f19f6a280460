"""Parameters of the planner node and what the pure code makes of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from rclpy.parameter import Parameter

from lapdtr_ros.planning.fleet import Requirements, Weights
from lapdtr_ros.planning.monitor import Triggers
from lapdtr_ros.planning.redistribution import COST, OBJECTIVES, Policy

from .base import changed, parameter

LIMIT_PARAMETERS = ('max_latency_s', 'max_period_s', 'max_energy_j', 'min_accuracy')


def _wish(what: str, maximum: float | None = None) -> Any:
    """A weight or limit that takes the place of the scenario's."""
    told = f'{what}; -1: as the scenario says'
    return parameter(-1.0, told, minimum=-1.0, maximum=maximum, dynamic=True)


@dataclass(frozen=True)
class PlannerParameters:
    """What is planned for."""

    wait_s: float = parameter(
        10.0, 'Longest wait for all devices before the first plan [s]', minimum=0.0
    )
    solver: str = parameter('', 'literal, corrected, exact or beam', dynamic=True)
    objective: str = parameter(
        COST, f'What the best plan is, one of {", ".join(OBJECTIVES)}', dynamic=True
    )
    dtr_weight: float = parameter(
        1.0, 'Lambda of the objectives dtr_corrected and dtr_literal', minimum=0.0, dynamic=True
    )
    energy_weight: float = _wish('Weight of energy per frame')
    latency_weight: float = _wish('Weight of latency')
    period_weight: float = _wish('Weight of the frame period')
    accuracy_weight: float = _wish('Weight of lost accuracy')
    battery_weight: float = _wish('How much dearer a joule of an empty battery is')
    max_latency_s: float = _wish('Limit on latency [s]')
    max_period_s: float = _wish('Limit on the frame period [s]')
    max_energy_j: float = _wish('Limit on energy per frame [J]')
    min_accuracy: float = _wish('Least predicted accuracy, 0 to 1', maximum=1.0)


@dataclass(frozen=True)
class TriggerParameters:
    """When the planner thinks again; see `Triggers`."""

    silence_s: float = parameter(
        Triggers.silence_s,
        'A device that is not heard for so long is lost; 2.5 periods of its telemetry [s]',
        minimum=0.05,
        dynamic=True,
    )
    return_s: float = parameter(
        Triggers.return_s,
        'Time a lost device must be heard before it is used; doubles with every loss [s]',
        minimum=0.0,
        dynamic=True,
    )
    soc_hysteresis: float = parameter(
        Triggers.soc_hysteresis,
        'How far above its reserve a low battery counts as recovered, share of the full one',
        minimum=0.0,
        maximum=1.0,
        dynamic=True,
    )
    soc_step: float = parameter(
        Triggers.soc_step,
        'Change of the state of charge that is worth thinking again',
        minimum=0.001,
        maximum=1.0,
        dynamic=True,
    )
    time_band: float = parameter(
        Triggers.time_band,
        'Factor by which compute times must differ from those planned with',
        minimum=1.01,
        dynamic=True,
    )
    link_band: float = parameter(
        Triggers.link_band,
        'Factor by which rate or delay of a link must differ from those planned with',
        minimum=1.01,
        dynamic=True,
    )
    dwell_s: float = parameter(
        Triggers.dwell_s,
        'How long compute times or links must differ [s]',
        minimum=0.0,
        dynamic=True,
    )
    queue_limit: int = parameter(
        Triggers.queue_limit,
        'Frames that wait at a device that does not keep up',
        minimum=1,
        dynamic=True,
    )
    forget_s: float = parameter(
        Triggers.forget_s,
        'Time without a new measurement after which the expected figure counts again [s]',
        minimum=0.1,
        dynamic=True,
    )
    low_battery_price: float = parameter(
        Triggers.low_battery_price,
        'Price of a joule of a battery below its reserve, 1 for an ordinary joule',
        minimum=1.0,
        dynamic=True,
    )

    def triggers(self) -> Triggers:
        """The same for the pure code."""
        return Triggers(**dataclasses.asdict(self))


@dataclass(frozen=True)
class PolicyParameters:
    """When a better plan is worth the move; see `Policy`."""

    horizon_s: float = parameter(
        Policy.horizon_s, 'How long a new plan is expected to last [s]', minimum=0.0, dynamic=True
    )
    min_gain: float = parameter(
        Policy.min_gain,
        'Least relative improvement that is worth a change',
        minimum=0.0,
        maximum=1.0,
        dynamic=True,
    )
    min_dwell_s: float = parameter(
        Policy.min_dwell_s,
        'Time a plan gets before anything that is not urgent may replace it [s]',
        minimum=0.0,
        dynamic=True,
    )
    load_bytes_per_s: float = parameter(
        Policy.load_bytes_per_s,
        'Rate at which devices read weights into memory [B/s]',
        minimum=1.0,
        dynamic=True,
    )

    def policy(self) -> Policy:
        """The same for the pure code."""
        return Policy(**dataclasses.asdict(self))


_Values = TypeVar('_Values', PlannerParameters, TriggerParameters, PolicyParameters)


def updated(values: _Values, parameters: list[Parameter]) -> _Values:
    """A parameter dataclass with what was set."""
    new = {name: value for name, value in changed(parameters).items() if hasattr(values, name)}
    return dataclasses.replace(values, **new)


def requirements_of(base: Requirements, parameters: PlannerParameters) -> Requirements:
    """The scenario's requirements with what the user changed since."""

    def chosen(value: float, otherwise: float) -> float:
        return value if value >= 0 else otherwise

    weights = Weights(
        energy=chosen(parameters.energy_weight, base.weights.energy),
        latency=chosen(parameters.latency_weight, base.weights.latency),
        period=chosen(parameters.period_weight, base.weights.period),
        accuracy=chosen(parameters.accuracy_weight, base.weights.accuracy),
    )
    return dataclasses.replace(
        base,
        weights=weights,
        battery_weight=chosen(parameters.battery_weight, base.battery_weight),
        max_latency_s=chosen(parameters.max_latency_s, base.max_latency_s),
        max_period_s=chosen(parameters.max_period_s, base.max_period_s),
        max_energy_j=chosen(parameters.max_energy_j, base.max_energy_j),
        min_accuracy=(
            parameters.min_accuracy if parameters.min_accuracy >= 0 else base.min_accuracy
        ),
    )

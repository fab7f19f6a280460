"""What a node knows of energy and speed: meters, battery, emulation, measured links.

`Gauge` belongs to a device node, `Links` to every node that sends frames.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rcl_interfaces.msg import SetParametersResult
from rclpy.parameter import Parameter
from sensor_msgs.msg import BatteryState

from lapdtr_ros import conversions, qos, topics
from lapdtr_ros.energy import battery_state, detection, host
from lapdtr_ros.energy.battery import COMPUTE_RAIL, RADIO_RAIL, Battery, ModelledMeter
from lapdtr_ros.energy.battery_state import BatteryStateMeter
from lapdtr_ros.energy.ends import Journey, ends_energy
from lapdtr_ros.energy.errors import MeterError, MeterUnavailableError
from lapdtr_ros.energy.meter import Meter, Reading, watts_between
from lapdtr_ros.errors import LapdtrError, UnknownNameError
from lapdtr_ros.execution.emulation import (
    LinkEstimator,
    LinkFigures,
    Pacer,
    PaceSettings,
    Postman,
    ShapedLink,
    hop_seconds,
)
from lapdtr_ros.execution.frames import FINISHED, StageRecord
from lapdtr_ros.models.facts import profile_model
from lapdtr_ros.msg import DeviceTelemetry, FrameTrace
from lapdtr_ros.planning.classes import load_link_class
from lapdtr_ros.planning.cost import evaluate, marginal_watts
from lapdtr_ros.planning.plan import FleetPlan
from lapdtr_ros.scenario import Scenario

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
    read,
    refused,
)

if TYPE_CHECKING:
    from lapdtr_ros.execution.device import Job

_REMEMBERED_COSTS = 256


@dataclass(frozen=True)
class LinkParameters:
    """Parameters of every node that sends frames."""

    emulate: bool = parameter(
        False, 'Computing and links take as long as on the classes of the devices', dynamic=True
    )
    link_bytes_per_s: float = parameter(
        0.0, 'Rate of outgoing links [B/s]; 0: as emulated', minimum=0.0, dynamic=True
    )
    link_delay_s: float = parameter(
        -1.0, 'One-way delay of outgoing links [s]; negative: as emulated', dynamic=True
    )
    link_target: str = parameter(
        '',
        'Device at the other end of the link that the two above change; empty: all',
        dynamic=True,
    )


@dataclass(frozen=True)
class GaugeParameters:
    """Parameters of the device node that concern energy and speed."""

    meter: str = parameter(
        detection.MODELLED_METER,
        'Energy meter: modelled, auto, battery_state, or a kind that `lapdtr meters` lists',
    )
    battery_topic: str = parameter(
        '', 'BatteryState of the vehicle; its charge replaces that of the modelled battery'
    )
    emulated_soc: float = parameter(
        -1.0, 'Sets the modelled battery to this share, 0 to 1; negative: leaves it', dynamic=True
    )
    compute_slowdown: float = parameter(
        1.0, 'Factor by which stages take longer', minimum=1.0, dynamic=True
    )


class Links:
    """Sends a node's frames over links that are as slow as the emulated ones.

    Delays are waited out in a thread of their own, so the caller goes on with the next frame.

    Args:
        node: the node; gets the parameters of `LinkParameters`.
        scenario: the fleet and its links.
        device: device that sends.
    """

    def __init__(self, node: ManagedNode, scenario: Scenario, device: str) -> None:
        execution = scenario.file.execution
        self._node = node
        self._device = device
        self._links = scenario.fleet.links
        self._classes = {
            link.link_class: load_link_class(link.link_class) for link in self._links.values()
        }
        self._time_scale = execution.time_scale
        self._shaped: dict[str, ShapedLink] = {}
        self._lock = threading.Lock()
        self._postman: Postman | None = None
        self.parameters = _declare_once(node, LinkParameters(emulate=execution.emulate))
        node.add_post_set_parameters_callback(self._on_parameters_set)

    @property
    def time_scale(self) -> float:
        """Seconds of the fleet per second of this machine."""
        return self._time_scale if self.parameters.emulate else 1.0

    @property
    def active(self) -> bool:
        """Whether any link is not as fast as it can be."""
        parameters = self.parameters
        return parameters.emulate or parameters.link_bytes_per_s > 0 or parameters.link_delay_s >= 0

    def send(self, target: str, size: int, action: Callable[[], None]) -> None:
        """Call ``action`` when ``size`` bytes have arrived at ``target``; at once if nothing slows.

        Raises:
            UnknownNameError: links are emulated and the scenario has none to ``target``.
        """
        with self._lock:
            due_s = self._arrival(target, size)
            if due_s > time.monotonic():
                self._postman = self._postman or Postman()
                self._postman.deliver(due_s, lambda: self._deliver(action))
                return
        action()

    def close(self) -> None:
        """Stop; what is on its way is dropped."""
        if self._postman is not None:
            self._postman.close()
        self._postman = None
        self._shaped = {}
        self._node.remove_post_set_parameters_callback(self._on_parameters_set)

    def _arrival(self, target: str, size: int) -> float:
        """Moment on the steady clock at which bytes that are sent now have arrived."""
        link = self._shaped.get(target)
        if target == self._device or (link is None and not self.active):
            return -math.inf
        figures = self._figures(target)
        if link is None:
            link = self._shaped[target] = ShapedLink(figures, f'{self._device} > {target}')
        now = time.monotonic()
        link.change(figures, now)
        return link.arrival(size, now, self.time_scale)

    def _deliver(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # one message must not end the thread that carries all others
            self._node.get_logger().warning(f'not delivered: {error}', throttle_duration_sec=1.0)

    def _figures(self, target: str) -> LinkFigures:
        parameters = self.parameters
        figures = self._class_figures(target) if parameters.emulate else LinkFigures(math.inf, 0.0)
        if parameters.link_target in ('', target):
            if parameters.link_bytes_per_s > 0:
                figures = dataclasses.replace(figures, bytes_per_s=parameters.link_bytes_per_s)
            if parameters.link_delay_s >= 0:
                figures = dataclasses.replace(figures, delay_s=parameters.link_delay_s)
        return figures

    def _class_figures(self, target: str) -> LinkFigures:
        link = self._links.get((self._device, target))
        if link is None:
            ends = {there for here, there in self._links if here == self._device}
            raise UnknownNameError(f'link from {self._device} to', target, ends)
        kind = self._classes[link.link_class]
        return LinkFigures(
            link.bytes_per_s, link.latency_s, kind.jitter_ms.value * 1e-3, kind.loss.value
        )

    def _on_parameters_set(self, parameters: list[Parameter]) -> None:
        values = _ours(parameters, LinkParameters)
        self.parameters = dataclasses.replace(self.parameters, **values)


@dataclass(frozen=True)
class FrameCost:
    """What one frame of a stream is expected to take from this device.

    Attributes:
        busy_s: seconds of computing.
        compute_j: joules of that above idle.
        radio_j: joules of sending and receiving.
    """

    busy_s: float
    compute_j: float
    radio_j: float

    @property
    def energy_j(self) -> float:
        """Both together."""
        return self.compute_j + self.radio_j


class Gauge:
    """Energy, battery, pace and link measurements of one device.

    Subscriptions:
        battery_topic (sensor_msgs/BatteryState): when one is given.
        <fleet>/frame_traces (FrameTrace): while links are emulated or really measured; energy of
            pictures and results of streams that start or end here, and times of hops.

    Args:
        node: the device node; gets the parameters of `GaugeParameters` and `LinkParameters`.
        scenario: the fleet.
        device: name of the device.

    Raises:
        MeterUnavailableError: the chosen meter does not exist here.
    """

    def __init__(self, node: ManagedNode, scenario: Scenario, device: str) -> None:
        self._node = node
        self._scenario = scenario
        self._device = scenario.fleet.devices[device]
        self._profile = profile_model(scenario.file.model.name)
        self.links = Links(node, scenario, device)
        self.parameters = _declare_once(node, GaugeParameters())
        self._battery = Battery(self._device.battery_j, self._device.soc)
        self._board_battery = BatteryStateMeter() if self.parameters.battery_topic else None
        self._meter = self._open_meter()
        self._pacer = Pacer(PaceSettings())
        self._costs: OrderedDict[tuple[int, str], FrameCost] = OrderedDict()
        self._estimators: dict[str, LinkEstimator] = {}
        self._measured_compute_j = 0.0
        self._last: Reading | None = None
        self._problem = ''
        self._hears_traces = False
        node.add_on_set_parameters_callback(self._check_parameters)
        node.add_post_set_parameters_callback(self._on_parameters_set)
        self._apply()

    @property
    def measured(self) -> bool:
        """Whether energy comes from a real meter, so that this machine is the device."""
        return not isinstance(self._meter, ModelledMeter)

    def listen(self) -> None:
        """Subscribe; the node's deactivation undoes it."""
        if self._board_battery is not None:
            topic = self.parameters.battery_topic
            self._node.listen(BatteryState, topic, self._on_battery, qos.camera())
        self._hears_traces = False
        self._listen_to_traces()

    def close(self) -> None:
        """Stop meter and links."""
        self.links.close()
        self._meter.close()
        self._node.remove_on_set_parameters_callback(self._check_parameters)
        self._node.remove_post_set_parameters_callback(self._on_parameters_set)

    def cost_of(self, plan: FleetPlan, stream: str) -> float:
        """Modelled joules that this device spends on one frame of a stream."""
        decision = plan.streams[stream].plan
        cost = evaluate(
            decision, self._profile, self._scenario.fleet, self._scenario.requirements
        ).devices[self._device.name]
        compute_j = cost.busy_s * marginal_watts(self._device)
        found = FrameCost(cost.busy_s, compute_j, max(0.0, cost.energy_j - compute_j))
        self._costs[plan.epoch, stream] = found
        while len(self._costs) > _REMEMBERED_COSTS:
            self._costs.popitem(last=False)
        return found.energy_j

    def begin(self) -> Reading | None:
        """Energy before a stage; None when nothing measures it."""
        return self._read() if self.measured else None

    def settle(self, job: Job, record: StageRecord, began: Reading | None) -> StageRecord:
        """A stage has run: wait until the emulated device would be done, and charge the energy.

        Belongs to the inference thread.

        Args:
            job: what was run.
            record: as it was timed on this machine.
            began: what `begin` gave.

        Returns:
            The record with the time and energy of the device: measured joules of the whole board
            where a meter is, else modelled joules above idle.
        """
        cost = self._costs[job.feature.epoch, job.feature.stream]
        share = job.energy_j / cost.energy_j if cost.energy_j > 0.0 else 1.0
        paced = self._pacer.hold(share * cost.busy_s, time.monotonic() - record.compute_s)
        if isinstance(self._meter, ModelledMeter):
            compute_j, radio_j = share * cost.compute_j * paced.ratio, share * cost.radio_j
            self._meter.spend(compute_j, radio_j)
            energy_j = compute_j + radio_j
        else:
            energy_j = self._measured_since(began)
            self._measured_compute_j += 0.0 if math.isnan(energy_j) else energy_j
        return dataclasses.replace(record, compute_s=paced.took_s, energy_j=energy_j)

    def fill(self, msg: DeviceTelemetry, memory_bytes: int) -> None:
        """Fill in everything about energy, speed, memory, temperature and links."""
        self._fill_energy(msg)
        self._fill_battery(msg)
        msg.unit_time_ratio = float(self._pacer.ratio)
        msg.temperature_c = host.temperature_c() if self.measured else math.nan
        in_use = memory_bytes / self._device.memory_bytes
        msg.memory_share = float(host.memory_share() if self.measured else min(1.0, in_use))
        known = {
            target: estimator
            for target, estimator in self._estimators.items()
            if math.isfinite(estimator.bytes_per_s) or math.isfinite(estimator.delay_s)
        }
        msg.link_targets = list(known)
        msg.link_bytes_per_s = [float(estimator.bytes_per_s) for estimator in known.values()]
        msg.link_delay_s = [float(estimator.delay_s) for estimator in known.values()]

    def diagnose(self) -> list[Diagnosis]:
        """State of the meter, and whether this machine keeps up with the emulated class."""
        name = self._meter.name
        meter = Diagnosis(
            'energy',
            ERROR if self._problem else OK,
            self._problem or f'{name} meter, battery at {self._battery.soc:.0%}',
            {'meter': name, 'rails': ' '.join(rail.label for rail in self._meter.rails)},
        )
        return [meter, self._diagnose_pace()] if self.links.parameters.emulate else [meter]

    def _diagnose_pace(self) -> Diagnosis:
        pacer, kind = self._pacer, self._device.device_class
        values = {'stages': str(pacer.stages), 'behind': str(pacer.behind)}
        if not pacer.behind:
            return Diagnosis('emulation', OK, f'keeps up with {kind}', values)
        text = (
            f'this machine is slower than {kind}: {pacer.behind} of {pacer.stages} stages took '
            f'longer, up to {pacer.worst:.1f} times; lower execution.time_scale '
            f'({self.links.time_scale:g})'
        )
        return Diagnosis('emulation', WARN, text, values)

    def _open_meter(self) -> Meter:
        name = self.parameters.meter
        if name == detection.MODELLED_METER:
            return ModelledMeter(self._battery, self._device.idle_w)
        if name == battery_state.NAME:
            if self._board_battery is None:
                raise MeterUnavailableError(f'meter {name} needs battery_topic: set it')
            return self._board_battery
        return detection.open_meter(name)

    def _read(self) -> Reading | None:
        """The meter's state, None while it gives none; the reason is told in diagnostics."""
        try:
            reading = self._meter.read()
        except MeterError as error:
            self._problem = str(error)
            return None
        self._problem = ''
        return reading

    def _measured_since(self, began: Reading | None) -> float:
        ended = self._read()
        if began is None or ended is None:
            return math.nan
        return self._meter.total_j(ended) - self._meter.total_j(began)

    def _fill_energy(self, msg: DeviceTelemetry) -> None:
        msg.energy_source = self._energy_source()
        msg.energy_j = msg.power_w = msg.compute_j = msg.radio_j = math.nan
        reading, last = self._read(), self._last
        if reading is None:
            return
        watts = watts_between(last, reading) if last is not None else {}
        msg.energy_j = float(self._meter.total_j(reading))
        if watts:
            counted = (watts[rail.name] for rail in self._meter.rails if rail.counted)
            msg.power_w = float(sum(counted))
        msg.rails = [rail.label for rail in self._meter.rails]
        msg.rail_power_w = [float(watts.get(rail.name, math.nan)) for rail in self._meter.rails]
        if self.measured:
            used_j = msg.energy_j - (self._meter.total_j(last) if last is not None else 0.0)
            self._battery.drain(max(0.0, used_j))
            msg.compute_j = float(self._measured_compute_j)
        else:
            msg.compute_j = float(reading.joules[COMPUTE_RAIL])
            msg.radio_j = float(reading.joules[RADIO_RAIL])
        self._last = reading

    def _energy_source(self) -> int:
        if self.measured:
            return int(DeviceTelemetry.MEASURED)
        emulate = self.links.parameters.emulate
        return int(DeviceTelemetry.EMULATED if emulate else DeviceTelemetry.MODELLED)

    def _fill_battery(self, msg: DeviceTelemetry) -> None:
        msg.soc, msg.battery_j = float(self._battery.soc), float(self._battery.capacity_j)
        if self._board_battery is None:
            return
        msg.soc = msg.battery_j = math.nan
        try:
            reading = self._board_battery.latest
        except MeterError as error:
            self._problem = str(error)
            return
        msg.soc = float(battery_state.state_of_charge(reading))
        msg.battery_j = float(battery_state.full_j(reading, self._device.battery_j))

    def _on_battery(self, msg: BatteryState) -> None:
        assert self._board_battery is not None
        self._board_battery.update(conversions.battery_reading_from_msg(msg))

    def _listen_to_traces(self) -> None:
        if self._hears_traces or not (self.links.active or self.measured):
            return
        self._hears_traces = True
        topic = topics.frame_traces(self._node.common.fleet)
        self._node.listen(FrameTrace, topic, self._on_trace, qos.traces())

    def _on_trace(self, msg: FrameTrace) -> None:
        outcome = conversions.outcome_from_msg(msg)
        if outcome.outcome != FINISHED or not outcome.trace:
            return
        stream = self._scenario.stream(outcome.stream)
        journey = Journey(
            source=stream.source,
            sink=self._scenario.sink(outcome.stream),
            devices=tuple(record.device for record in outcome.trace),
            picture_bytes=outcome.picture_bytes,
            result_bytes=outcome.trace[-1].sent_bytes,
        )
        me = self._device.name
        spent = ends_energy(journey, self._scenario.fleet, self._profile).get(me)
        if spent is not None and isinstance(self._meter, ModelledMeter):
            self._meter.spend(spent.compute_j, spent.radio_j)
        hop = hop_seconds(outcome.trace, me)
        # What was sent again after a loss had waited for the new plan, not for the link.
        if hop is not None and not outcome.resumed:
            target, size, seconds = hop
            self._estimator(target).add(size, seconds * self.links.time_scale)

    def note_stall(self, target: str, size: int, seconds: float) -> None:
        """What was sent to a device that long ago is not there, although both are well."""
        self._estimator(target).stall(size, seconds * self.links.time_scale)

    def _estimator(self, target: str) -> LinkEstimator:
        if target not in self._estimators:
            links = self._scenario.fleet.links
            ends = (self._device.name, target)
            if ends not in links:
                raise UnknownNameError('link', ' > '.join(ends), map(' > '.join, links))
            self._estimators[target] = LinkEstimator(links[ends])
        return self._estimators[target]

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        values = _ours(parameters, GaugeParameters)
        try:
            PaceSettings(slowdown=values.get('compute_slowdown', 1.0))
            if values.get('emulated_soc', -1.0) >= 0.0:
                Battery(1.0, values['emulated_soc'])
        except LapdtrError as error:
            return refused(str(error))
        return accepted()

    def _on_parameters_set(self, parameters: list[Parameter]) -> None:
        values = _ours(parameters, GaugeParameters)
        self.parameters = dataclasses.replace(self.parameters, **values)
        if values.get('emulated_soc', -1.0) >= 0.0:
            self._battery.soc = values['emulated_soc']
        if values or _ours(parameters, LinkParameters):
            self._apply()
        if self._node.active:
            self._listen_to_traces()

    def _apply(self) -> None:
        """Put the parameters in force."""
        links = self.links
        self._pacer.settings = PaceSettings(
            emulate=links.parameters.emulate,
            slowdown=self.parameters.compute_slowdown,
            time_scale=links.time_scale,
            of_class=self.measured,
        )
        self._pacer.forget()
        self._estimators = {}
        if isinstance(self._meter, ModelledMeter):
            self._meter.time_scale = links.time_scale


_P = TypeVar('_P')


def _declare_once(node: ManagedNode, defaults: _P) -> _P:
    """Declare a dataclass of parameters unless an earlier configuration has."""
    kind = type(defaults)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if node.has_parameter(names[0]):
        return read(node, kind)
    return declare(node, kind, defaults)


def _ours(parameters: list[Parameter], kind: type) -> dict[str, Any]:
    """Changed parameters that are fields of ``kind``."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in changed(parameters).items() if name in names}

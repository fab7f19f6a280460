"""What all nodes share: parameters from a dataclass, lifecycle, diagnostics and `main`."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import (
    QoSRequestedIncompatibleQoSInfo,
    SubscriptionEventCallbacks,
)
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_policy_name_from_kind
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from rclpy.timer import Timer

from lapdtr_ros import qos, topics
from lapdtr_ros.bringup import END_WITH_PARENT
from lapdtr_ros.errors import LapdtrError

_P = TypeVar('_P')

_PR_SET_PDEATHSIG = 1

# Python's 5 ms would let the executor's bookkeeping delay the start of every stage.
_SWITCH_INTERVAL_S = 2e-4

RCLError = rclpy_implementation.RCLError

# Messages may quote what came in, which may be long.
_LONGEST_REASON = 2000

# Largest messages that are unpacked: of any kind, a plan, what devices and sources tell each other.
MOST_BYTES = 64 * 1024 * 1024
MOST_PLAN_BYTES = 4 * 1024 * 1024
MOST_REPORT_BYTES = 64 * 1024

OK = DiagnosticStatus.OK
WARN = DiagnosticStatus.WARN
ERROR = DiagnosticStatus.ERROR
STALE = DiagnosticStatus.STALE


def parameter(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    dynamic: bool = False,
) -> Any:
    """A field of a parameter dataclass.

    Args:
        default: value when the user sets none; its type is the parameter's type.
        description: shown by ``ros2 param describe``.
        minimum: lowest legal value.
        maximum: highest legal value.
        dynamic: whether it may change while the node runs.
    """
    return dataclasses.field(
        default=default,
        metadata={
            'description': description,
            'minimum': minimum,
            'maximum': maximum,
            'dynamic': dynamic,
        },
    )


def declare(node: LifecycleNode, kind: type[_P], defaults: _P | None = None) -> _P:
    """Declare every field of a parameter dataclass and return the values in force.

    Args:
        node: where.
        kind: the dataclass.
        defaults: values when the user sets none, instead of those of the class.

    Raises:
        rclpy.exceptions.InvalidParameterValueException: a value outside its range.
    """
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        default = field.default if defaults is None else getattr(defaults, field.name)
        node.declare_parameter(field.name, default, _descriptor(field))
    return read(node, kind)


def read(node: LifecycleNode, kind: type[_P]) -> _P:
    """The values in force of a declared parameter dataclass."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: node.get_parameter(name).value for name in names})


def _descriptor(field: dataclasses.Field[Any]) -> ParameterDescriptor:
    meta = field.metadata
    descriptor = ParameterDescriptor(description=meta['description'], read_only=not meta['dynamic'])
    low, high = meta['minimum'], meta['maximum']
    if low is None and high is None:
        return descriptor
    if isinstance(field.default, int):
        bounds = IntegerRange(
            from_value=int(low if low is not None else -(2**63)),
            to_value=int(high if high is not None else 2**63 - 1),
        )
        descriptor.integer_range = [bounds]
    else:
        descriptor.floating_point_range = [
            FloatingPointRange(
                from_value=float(low if low is not None else '-inf'),
                to_value=float(high if high is not None else 'inf'),
            )
        ]
    return descriptor


@dataclass(frozen=True)
class Diagnosis:
    """One line of ``/diagnostics``."""

    task: str
    level: bytes
    message: str
    values: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class CommonParameters:
    """Parameters of every node."""

    scenario: str = parameter('', 'Path of the scenario YAML that all nodes of the fleet share')
    fleet: str = parameter('', 'Namespace of the fleet; topics of all nodes start with it')
    autostart: bool = parameter(True, 'Configure and activate without waiting for a manager')


class ManagedNode(LifecycleNode):
    """A lifecycle node whose transitions never fail in silence.

    Subclasses implement `configure`, `activate`, `deactivate` and `cleanup`. A `LapdtrError` in
    `configure` or `activate` is logged and fails the transition; any other exception is logged with
    its traceback and leads to error processing. (rclpy alone would swallow both.)

    Publishers:
        /diagnostics (diagnostic_msgs/DiagnosticArray): at 1 Hz in every state.

    Attributes:
        refused_messages: messages that could not be used, since the start.
        last_refusal: why the newest of them was refused, empty if none was.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.common = declare(self, CommonParameters)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.active = False
        # A node that ended because something failed; its process tells by its exit code.
        self.failed = False
        self._diagnostics = self.create_publisher(
            DiagnosticArray, topics.DIAGNOSTICS, qos.diagnostics()
        )
        self._listening: list[Subscription] = []
        self._ticking: list[Timer] = []
        self._refusing = threading.Lock()
        self.refused_messages = 0
        self.last_refusal = ''
        self._steady_timer(1.0, self._publish_diagnostics)

    def configure(self) -> None:
        """Read parameters and create what the node needs; may raise `LapdtrError`."""

    def activate(self) -> None:
        """Start working."""

    def deactivate(self) -> None:
        """Stop working; subscriptions and timers of `listen` and `every` are gone already."""

    def cleanup(self) -> None:
        """Free what `configure` created."""

    def diagnose(self) -> list[Diagnosis]:
        """Lines for ``/diagnostics`` while the node is active."""
        return []

    def start(self) -> bool:
        """Configure and activate; whether the node is active now."""
        success = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == success and self.trigger_activate() == success

    def listen(
        self,
        kind: type,
        topic: str,
        callback: Callable[[Any], None],
        profile: QoSProfile,
        most_bytes: int = MOST_BYTES,
        events: SubscriptionEventCallbacks | None = None,
    ) -> None:
        """Subscribe until the node is deactivated; users may override the policies.

        Whatever comes in, the node lives on: what raises is counted and told in ``/diagnostics``.

        Args:
            kind: message type.
            topic: its topic.
            callback: called with every message.
            profile: QoS.
            most_bytes: larger messages are refused before they are unpacked.
            events: callbacks for QoS events.
        """

        def unpack(data: bytes) -> None:
            try:
                if len(data) > most_bytes:
                    raise LapdtrError(f'message of {len(data)} bytes; limit {most_bytes}')
                callback(deserialize_message(data, kind))
            except LapdtrError as error:
                self.refuse(f'{topic}: {error}')
            except Exception:
                self.refuse(f'{topic}: cannot be handled:\n{traceback.format_exc()}')

        events = events or SubscriptionEventCallbacks()
        events.incompatible_qos = partial(self._on_incompatible_qos, topic)
        self._listening.append(
            self.create_subscription(
                kind,
                topic,
                unpack,
                profile,
                event_callbacks=events,
                qos_overriding_options=qos.overridable(),
                raw=True,
            )
        )

    def _on_incompatible_qos(self, topic: str, info: QoSRequestedIncompatibleQoSInfo) -> None:
        policy = qos_policy_name_from_kind(info.last_policy_kind)
        self.refuse(
            f'{topic}: a publisher offers another {policy} than is asked for, nothing comes from '
            f'it; set qos_overrides.{topic}.subscription.{policy.lower()}'
        )

    def refuse(self, reason: str) -> None:
        """Count a message that cannot be used, and say why; from any thread."""
        told = reason if len(reason) <= _LONGEST_REASON else f'{reason[:_LONGEST_REASON]} ...'
        with self._refusing:
            self.refused_messages += 1
            self.last_refusal = told
        self.get_logger().warning(told, throttle_duration_sec=1.0)

    def every(self, period_s: float, callback: Callable[[], None]) -> None:
        """Call back until the node is deactivated, also when ``/clock`` stands still."""
        self._ticking.append(self._steady_timer(period_s, callback))

    def _steady_timer(self, period_s: float, callback: Callable[[], None]) -> Timer:
        return self.create_timer(period_s, callback, clock=self._steady)

    def _silence(self) -> None:
        """Undo `listen` and `every`."""
        while self._listening:
            self.destroy_subscription(self._listening.pop())
        while self._ticking:
            self.destroy_timer(self._ticking.pop())

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle hook; see `configure`."""
        return self._transition('configure', self.configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle hook; see `activate`."""
        result = self._transition('activate', self.activate)
        if result == TransitionCallbackReturn.SUCCESS:
            super().on_activate(state)
            self.active = True
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle hook; see `deactivate`."""
        super().on_deactivate(state)
        return self._transition('deactivate', self.end_activity)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle hook; see `cleanup`."""
        return self._transition('cleanup', self.cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lifecycle hook: stops an active node first."""
        if self.active:
            self.on_deactivate(state)
        return self._transition('shutdown', self.cleanup)

    def end_activity(self) -> None:
        """Deactivate; also works when the context is gone and no transition can be published."""
        self._silence()
        self.deactivate()
        self.active = False

    def _transition(self, name: str, step: Callable[[], None]) -> TransitionCallbackReturn:
        began = time.monotonic()
        try:
            step()
        except LapdtrError as error:
            self.get_logger().error(f'{name} failed: {error}')
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().fatal(f'{name} broke:\n{traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR
        self.get_logger().info(f'{name} done in {time.monotonic() - began:.2f} s')
        return TransitionCallbackReturn.SUCCESS

    def _publish_diagnostics(self) -> None:
        lines = self.diagnose() if self.active else [Diagnosis('state', WARN, 'not active')]
        if self.refused_messages:
            values = {'refused': str(self.refused_messages)}
            lines.append(Diagnosis('messages', WARN, self.last_refusal, values))
        message = DiagnosticArray(
            status=[
                DiagnosticStatus(
                    level=line.level,
                    name=f'{self.get_fully_qualified_name()}: {line.task}',
                    message=line.message,
                    hardware_id=self.get_namespace().strip('/'),
                    values=[KeyValue(key=k, value=v) for k, v in line.values.items()],
                )
                for line in lines
            ]
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)


def accepted() -> SetParametersResult:
    """A parameter change is fine."""
    return SetParametersResult(successful=True)


def refused(reason: str) -> SetParametersResult:
    """A parameter change is refused; the reason reaches ``ros2 param set``."""
    return SetParametersResult(successful=False, reason=reason)


def changed(parameters: list[Parameter]) -> dict[str, Any]:
    """Changed parameters by name."""
    return {parameter.name: parameter.value for parameter in parameters}


def run_node(factory: Callable[[], ManagedNode], args: list[str] | None = None) -> int:
    """Body of every node's ``main``.

    Returns:
        0 after a clean shutdown, 1 when the node could not start or failed.
    """
    end_with_parent()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    rclpy.init(args=args)
    node = None
    try:
        node = factory()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        if node.common.autostart and not node.start():
            return 1
        _spin(executor, node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except LapdtrError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        # `ros2 launch` and the terminal both send an interrupt; the second must not cut this short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            _stop(node)
        rclpy.try_shutdown()
    return 1 if node is not None and node.failed else 0


def end_with_parent() -> None:
    """Have Linux interrupt this process when the one that started it dies, however it dies."""
    if os.environ.get(END_WITH_PARENT) == '1':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _spin(executor: SingleThreadedExecutor, node: ManagedNode) -> None:
    """Spin on after an illegal ``change_state`` request, which rclpy turns into an exception."""
    while rclpy.ok():
        try:
            executor.spin()
            return
        except RCLError as error:
            if 'Transition is not registered' not in str(error):
                raise
            node.get_logger().warning('refused a lifecycle transition that is illegal here')


def _stop(node: ManagedNode) -> None:
    try:
        if node.active:
            node.end_activity()
        node.cleanup()
    except Exception:
        traceback.print_exc()
    node.destroy_node()

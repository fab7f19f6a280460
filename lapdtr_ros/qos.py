"""Named QoS profiles; users override them per topic with ``qos_overrides`` parameters."""

from __future__ import annotations

from rclpy.duration import Duration
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

# A source never has more frames in flight than this, so queues of this depth never overflow.
MOST_IN_FLIGHT = 64

LIVELINESS_LEASE_S = 1.0

# So many plans may wait at a reader; what else is sent on the topic must not displace them.
PLANS_WAITING = 32


def frames() -> QoSProfile:
    """Feature maps and results: none may be lost, and a late joiner must not get old ones."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=MOST_IN_FLIGHT,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.VOLATILE,
    )


def plan(depth: int = 1) -> QoSProfile:
    """Fleet plans: a late joiner gets the newest one. The lease tells how many planners live."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
        liveliness=LivelinessPolicy.AUTOMATIC,
        liveliness_lease_duration=Duration(seconds=LIVELINESS_LEASE_S),
    )


def active_plan(streams: int = 1) -> QoSProfile:
    """Plans in use: a planner that comes back gets the newest one of each of ``streams``."""
    return _latched(streams)


def _latched(depth: int) -> QoSProfile:
    """A late joiner gets the newest ``depth`` messages of every publisher."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def recovery() -> QoSProfile:
    """Talk about frames after a loss; a device that comes later has nothing to say about them."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=32, reliability=ReliabilityPolicy.RELIABLE
    )


def telemetry() -> QoSProfile:
    """Device state. The publisher's liveliness lease lets the planner see a dead device."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=10,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
        liveliness=LivelinessPolicy.AUTOMATIC,
        liveliness_lease_duration=Duration(seconds=LIVELINESS_LEASE_S),
    )


def stream_status(streams: int = 1) -> QoSProfile:
    """Progress: a late device gets the newest report of each of ``streams``."""
    return _latched(streams)


def traces() -> QoSProfile:
    """Frame traces: small, frequent, wanted complete."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=256, reliability=ReliabilityPolicy.RELIABLE
    )


def geometry() -> QoSProfile:
    """Poses and cameras: every one belongs to a picture; all cameras of a vehicle send its pose."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=4 * MOST_IN_FLIGHT,
        reliability=ReliabilityPolicy.RELIABLE,
    )


def detections() -> QoSProfile:
    """Fused detections: small, wanted complete by those who evaluate them."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=MOST_IN_FLIGHT,
        reliability=ReliabilityPolicy.RELIABLE,
    )


def camera() -> QoSProfile:
    """Live pictures: newest only; best effort matches drivers of either reliability."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
    )


def pictures() -> QoSProfile:
    """Pictures that this project publishes: reliable for recorders, best-effort readers fit too."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=2, reliability=ReliabilityPolicy.RELIABLE
    )


def clock() -> QoSProfile:
    """Simulation time, as rclpy's own clock listens to it."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE
    )


def diagnostics() -> QoSProfile:
    """The ``/diagnostics`` topic."""
    return QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10)


def overridable() -> QoSOverridingOptions:
    """History, depth and reliability may be set from parameters."""
    return QoSOverridingOptions.with_default_policies()

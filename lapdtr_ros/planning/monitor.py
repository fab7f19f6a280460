"""What the planner knows of the fleet right now, and when that is worth a new plan (paper Alg. 3).

Every figure exists twice: as devices report it, and as plans are made with it. The second follows
the first only when it leaves a band for long enough, and each such step is a `Cause`. This is what
keeps noise in a battery gauge or a radio from turning into plans.

Time is the caller's steady clock in seconds.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from lapdtr_ros.errors import LapdtrError, UnknownNameError

from .classes import of_other_class
from .fleet import Device, Fleet, Link

FIRST, BATTERY, LOST, RETURNED = 'first', 'battery', 'lost', 'returned'
OVERLOAD, LINK, USER, LIMITS = 'overload', 'link', 'user', 'limits'

_MOST_BACKOFF = 32
_BETTER_AFTER = 10
_FORGIVEN_AFTER_S = 300.0


class ReadingError(LapdtrError):
    """Telemetry that cannot be true."""


@dataclass(frozen=True)
class LinkReading:
    """What a device measured on the link to one other device; NaN where it has not.

    Attributes:
        bytes_per_s: goodput.
        delay_s: one-way delay of a small packet.
    """

    bytes_per_s: float = math.nan
    delay_s: float = math.nan


@dataclass(frozen=True)
class Reading:
    """One telemetry message.

    Attributes:
        device: name of the device.
        session: differs between two processes that use the same name; empty if not told.
        device_class: hardware class that the device says it is; empty if not told.
        soc: state of charge, 0 to 1; 1 on mains.
        load: share of time the device was busy, 0 to 1.
        queue: frames that wait.
        time_ratio: measured / expected compute time; NaN while nothing was measured.
        links: measurements by receiving device.
    """

    device: str
    session: str = ''
    device_class: str = ''
    soc: float = 1.0
    load: float = 0.0
    queue: int = 0
    time_ratio: float = math.nan
    links: Mapping[str, LinkReading] = field(default_factory=dict)


@dataclass(frozen=True)
class Cause:
    """Why the planner thinks again.

    Attributes:
        kind: `FIRST`, `BATTERY`, `LOST`, `RETURNED`, `OVERLOAD`, `LINK`, `USER` or `LIMITS`.
        subject: device, link or parameter.
        text: what happened, with numbers, for people.
        urgent: whether it may not wait until the running plan has had its time.
    """

    kind: str
    subject: str
    text: str
    urgent: bool = False


@dataclass(frozen=True)
class Triggers:
    """Thresholds, bands and dwell times of all triggers.

    Attributes:
        silence_s: a device that is not heard for so long is lost.
        return_s: a lost device must be heard for so long before it is used; doubles with every
            loss until the device has stayed for five minutes.
        soc_hysteresis: a low battery counts as recovered this far above the reserve.
        soc_step: change in the state of charge that is worth thinking again.
        time_band: factor by which compute times must differ from those planned with.
        link_band: factor by which a link's rate or delay must differ.
        dwell_s: how long a figure must be outside its band, see `Estimate`.
        queue_limit: frames that wait at a device that does not keep up.
        forget_s: after so long without a measurement the expected figure counts again; doubles
            every time it turns out wrong.
        low_battery_price: price of a joule of a battery below its reserve.
    """

    silence_s: float = 1.25
    return_s: float = 2.0
    soc_hysteresis: float = 0.05
    soc_step: float = 0.1
    time_band: float = 1.3
    link_band: float = 1.5
    dwell_s: float = 1.0
    queue_limit: int = 3
    forget_s: float = 30.0
    low_battery_price: float = 10.0


class Estimate:
    """A figure that plans are made with, kept until measurements stay outside a band around it.

    A worse figure is believed after the dwell time, a better one later: ten times, and twice as
    much for every time it has got worse again within five minutes.

    Args:
        expected: value before anything was measured, above 0.
        worse: 1 when a higher value is worse, -1 when a lower one is.
    """

    def __init__(self, expected: float, worse: int) -> None:
        self.expected = self.used = expected
        self._worse = worse
        self._outside: deque[float] = deque(maxlen=64)
        self._outside_since = 0.0
        self._measured_at = self._worsened_at = -math.inf
        self._newest = self._forgotten = math.nan
        self._patience = 1

    def measure(self, value: float, now: float, band: float, dwell_s: float) -> bool:
        """Take a measurement above 0; whether `used` has moved.

        A value that is exactly the one before is that one told again, not a new measurement.
        """
        if value == self._forgotten:
            return False
        if value != self._newest:
            self._newest, self._measured_at, self._forgotten = value, now, math.nan
        if not self._leaves(value, self.used, band):
            self._outside.clear()
            return False
        worse = (value - self.used) * self._worse > 0
        if self._outside and (self._outside[-1] - self.used) * (value - self.used) < 0:
            self._outside.clear()
        if not self._outside:
            self._outside_since = now
        self._outside.append(value)
        wait_s = dwell_s if worse else dwell_s * _BETTER_AFTER * self._patience
        if now - self._outside_since < wait_s:
            return False
        if worse:
            recent = now - self._worsened_at < _FORGIVEN_AFTER_S
            self._patience = min(2 * self._patience, _MOST_BACKOFF) if recent else 1
            self._worsened_at = now
        self.used = median(self._outside)
        self._outside.clear()
        return True

    def forget(self, now: float, band: float, forget_s: float) -> bool:
        """Trust the expected value again after long silence; whether `used` has moved."""
        if not self._leaves(self.used, self.expected, band):
            return False
        if now - self._measured_at < forget_s * self._patience:
            return False
        self.used, self._forgotten = self.expected, self._newest
        self._outside.clear()
        return True

    @staticmethod
    def _leaves(value: float, centre: float, band: float) -> bool:
        return not centre / band <= value <= centre * band


class _DeviceState:
    """Presence, battery and speed of one device."""

    def __init__(self, device: Device) -> None:
        self.session = ''
        self.heard_at: float | None = None
        self.present = False
        self.back_since: float | None = None
        self.present_since = 0.0
        self.losses = 0
        self.soc = self.soc_used = device.soc
        self.low = False
        self.time = Estimate(device.time_factor, worse=1)


class _LinkState:
    """Rate and delay of one link."""

    def __init__(self, link: Link) -> None:
        self.rate = Estimate(link.bytes_per_s, worse=-1)
        # A delay of 0 has no band around it.
        self.delay = Estimate(max(link.latency_s, 1e-3), worse=1)


class FleetMonitor:
    """Follows the telemetry of a fleet.

    Args:
        fleet: the fleet as described, with expected figures.
        triggers: thresholds; may be replaced at any time.

    Attributes:
        saturation: by device, how many times longer than expected it could take before it would
            not keep up with its streams; devices of streams without a fixed rate are left out.
    """

    def __init__(self, fleet: Fleet, triggers: Triggers | None = None) -> None:
        self.triggers = triggers or Triggers()
        self.saturation: Mapping[str, float] = {}
        self._fleet = fleet
        self._devices = {name: _DeviceState(device) for name, device in fleet.devices.items()}
        self._links = {ends: _LinkState(link) for ends, link in fleet.links.items()}
        self._causes: list[Cause] = []
        self._ticked_at: float | None = None

    @property
    def present(self) -> frozenset[str]:
        """Devices that plans may use."""
        return frozenset(name for name, state in self._devices.items() if state.present)

    @property
    def missing(self) -> tuple[str, ...]:
        """Devices that plans may not use: never heard, lost, or not yet trusted again."""
        return tuple(name for name, state in self._devices.items() if not state.present)

    @property
    def low_batteries(self) -> tuple[str, ...]:
        """Devices below their reserve, as the hysteresis sees it."""
        return tuple(n for n, state in self._devices.items() if state.low and state.present)

    def soc(self, device: str) -> float:
        """State of charge as last reported."""
        return self._devices[device].soc

    def hear(self, reading: Reading, now: float) -> None:
        """Take a reading.

        Raises:
            UnknownNameError: no such device in the fleet, or no such device class.
            ReadingError: an impossible value, or a second process that uses the same name.
        """
        if reading.device not in self._devices:
            raise UnknownNameError('device', reading.device, self._devices)
        check_reading(reading)
        state = self._devices[reading.device]
        self._admit(reading, state, now)
        state.heard_at = now
        state.soc = reading.soc
        if state.present:
            self._watch_battery(reading.device, state)
            self._watch_time(reading, state, now)
            self._watch_links(reading, now)
        else:
            self._believe_class(reading)
            self._welcome(reading.device, state, now)

    def _believe_class(self, reading: Reading) -> None:
        """A device that comes knows its own hardware better than the description of the fleet."""
        device = self._fleet.devices[reading.device]
        if reading.device_class in ('', device.device_class):
            return
        other = of_other_class(device, reading.device_class)
        devices = {**self._fleet.devices, reading.device: other}
        self._fleet = dataclasses.replace(self._fleet, devices=devices)

    def lose(self, device: str, why: str) -> None:
        """A device is gone: its liveliness lease ended, or it is silent."""
        state = self._devices[device]
        state.session, state.heard_at, state.back_since = '', None, None
        if not state.present:
            return
        state.present = False
        state.losses += 1
        self._causes.append(Cause(LOST, device, f'{device} is lost: {why}', urgent=True))

    def tick(self, now: float) -> None:
        """Look for what did not happen; call it several times per `Triggers.silence_s`."""
        self._excuse_own_sleep(now)
        triggers = self.triggers
        for name, state in self._devices.items():
            if state.heard_at is not None and now - state.heard_at > triggers.silence_s:
                self.lose(name, f'silent for {now - state.heard_at:.2f} s')
            if state.present and now - state.present_since > _FORGIVEN_AFTER_S:
                state.losses = 0
            if state.time.forget(now, triggers.time_band, triggers.forget_s):
                self._causes.append(
                    Cause(OVERLOAD, name, f'{name} was not measured for long: expected speed')
                )
        for ends, link in self._links.items():
            forgotten = [
                estimate.forget(now, triggers.link_band, triggers.forget_s)
                for estimate in (link.rate, link.delay)
            ]
            if any(forgotten):
                text = f'{_arrow(ends)} was not measured for long: expected figures'
                self._causes.append(Cause(LINK, _arrow(ends), text))

    def tell(self, cause: Cause) -> None:
        """Add a cause from outside: the first plan, or a user's wish."""
        self._causes.append(cause)

    def pending(self) -> tuple[Cause, ...]:
        """Causes that nobody has taken yet."""
        return tuple(self._causes)

    def take(self) -> tuple[Cause, ...]:
        """Take all pending causes."""
        causes, self._causes = tuple(self._causes), []
        return causes

    def fleet(self) -> Fleet:
        """The devices that are present and their links, with the figures to plan with."""
        devices = {
            name: self._current(self._fleet.devices[name], state)
            for name, state in self._devices.items()
            if state.present
        }
        links = {
            ends: dataclasses.replace(
                link,
                bytes_per_s=self._links[ends].rate.used,
                latency_s=self._delay(link, self._links[ends]),
            )
            for ends, link in self._fleet.links.items()
            if set(ends) <= set(devices)
        }
        return Fleet(devices, links)

    def _current(self, device: Device, state: _DeviceState) -> Device:
        price = device.joule_price * (self.triggers.low_battery_price if state.low else 1.0)
        return dataclasses.replace(
            device, soc=state.soc, time_factor=state.time.used, joule_price=price
        )

    @staticmethod
    def _delay(link: Link, state: _LinkState) -> float:
        unmoved = state.delay.used == state.delay.expected
        return link.latency_s if unmoved else state.delay.used

    def _admit(self, reading: Reading, state: _DeviceState, now: float) -> None:
        """One process per name: the one that was there first, for as long as it is heard."""
        if state.heard_at is None or not state.session:
            state.session = reading.session
        elif reading.session != state.session:
            raise ReadingError(
                f'two devices call themselves {reading.device!r} (sessions {state.session} and '
                f'{reading.session}): the second is ignored; give it another name'
            )

    def _welcome(self, name: str, state: _DeviceState, now: float) -> None:
        """A device speaks that is not in use: at once the first time, later only if it stays."""
        if state.back_since is None:
            state.back_since = now
        wait_s = self.triggers.return_s * min(2 ** (state.losses - 1), _MOST_BACKOFF)
        if state.losses and now - state.back_since < wait_s:
            return
        returned = 'is back' if state.losses else 'has joined'
        state.present, state.present_since = True, now
        state.soc_used = state.soc
        state.low = state.soc < self._fleet.devices[name].reserve_soc
        self._causes.append(Cause(RETURNED, name, f'{name} {returned}'))

    def _watch_battery(self, name: str, state: _DeviceState) -> None:
        reserve = self._fleet.devices[name].reserve_soc
        soc = f'battery of {name} at {state.soc:.1%}'
        if not state.low and state.soc < reserve:
            state.low = True
            cause = Cause(BATTERY, name, f'{soc}, below its reserve of {reserve:.1%}', urgent=True)
        elif state.low and state.soc > reserve + self.triggers.soc_hysteresis:
            state.low = False
            cause = Cause(BATTERY, name, f'{soc}, its reserve of {reserve:.1%} is safe again')
        elif abs(state.soc - state.soc_used) >= self.triggers.soc_step:
            cause = Cause(BATTERY, name, f'{soc}, planned with {state.soc_used:.1%}')
        else:
            return
        state.soc_used = state.soc
        self._causes.append(cause)

    def _watch_time(self, reading: Reading, state: _DeviceState, now: float) -> None:
        # Where frames pile up at a fixed rate, the device is at least as slow as would just do.
        behind = reading.queue >= self.triggers.queue_limit
        implied = self.saturation.get(reading.device, math.nan) if behind else math.nan
        known = [value for value in (reading.time_ratio, implied) if value > 0.0]
        if not known:
            return
        before = state.time.used
        if state.time.measure(max(known), now, self.triggers.time_band, self.triggers.dwell_s):
            text = (
                f'{reading.device} takes {state.time.used:.2f} of its expected time per frame, '
                f'planned with {before:.2f}'
            )
            if implied > 0.0:
                text += f', {reading.queue} frames wait'
            self._causes.append(Cause(OVERLOAD, reading.device, text))

    def _watch_links(self, reading: Reading, now: float) -> None:
        band, dwell_s = self.triggers.link_band, self.triggers.dwell_s
        for target, measured in reading.links.items():
            link = self._links.get((reading.device, target))
            if link is None:
                continue
            moved = [
                estimate.measure(value, now, band, dwell_s)
                for estimate, value in (
                    (link.rate, measured.bytes_per_s),
                    (link.delay, measured.delay_s),
                )
                if value > 0.0
            ]
            if any(moved):
                name = _arrow((reading.device, target))
                text = (
                    f'link {name} carries {link.rate.used / 1e6:.3g} MB/s with '
                    f'{link.delay.used * 1e3:.3g} ms delay, expected '
                    f'{link.rate.expected / 1e6:.3g} MB/s and {link.delay.expected * 1e3:.3g} ms'
                )
                self._causes.append(Cause(LINK, name, text))

    def _excuse_own_sleep(self, now: float) -> None:
        """A planner that was stopped itself must not take everybody else for dead."""
        if self._ticked_at is not None:
            slept = now - self._ticked_at
            if slept > self.triggers.silence_s / 2:
                for state in self._devices.values():
                    if state.heard_at is not None:
                        state.heard_at = min(now, state.heard_at + slept)
        self._ticked_at = now


def check_reading(reading: Reading) -> None:
    """Refuse values that no device can have.

    Raises:
        ReadingError: the text names the field and the value.
    """
    where = f'telemetry of {reading.device}'
    for key, value in (('soc', reading.soc), ('load', reading.load)):
        if not 0.0 <= value <= 1.0:
            raise ReadingError(f'{where}: {key} = {value}; a share from 0 to 1 is expected')
    if reading.queue < 0:
        raise ReadingError(f'{where}: queue = {reading.queue}; 0 or more frames are expected')
    _check_measured(where, 'unit_time_ratio', reading.time_ratio)
    for target, link in reading.links.items():
        _check_measured(where, f'link_bytes_per_s to {target}', link.bytes_per_s)
        _check_measured(where, f'link_delay_s to {target}', link.delay_s)


def _check_measured(where: str, key: str, value: float) -> None:
    if not math.isnan(value) and not 0.0 <= value < math.inf:
        raise ReadingError(
            f'{where}: {key} = {value}; NaN (not measured) or a finite number of at least 0 is '
            f'expected'
        )


def _arrow(ends: tuple[str, str]) -> str:
    return f'{ends[0]} -> {ends[1]}'

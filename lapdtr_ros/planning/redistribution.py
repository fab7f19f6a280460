"""When and how work moves between devices while frames flow (paper §4.1 DTR, Alg. 3).

`FleetMonitor` says when to think again; `Redistributor` thinks: it solves anew, evaluates the
running plan under the new state, adds the price of moving and changes the plan only if that pays,
or if the running plan cannot go on. Every decision keeps its causes, its numbers and what the
alternatives would have cost.

When no plan meets all limits, the fleet degrades in a fixed order:

1. `FULL`: narrower levels and packed cuts down to ``min_accuracy``; the solver does this itself.
2. `SLOWER`: fewer frames per second.
3. `STOPPED`: streams that still have no plan are stopped, by name and with the reason.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lapdtr_ros.errors import LapdtrError, UnknownNameError

from .cost import InfeasiblePlanError, Reference, battery_price, marginal_watts, reference
from .dtr import CORRECTED, LITERAL, dtr_plans
from .fleet import Fleet, Requirements
from .lifetime import fleet_lifetime, plan_for_lifetime
from .monitor import LIMITS, LOST, USER, Cause, FleetMonitor
from .plan import Alternative, Moving, Plan, Stage, StreamDecision
from .profile import ModelProfile
from .streams import (
    StreamCost,
    StreamRequest,
    calibration_of,
    evaluate_streams,
    plan_streams,
)

COST, LIFETIME, DTR_CORRECTED, DTR_LITERAL = 'cost', 'lifetime', 'dtr_corrected', 'dtr_literal'
OBJECTIVES = (COST, LIFETIME, DTR_CORRECTED, DTR_LITERAL)

FULL, SLOWER, STOPPED = 'full', 'slower', 'stopped'

_SAME = 1e-9

# Shares of the wanted frame rate that are tried, in this order.
RATES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Task:
    """What has to be planned.

    Attributes:
        profile: the model.
        requests: what each stream needs.
        requirements: weights and limits.
        weights: weights identifier of the model.
        solver: solver for `COST` and `LIFETIME`, see `solvers.solve`.
        objective: `COST` (energy, latency and period by weight), `LIFETIME` (time until the first
            battery is empty), or the paper's redistribution rules `DTR_CORRECTED` and
            `DTR_LITERAL`, which are there to be compared with.
        dtr_weight: lambda of the paper's rules.
    """

    profile: ModelProfile
    requests: Mapping[str, StreamRequest]
    requirements: Requirements
    weights: str
    solver: str = 'exact'
    objective: str = COST
    dtr_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UnknownNameError('objective', self.objective, OBJECTIVES)


@dataclass(frozen=True)
class Policy:
    """When a better plan is good enough to move to.

    Attributes:
        horizon_s: how long a new plan is expected to last; its gain must pay for the move by then.
        min_gain: least relative improvement that is worth a change.
        min_dwell_s: time that a plan gets before anything that is not urgent may replace it.
        load_bytes_per_s: rate at which a device reads weights into memory.
    """

    horizon_s: float = 60.0
    min_gain: float = 0.03
    min_dwell_s: float = 5.0
    load_bytes_per_s: float = 2e8


@dataclass(frozen=True)
class Service:
    """How much of what was asked for the fleet can give.

    Attributes:
        grade: `FULL`, `SLOWER` or `STOPPED`.
        rate: share of the wanted frame rate, 0 to 1.
        stopped: streams without a plan, with the reason.
        reason: which constraint could not be met; empty when `FULL`.
    """

    grade: str = FULL
    rate: float = 1.0
    stopped: Mapping[str, str] = field(default_factory=dict)
    reason: str = ''

    def __str__(self) -> str:
        parts = []
        if self.rate < 1.0:
            parts.append(f'frame rate lowered to {self.rate:.0%}: {self.reason}')
        parts += [f'{stream} stopped: {why}' for stream, why in self.stopped.items()]
        return '; '.join(parts)


@dataclass(frozen=True)
class Decision:
    """What the planner decided and why.

    Attributes:
        causes: what made it think.
        changed: whether a new plan has to be published.
        streams: plan of every stream that runs from now on.
        service: how much of what was asked for that is.
        reason: why, with numbers, for people.
        moving: price of the change; zero when nothing changes.
        alternatives: what else could have been done, with its price.
        seconds: time that the decision took.
    """

    causes: tuple[Cause, ...]
    changed: bool
    streams: Mapping[str, StreamDecision]
    service: Service
    reason: str
    moving: Moving
    alternatives: tuple[Alternative, ...]
    seconds: float

    @property
    def cause(self) -> Cause:
        """The cause that weighed most: the first urgent one, else the first."""
        return next((cause for cause in self.causes if cause.urgent), self.causes[0])


@dataclass(frozen=True)
class _Offer:
    """One way to run all streams, evaluated under the present state.

    Attributes:
        name: what it is, for people.
        plans: plan per stream.
        costs: cost per stream; empty when the plans cannot even be evaluated.
        rate_score: sum over streams of score per second; less is better.
        lifetime_s: time until the first battery is empty.
        moving: price of changing to it.
        moving_score: the same in the unit of `rate_score` times seconds.
        broken: why it may not run; empty when it may.
    """

    name: str
    plans: Mapping[str, Plan]
    costs: Mapping[str, StreamCost]
    rate_score: float
    lifetime_s: float
    moving: Moving
    moving_score: float
    broken: str


@dataclass(frozen=True)
class _Setting:
    """What one decision is made with: present devices, and as much as they can be asked for."""

    fleet: Fleet
    requirements: Requirements
    requests: Mapping[str, StreamRequest]


class Redistributor:
    """Keeps a fleet's plan in step with the fleet.

    Args:
        monitor: the state of the fleet.
        task: what has to be planned; may be replaced, tell the monitor a `Cause` then.
        policy: when a change pays; may be replaced.
    """

    def __init__(self, monitor: FleetMonitor, task: Task, policy: Policy | None = None) -> None:
        self.monitor = monitor
        self.task = task
        self.policy = policy or Policy()
        self.service = Service()
        self._running: dict[str, StreamDecision] = {}
        self._held: dict[str, set[int]] = {}
        self._settled_at = -math.inf
        self._battery_weights: Mapping[str, float] = {}
        self._hurry = False

    @property
    def running(self) -> Mapping[str, StreamDecision]:
        """The plan in force."""
        return self._running

    def adopt(self, streams: Mapping[str, StreamDecision], now: float) -> None:
        """Take over a plan that is in force already, e.g. after a restart of the planner."""
        self._running = dict(streams)
        self._held = _units_by_device(decision.plan for decision in streams.values())
        self._settled_at = now + self.policy.min_dwell_s

    def decide(self, now: float) -> Decision | None:
        """Think if there is a reason to, and if the running plan has had its time.

        Returns:
            The decision, also when it is to change nothing; None when there is nothing to decide.

        Raises:
            LapdtrError: a user's input makes planning impossible (unknown solver, too large a
                fleet for the exact one); the causes are spent.
        """
        causes = self.monitor.pending()
        if not causes:
            return None
        urgent = not self._running or any(cause.urgent for cause in causes)
        if now < self._settled_at and not urgent and not self._runs_badly():
            return None
        began = time.perf_counter()
        self.monitor.take()
        for cause in causes:
            # A device that was away comes back with nothing loaded.
            if cause.subject not in self.monitor.present:
                self._held.pop(cause.subject, None)
        lost = next((c for c in causes if c.kind == LOST and c.urgent), None)
        # After a loss frames wait for the plan: the longest life is thought over later.
        self._hurry = lost is not None and self.task.objective == LIFETIME
        decision = self._decide(causes, began)
        if self._hurry and lost is not None:
            text = f'{lost.text}, thought over'
            self.monitor.tell(dataclasses.replace(lost, text=text, urgent=False))
        self.service = decision.service
        if decision.changed:
            self.adopt(decision.streams, now)
        return decision

    def _runs_badly(self) -> bool:
        """Whether the running plan breaks a limit that it was made to keep."""
        wanted = _Setting(self.monitor.fleet(), self.task.requirements, self.task.requests)
        return bool(self._running_offer(_slowed(wanted, self.service.rate)).broken)

    def _running_offer(self, setting: _Setting) -> _Offer:
        plans = {name: decision.plan for name, decision in self._running.items()}
        return self._offer('keep the running plan', plans, setting)

    def _decide(self, causes: tuple[Cause, ...], began: float) -> Decision:
        best, setting, service = self._best()
        keep = self._running_offer(setting)
        offers = [best, *self._narrowed(keep, setting)]
        chosen, reason = self._choose(offers, keep, causes)
        self.monitor.saturation = _saturation(chosen, setting)
        considered = [*([keep] if self._running else []), *offers, *self._baselines(setting)]
        changed = chosen is not keep
        told = '; '.join(dict.fromkeys(cause.text for cause in causes))
        return Decision(
            causes=causes,
            changed=changed,
            streams=self._decisions(chosen),
            service=service,
            reason=f'{told}: {reason}' + (f'; {service}' if str(service) else ''),
            moving=chosen.moving if changed else Moving(),
            alternatives=_alternatives(considered, chosen),
            seconds=time.perf_counter() - began,
        )

    def _choose(
        self, offers: list[_Offer], keep: _Offer, causes: tuple[Cause, ...]
    ) -> tuple[_Offer, str]:
        best = offers[0]
        if best.plans == keep.plans:
            return keep, 'the running plan stays the best'
        if not self._running:
            return best, f'{len(best.plans)} of {len(self.task.requests)} streams planned'
        if keep.broken:
            return best, f'the running plan cannot go on ({keep.broken})'
        if self.task.objective == LIFETIME:
            return self._by_lifetime(best, keep)
        return self._by_cost(offers, keep, causes)

    def _by_cost(
        self, offers: list[_Offer], keep: _Offer, causes: tuple[Cause, ...]
    ) -> tuple[_Offer, str]:
        """The offer that saves most until the horizon, less the price of moving to it."""
        best = max(offers, key=lambda offer: self._net(offer, keep))
        gain = 1.0 - best.rate_score / keep.rate_score if keep.rate_score > 0.0 else 0.0
        # A user who changes a wish sees even a small improvement; noise must bring a large one.
        asked = any(cause.kind in (USER, LIMITS) for cause in causes)
        least = _SAME if asked else self.policy.min_gain
        numbers = (
            f'{best.name} costs {gain:.1%} less; moving {best.moving.bytes / 1e6:.1f} MB takes '
            f'{best.moving.seconds:.2f} s and {best.moving.joules:.2f} J'
        )
        if gain <= least:
            return keep, f'the running plan stays: {numbers}, worth it from {least:.1%}'
        if self._net(best, keep) <= 0.0:
            horizon = f'{self.policy.horizon_s:g} s'
            return keep, f'the running plan stays: {numbers}, not earned back in {horizon}'
        return best, numbers

    def _net(self, offer: _Offer, keep: _Offer) -> float:
        useful_s = max(0.0, self.policy.horizon_s - offer.moving.seconds)
        return (keep.rate_score - offer.rate_score) * useful_s - offer.moving_score

    def _by_lifetime(self, best: _Offer, keep: _Offer) -> tuple[_Offer, str]:
        lives = f'{_duration(best.lifetime_s)} instead of {_duration(keep.lifetime_s)}'
        if best.lifetime_s > keep.lifetime_s * (1.0 + self.policy.min_gain):
            return best, f'the first battery lasts {lives}'
        return keep, f'the running plan stays: the first battery would last {lives}'

    def _narrowed(self, keep: _Offer, setting: _Setting) -> list[_Offer]:
        """The running plan with narrower units where a battery is low: nothing has to move."""
        table = self.task.profile.accuracy
        if table is None or keep.broken or not self._running:
            return []
        offers = []
        for device in self.monitor.low_batteries:
            for level in table.level_effects:
                plans = {name: _at_level(p, device, level) for name, p in keep.plans.items()}
                offer = self._offer(f'level {level} on {device}', plans, setting)
                if plans != keep.plans and not offer.broken:
                    offers.append(offer)
        return offers

    def _best(self) -> tuple[_Offer, _Setting, Service]:
        """The best plan at the highest grade of service that the fleet allows."""
        fleet = self.monitor.fleet()
        task = self.task
        stopped, requests = {}, {}
        for name, request in task.requests.items():
            away = {request.source, request.sink} - set(fleet.devices)
            if away:
                stopped[name] = f'{", ".join(sorted(away))} is not there'
            else:
                requests[name] = request
        reason = ''
        for rate in RATES if _rate_matters(task) else RATES[:1]:
            setting = _slowed(_Setting(fleet, task.requirements, requests), rate)
            try:
                offer = self._solved(setting)
            except InfeasiblePlanError as error:
                reason = reason or str(error)
                continue
            grade = STOPPED if stopped else FULL if rate == 1.0 else SLOWER
            return offer, setting, Service(grade, rate, stopped, reason)
        return self._some_streams(setting, stopped)

    def _some_streams(
        self, setting: _Setting, stopped: Mapping[str, str]
    ) -> tuple[_Offer, _Setting, Service]:
        """As many streams as fit, in the order of the scenario, at the lowest rate."""
        taken: dict[str, StreamRequest] = {}
        reasons = dict(stopped)
        for name, request in setting.requests.items():
            trial = dataclasses.replace(setting, requests={**taken, name: request})
            try:
                self._solved(trial)
            except InfeasiblePlanError as error:
                reasons[name] = str(error)
            else:
                taken[name] = request
        left = dataclasses.replace(setting, requests=taken)
        rate = RATES[-1] if _rate_matters(self.task) else 1.0
        reason = next(iter(reasons.values()), '')
        return self._solved(left), left, Service(STOPPED, rate, reasons, reason)

    def _solved(self, setting: _Setting) -> _Offer:
        """The best plan for a setting, by the task's objective.

        Raises:
            InfeasiblePlanError: there is none.
        """
        task = self.task
        if task.objective in (DTR_CORRECTED, DTR_LITERAL):
            plans = dtr_plans(
                task.profile,
                setting.fleet,
                setting.requirements,
                setting.requests,
                rule=CORRECTED if task.objective == DTR_CORRECTED else LITERAL,
                weight=task.dtr_weight,
            )
        elif task.objective == LIFETIME:
            found = plan_for_lifetime(
                task.profile,
                setting.fleet,
                setting.requirements,
                setting.requests,
                model_weights=task.weights,
                solver=task.solver,
                start=self._battery_weights,
                hurry=self._hurry,
            )
            self._battery_weights = found.weights
            plans = dict(found.plans)
        else:
            streams = plan_streams(
                task.profile,
                setting.fleet,
                setting.requirements,
                setting.requests,
                weights=task.weights,
                solver=task.solver,
            )
            plans = {name: decision.plan for name, decision in streams.items()}
        offer = self._offer('the best plan', plans, setting)
        if offer.broken:
            raise InfeasiblePlanError(offer.broken)
        return offer

    def _offer(self, name: str, plans: Mapping[str, Plan], setting: _Setting) -> _Offer:
        """Evaluate plans for all streams under the present state."""
        task = self.task
        nothing = _Offer(name, plans, {}, math.inf, 0.0, Moving(), 0.0, '')
        used = {stage.device for plan in plans.values() for stage in plan.stages}
        gone = sorted(used - set(setting.fleet.devices))
        if gone:
            return dataclasses.replace(nothing, broken=f'it needs {", ".join(gone)}')
        if set(plans) != set(setting.requests):
            served = ', '.join(sorted(plans)) or 'no stream'
            return dataclasses.replace(nothing, broken=f'it serves {served}')
        try:
            costs = evaluate_streams(
                task.profile, setting.fleet, setting.requirements, setting.requests, plans
            )
        except LapdtrError as error:
            return dataclasses.replace(nothing, broken=str(error))
        broken = [f'{name}: {text}' for name, cost in costs.items() for text in cost.broken]
        return _Offer(
            name,
            plans,
            costs,
            sum(self._rate_hz(name, setting) * cost.score for name, cost in costs.items()),
            fleet_lifetime(setting.fleet, setting.requests, {n: c.cost for n, c in costs.items()}),
            *self._moving(plans, setting),
            '; '.join(broken),
        )

    def _rate_hz(self, stream: str, setting: _Setting) -> float:
        """Frames per second to compare plans by; the same for all plans of a stream."""
        request = setting.requests[stream]
        return request.rate_hz or 1.0 / self._yardstick(request, setting).period_s

    def _yardstick(self, request: StreamRequest, setting: _Setting) -> Reference:
        return reference(self.task.profile, setting.fleet, setting.requirements, request.source)

    def _moving(self, plans: Mapping[str, Plan], setting: _Setting) -> tuple[Moving, float]:
        """Price of loading what devices do not hold (all at the same time), also as score."""
        units = self.task.profile.units
        total, joules, slowest, score = 0, 0.0, 0.0, 0.0
        for stream, plan in plans.items():
            yardstick = self._yardstick(setting.requests[stream], setting)
            for name, needed in _units_by_device([plan]).items():
                missing = needed - self._held.get(name, set())
                size = sum(units[unit].parameter_bytes for unit in missing)
                seconds = size / self.policy.load_bytes_per_s
                device = setting.fleet.devices[name]
                spent = seconds * marginal_watts(device)
                price = battery_price(device, setting.requirements.battery_weight)
                total, joules, slowest = total + size, joules + spent, max(slowest, seconds)
                score += setting.requirements.weights.energy * spent * price / yardstick.energy_j
        return Moving(total, joules, slowest), score

    def _baselines(self, setting: _Setting) -> list[_Offer]:
        """What a user would compare with: everything on one device, at the source or elsewhere."""
        units = len(self.task.profile)

        def alone(place: str | None) -> dict[str, Plan]:
            return {
                name: Plan(
                    name,
                    self.task.profile.model,
                    request.source,
                    request.sink,
                    (Stage(place or request.source, 0, units),),
                )
                for name, request in setting.requests.items()
            }

        local = self._offer('the whole model on the source', alone(None), setting)
        single = [
            offer
            for name in setting.fleet.devices
            if (offer := self._offer(f'everything on {name}', alone(name), setting)).costs
            and not offer.broken
        ]
        best = min(single, key=lambda offer: offer.rate_score, default=None)
        return [local] if best is None else [local, best]

    def _decisions(self, offer: _Offer) -> dict[str, StreamDecision]:
        profile = self.task.profile
        return {
            name: StreamDecision(
                plan,
                self.task.weights,
                offer.costs[name].cost.energy_j,
                offer.costs[name].cost.latency_s,
                offer.costs[name].cost.period_s,
                calibration_of(profile, plan),
                offer.costs[name].cost.accuracy,
            )
            for name, plan in offer.plans.items()
        }


def _units_by_device(plans: Iterable[Plan]) -> dict[str, set[int]]:
    held: dict[str, set[int]] = {}
    for plan in plans:
        for stage in plan.stages:
            held.setdefault(stage.device, set()).update(range(stage.start, stage.stop))
    return held


def _at_level(plan: Plan, device: str, level: int) -> Plan:
    stages = tuple(
        dataclasses.replace(stage, level=level) if stage.device == device else stage
        for stage in plan.stages
    )
    return dataclasses.replace(plan, stages=stages)


def _rate_matters(task: Task) -> bool:
    """Whether fewer frames per second can make a plan possible."""
    paced = any(request.rate_hz for request in task.requests.values())
    return paced or math.isfinite(task.requirements.max_period_s)


def _slowed(setting: _Setting, rate: float) -> _Setting:
    if rate == 1.0:
        return setting
    requirements = setting.requirements
    return dataclasses.replace(
        setting,
        requirements=dataclasses.replace(
            requirements, max_period_s=requirements.max_period_s / rate
        ),
        requests={
            name: dataclasses.replace(request, rate_hz=request.rate_hz * rate)
            for name, request in setting.requests.items()
        },
    )


def _saturation(offer: _Offer, setting: _Setting) -> dict[str, float]:
    """Time factor at which each device is just busy all the time; see `FleetMonitor`."""
    busy: dict[str, float] = {}
    for stream, cost in offer.costs.items():
        rate_hz = setting.requests[stream].rate_hz or math.inf
        for name, share in cost.cost.devices.items():
            if share.busy_s > 0.0:
                busy[name] = busy.get(name, 0.0) + share.busy_s * rate_hz
    return {
        name: setting.fleet.devices[name].time_factor / share
        for name, share in busy.items()
        if math.isfinite(share)
    }


def _alternatives(considered: Iterable[_Offer], chosen: _Offer) -> tuple[Alternative, ...]:
    """Offers that were not chosen; the same plans are named once."""
    found: list[tuple[Mapping[str, Plan], Alternative]] = []
    for offer in considered:
        known = [chosen.plans, *(plans for plans, _ in found)]
        if offer.costs and offer.plans not in known:
            found.append((offer.plans, _alternative(offer)))
    return tuple(alternative for _, alternative in found)


def _alternative(offer: _Offer) -> Alternative:
    costs = [cost.cost for cost in offer.costs.values()]
    return Alternative(
        name=f'{offer.name} (not allowed: {offer.broken})' if offer.broken else offer.name,
        energy_j=sum(cost.energy_j for cost in costs),
        latency_s=max(cost.latency_s for cost in costs),
        period_s=max(cost.period_s for cost in costs),
        accuracy=min(cost.accuracy for cost in costs),
        moving=offer.moving,
    )


def _duration(seconds: float) -> str:
    if math.isinf(seconds):
        return 'for ever'
    return f'{seconds / 3600:.2f} h' if seconds >= 3600 else f'{seconds / 60:.1f} min'

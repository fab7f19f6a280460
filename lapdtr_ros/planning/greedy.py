"""The greedy of the paper (Algorithm 2, line 4), as printed and as meant.

Both go through the units once, O(L * N), and give each unit to the device of least price, where
the printed minimum is taken over

* ``literal``: E_i / C_i * C_l with E_i the *remaining* energy. As printed it prefers the emptiest
  battery. A device on mains counts as `MAINS_J` and is taken last.
* ``corrected``: pi_i * P_i / C_i * C_l, the priced joules of the unit, with P_i the power that
  computing adds (§5.2: "energy-to-computation ratio").

The printed rule looks at memory alone and may scatter units. Ours are plans a frame can travel:
a unit stays on the present device or moves to an unused one that the present one has a link to,
and a device that was left is not used again. Limits are not looked at while choosing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .cost import InfeasiblePlanError, battery_price, marginal_watts
from .fleet import Device, Fleet, Requirements
from .plan import Stage
from .profile import ModelProfile

# Stand-in for the endless energy of a device on mains, far above any battery.
MAINS_J = 1e12

# Price of one second of computing.
Price = Callable[[Device], float]


def literal_price(device: Device) -> float:
    """E_i as printed: remaining joules."""
    return MAINS_J if math.isinf(device.battery_j) else device.battery_j * device.soc


def corrected_price(requirements: Requirements) -> Price:
    """pi_i * P_i: watts of computing times the battery price."""
    return lambda device: (
        battery_price(device, requirements.battery_weight) * marginal_watts(device)
    )


def greedy_stages(
    profile: ModelProfile,
    fleet: Fleet,
    requirements: Requirements,
    source: str,
    sink: str,
    price: Price,
) -> tuple[Stage, ...]:
    """Stages that the greedy picks; C_l / C_i is the unit's time on the device.

    Raises:
        InfeasiblePlanError: the greedy has painted itself into a corner.
    """
    seconds = {name: device.unit_times(profile) for name, device in fleet.devices.items()}
    second_price = {name: price(device) for name, device in fleet.devices.items()}
    used: dict[str, int] = {}
    current = source
    held = 0
    for unit, record in enumerate(profile.units):
        candidates = [
            name
            for name in _reachable(fleet, requirements, current, used, source)
            if record.parameter_bytes + (held if name == current and used else 0)
            <= fleet.devices[name].memory_bytes
        ]
        if not candidates:
            raise InfeasiblePlanError(
                f'the greedy is stuck before unit {unit} ({record.name}, '
                f'{record.parameter_bytes / 1e6:.1f} MB) on {current}: no unused device in reach '
                f"has the memory; use solver 'exact', which looks ahead"
            )
        # `min` takes the first of equals, and the present device comes first.
        chosen = min(candidates, key=lambda name: second_price[name] * seconds[name][unit])
        held = held + record.parameter_bytes if chosen in used else record.parameter_bytes
        used.setdefault(chosen, unit)
        current = chosen
    if current != sink and (current, sink) not in fleet.links:
        raise InfeasiblePlanError(
            f'the greedy ends on {current}, which has no link to the sink {sink}: '
            f"add one or use solver 'exact', which looks ahead"
        )
    stops = [*list(used.values())[1:], len(profile)]
    return tuple(
        Stage(name, start, stop) for (name, start), stop in zip(used.items(), stops, strict=True)
    )


def _reachable(
    fleet: Fleet, requirements: Requirements, current: str, used: dict[str, int], source: str
) -> list[str]:
    """Devices that may run the next unit, the present one first."""
    if not used and requirements.pictures_stay:
        return [source]
    onward = [name for name in fleet.devices if name not in used and (current, name) in fleet.links]
    return [current, *onward]

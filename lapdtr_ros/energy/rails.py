"""Power rails: what the board calls them, what hangs on them, and which ones make up the total.

Boards of one family name the same rail differently from release to release (``VDD_IN``,
``5V_IN``, ``POM_5V_IN``), so the parts on a rail are read from the words of its name. A rail that
feeds several parts keeps all of them: the rails of a Xavier NX cannot tell CPU from GPU, and
nothing here pretends that they can (see `split_rail`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lapdtr_ros.errors import LapdtrError

MEASURED = 'measured'
EMULATED = 'emulated'
MODELLED = 'modelled'
LEVELS = (MEASURED, EMULATED, MODELLED)

INPUT = 'input'
CPU = 'cpu'
GPU = 'gpu'
ACCELERATOR = 'accelerator'
MEMORY = 'memory'
SOC = 'soc'
RADIO = 'radio'
CARRIER = 'carrier'
OTHER = 'other'
ROLES = (INPUT, CPU, GPU, ACCELERATOR, MEMORY, SOC, RADIO, CARRIER, OTHER)

_INPUT_NAME = re.compile(r'(POM_)?5V_IN|VDD_IN|INPUT')
_WORDS = {
    'CPU': CPU,
    'GPU': GPU,
    'CV': ACCELERATOR,
    'SOC': SOC,
    'DDR': MEMORY,
    'DRAM': MEMORY,
    'VDDQ': MEMORY,
    'VDDRQ': MEMORY,
    'WIFI': RADIO,
    'MUX': CARRIER,
}
# (rail, its supplier): energy of the first is contained in the second (AGX Orin).
_FED_FROM = {'VDDQ_VDD2_1V8AO': 'VIN_SYS_5V0'}


@dataclass(frozen=True)
class Rail:
    """One power rail.

    Attributes:
        name: as the board calls it.
        roles: the parts it feeds, of `ROLES`.
        counted: whether its energy is part of the meter's total; a rail behind another one is not.
        level: how its energy is obtained, of `LEVELS`.
    """

    name: str
    roles: tuple[str, ...]
    counted: bool
    level: str = MEASURED

    @property
    def role(self) -> str:
        """The parts as text, e.g. ``cpu+gpu``."""
        return '+'.join(self.roles)

    @property
    def label(self) -> str:
        """Name for reports; says so when the rail was not measured."""
        return self.name if self.level == MEASURED else f'{self.name} ({self.level})'


def roles_of(name: str) -> tuple[str, ...]:
    """Parts that a rail feeds, from the words of its name; `OTHER` when no word is known."""
    if _INPUT_NAME.fullmatch(name.upper()):
        return (INPUT,)
    words = re.split(r'[^A-Z0-9]+', name.upper())
    return tuple(dict.fromkeys(_WORDS[word] for word in words if word in _WORDS)) or (OTHER,)


def board_rails(names: Iterable[str]) -> tuple[Rail, ...]:
    """Rails of a board in the order of ``names``.

    The total is the input rail where there is one, since everything hangs behind it (the carrier
    board of a TX2, fed in parallel, is left out as the device classes leave it out). Boards
    without one count every rail that is not fed from another.
    """
    names = tuple(names)
    has_input = any(roles_of(name) == (INPUT,) for name in names)
    rails = []
    for name in names:
        roles = roles_of(name)
        behind = _FED_FROM.get(name) in names
        counted = roles == (INPUT,) if has_input else not behind
        rails.append(Rail(name, roles, counted))
    return tuple(rails)


def split_rail(rail: Rail, amount: float, shares: Mapping[str, float]) -> dict[Rail, float]:
    """Energy or power of a merged rail by part, labelled as modelled (paper Fig. 3 on such boards).

    Args:
        rail: a rail with several roles.
        amount: its joules or watts.
        shares: share of each role, 0 to 1, summing to 1.

    Raises:
        LapdtrError: the shares do not fit the rail.
    """
    if set(shares) != set(rail.roles) or not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
        raise LapdtrError(
            f'shares {dict(shares)} of rail {rail.name}: give one share for each of '
            f'{", ".join(rail.roles)}, summing to 1'
        )
    return {
        dataclasses.replace(
            rail, name=f'{rail.name}/{role}', roles=(role,), counted=False, level=MODELLED
        ): amount * share
        for role, share in shares.items()
    }

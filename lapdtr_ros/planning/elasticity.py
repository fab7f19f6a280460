"""From battery to elastic level: layer elasticity follows the energy that is left (paper §4.1).

The paper scales a layer's heads with the battery, h = h_max (1 - E / E_max): the fuller the
battery, the fewer the heads, none at all when it is full. The prose means the opposite. `CORRECTED`
does what it says, `LITERAL` what is printed, never below one head. See `docs/paper.md`.

A device holds a few prepared levels rather than any number of heads, 0 for full width and
`most` for the narrowest, so both rules are rules for levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from lapdtr_ros.errors import LapdtrError, UnknownNameError

CORRECTED = 'corrected'
LITERAL = 'literal'
RULES = (CORRECTED, LITERAL)


class ElasticityError(LapdtrError):
    """A state of charge, reserve or level that cannot be."""


def energy_share(soc: float, reserve_soc: float) -> float:
    """How much of full width the battery allows: g(soc), 0 at E_min and below, 1 when full.

    Args:
        soc: state of charge, 0 to 1.
        reserve_soc: E_min as a state of charge, 0 to < 1.

    Raises:
        ElasticityError: values out of range.
    """
    _check('soc', soc, 0.0 <= soc <= 1.0, 'use 0 to 1')
    _check('reserve_soc', reserve_soc, 0.0 <= reserve_soc < 1.0, 'use 0 or more, below 1')
    return max(0.0, (soc - reserve_soc) / (1.0 - reserve_soc))


def corrected_heads(most: int, least: int, soc: float, reserve_soc: float) -> int:
    """Heads of the corrected rule: max(h_min, ceil(h_max g(soc))), fewer on an emptier battery.

    Raises:
        ElasticityError: as `energy_share`, or not 1 <= least <= most.
    """
    _check('least heads', least, 1 <= least <= most, f'use 1 to {most}')
    return max(least, math.ceil(most * energy_share(soc, reserve_soc)))


def literal_heads(most: int, soc: float) -> int:
    """Heads of the rule as printed: h_max (1 - E / E_max), rounded down, at least 1.

    Raises:
        ElasticityError: as `energy_share`.
    """
    _check('most heads', most, most >= 1, 'use 1 or more')
    return max(1, math.floor(most * (1.0 - energy_share(soc, 0.0))))


class LevelRule:
    """Elastic level of one device from its battery, without flapping.

    The corrected rule divides the charge between reserve and full battery evenly among the levels.
    A level is left only when the charge is beyond its band by `hysteresis`, so a noisy gauge at a
    border changes nothing. The literal rule takes the prepared level whose heads are nearest to the
    printed number and has no hysteresis, as the paper has none.

    Args:
        heads: heads of the most elastic layer at each level, level 0 first; never rising.
        reserve_soc: E_min as a state of charge.
        rule: one of `RULES`.
        hysteresis: state of charge by which a border must be passed, at most half of the charge
            that one level has.

    Raises:
        UnknownNameError: another rule.
        ElasticityError: no levels, heads that rise or are not positive, or a bad reserve or
            hysteresis.

    Attributes:
        level: level in force; 0 before the first reading.
    """

    def __init__(
        self,
        heads: Sequence[int],
        reserve_soc: float,
        rule: str = CORRECTED,
        hysteresis: float = 0.02,
    ) -> None:
        if rule not in RULES:
            raise UnknownNameError('elasticity rule', rule, RULES)
        falling = all(a >= b >= 1 for a, b in pairwise(heads))
        _check('heads', list(heads), bool(heads) and heads[0] >= 1 and falling, 'let them fall')
        _check('hysteresis', hysteresis, 0.0 <= hysteresis < 1.0, 'use 0 or more, below 1')
        energy_share(1.0, reserve_soc)
        self.level = 0
        self._heads = tuple(heads)
        self._reserve_soc = reserve_soc
        self._rule = rule
        # More would keep the outermost levels out of reach.
        self._hysteresis = min(hysteresis, 0.5 * (1.0 - reserve_soc) / len(heads))

    def update(self, soc: float) -> int:
        """Take a reading of the battery and return the level to run at.

        Args:
            soc: state of charge, 0 to 1.

        Raises:
            ElasticityError: not a state of charge.
        """
        if self._rule == LITERAL:
            wanted = literal_heads(self._heads[0], soc)
            levels = range(len(self._heads))
            self.level = min(levels, key=lambda level: abs(self._heads[level] - wanted))
            return self.level
        widest = self._at(min(1.0, soc + self._hysteresis))
        narrowest = self._at(max(0.0, soc - self._hysteresis))
        self.level = min(max(self.level, widest), narrowest)
        return self.level

    def _at(self, soc: float) -> int:
        """The level of a charge, without memory."""
        levels = len(self._heads)
        return levels - max(1, math.ceil(levels * energy_share(soc, self._reserve_soc)))


def _check(field: str, value: object, good: bool, remedy: str) -> None:
    if not good:
        raise ElasticityError(f'{field} = {value}: {remedy}')

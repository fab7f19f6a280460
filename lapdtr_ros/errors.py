"""Errors that a user can act on.

Every message names the field, the value and the remedy. Nodes and the command catch
`LapdtrError`, print the message without a traceback and go on or stop as their docs say.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LapdtrError(Exception):
    """Base of all errors whose text is meant for the user."""


class UnknownNameError(LapdtrError):
    """A name (model, device, unit, link class, ...) that nobody defined."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1)
        hint = f'did you mean {close[0]!r}?' if close else f'known: {", ".join(names) or "none"}'
        super().__init__(f'unknown {kind} {name!r}: {hint}')
        self.kind = kind
        self.name = name

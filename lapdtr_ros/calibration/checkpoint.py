"""Results of a long run, kept picture by picture so that it can go on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

Arrays = dict[str, np.ndarray]


class Checkpoint:
    """A folder of partial results, valid for exactly one set of options.

    Args:
        folder: made when the first result is kept.
        options: all that the results depend on; others put the results in another subfolder.
    """

    def __init__(self, folder: Path, options: Mapping[str, object]) -> None:
        text = json.dumps(options, sort_keys=True, default=str)
        self._root = folder
        self._folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def get(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """A result by name: the one that was kept, else made now and kept."""
        path = self._folder / f'{name}.npz'
        if path.is_file():
            with np.load(path) as file:
                return dict(file)
        result = make()
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix('.partial.npz')
        np.savez(partial, **cast('Any', result))
        partial.replace(path)
        return result

    def remove(self) -> None:
        """Forget everything: the run is complete."""
        shutil.rmtree(self._root, ignore_errors=True)

"""Features of frozen units, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lapdtr_ros.evaluation.detector import run_units
from lapdtr_ros.models.facts import ModelSpec

from .samples import Sample, sample_input

_BATCH = 8


def cached_features(
    samples: Sequence[Sample],
    spec: ModelSpec,
    units: Sequence[nn.Module],
    folder: Path,
    key: str,
    precision: torch.dtype,
    progress: bool = True,
) -> np.ndarray:
    """Run frozen units on all samples, or find what an earlier training has left.

    Args:
        samples: pictures to run on.
        spec: of the model.
        units: the frozen units, loaded.
        folder: of the cache; several sets of features may share it.
        key: what the features depend on besides the samples: model, weights, number of units.
        precision: dtype of the matrix products.
        progress: whether to show a bar.

    Returns:
        float16, one row per sample, mapped from the file.
    """
    names = [str(sample.path) for sample in samples]
    digest = hashlib.sha256(json.dumps([key, str(precision), names]).encode()).hexdigest()[:16]
    path = folder / f'{digest}.npy'
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix('.partial')
        _compute(samples, spec, units, partial, precision, progress)
        partial.replace(path)  # a file that is there is complete
    return np.load(path, mmap_mode='r')


def _compute(
    samples: Sequence[Sample],
    spec: ModelSpec,
    units: Sequence[nn.Module],
    path: Path,
    precision: torch.dtype,
    progress: bool,
) -> None:
    device = next(units[0].parameters()).device
    rows: np.memmap | None = None
    for start in tqdm(range(0, len(samples), _BATCH), 'frozen units', disable=not progress):
        part = samples[start : start + _BATCH]
        batch = np.stack([sample_input(sample, spec) for sample in part])
        features = run_units(units, torch.from_numpy(batch).to(device), precision).cpu().numpy()
        if rows is None:
            shape = (len(samples), *features.shape[1:])
            rows = np.lib.format.open_memmap(path, 'w+', np.float16, shape)
        # float16 ends at 65504; a few channels of large ViTs come near.
        limit = np.finfo(np.float16).max
        rows[start : start + len(part)] = np.clip(features, -limit, limit)
    assert rows is not None
    rows.flush()

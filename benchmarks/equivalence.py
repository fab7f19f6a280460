"""Split equals unsplit: every family, every cut, float32.

For each model the undivided network of the library gives the reference. Then, for every cut, a
sender's stage gives the features before the cut and a receiver's stage, loaded by itself from the
weight file, finishes the frame. The last line is one JSON object:

    max_abs_diff  largest difference of any output value, any model, any cut
    models        number of models
    cuts          number of cuts over all models

    python benchmarks/equivalence.py [--models NAME ...]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.models.errors import WeightsError
from lapdtr_ros.models.heads import CLASSIFIER
from lapdtr_ros.models.preprocess import picture_to_input
from lapdtr_ros.models.registry import model_spec
from lapdtr_ros.models.weights import load_undivided, load_units, save_weights

MODELS = (
    'vit_tiny_patch16_224',
    'vit_small_patch16_224',
    'deit_tiny_patch16_224',
    'deit_small_patch16_224',
    'deit_tiny_distilled_patch16_224',
    'deit3_small_patch16_224',
    'deit3_base_patch16_224',
    'swin_tiny_patch4_window7_224',
    'tiny_vit_5m_224',
    'tiny_vit_11m_224',
    'efficientvit_m0',
    'efficientvit_m5',
    'edgevit_xxs',
    'edgevit_s',
    'vit_small_patch14_focus',
)

Split = Callable[[str, str, int, np.ndarray], np.ndarray]
"""Runs (model, weights, cut, picture) on two devices and returns the output [1, ...]."""


class LocalSplit:
    """Runs both stages in this process; the sender computes the features of all cuts once."""

    def __init__(self) -> None:
        self._model = ''
        self._features: list[np.ndarray] = []

    def __call__(self, model: str, weights: str, cut: int, picture: np.ndarray) -> np.ndarray:
        """Finish the frame in a receiver that holds the units behind the cut only."""
        if self._model != model:
            self._model, self._features = model, self._cut_features(model, weights, picture)
        units = len(self._features)
        return StageRunner(model, weights, cut, units).run(self._features[cut])

    @staticmethod
    def _cut_features(model: str, weights: str, picture: np.ndarray) -> list[np.ndarray]:
        units = len(model_spec(model).unit_names)
        sender = StageRunner(model, weights, 0, units)
        features = [picture]
        for unit in range(units - 1):
            features.append(sender.run_range(features[unit], unit, unit + 1))
        return features


def max_abs_diff(model: str, weights: str, split: Split) -> tuple[float, int]:
    """Compare a model's split outputs with its undivided output.

    Returns:
        The largest absolute difference over all cuts, and the number of cuts.
    """
    spec = model_spec(model)
    picture = np.random.default_rng(0).integers(0, 256, spec.picture_shape, dtype=np.uint8)
    expected = undivided_output(model, weights, picture)
    worst = 0.0
    for cut in range(len(spec.unit_names)):
        output = split(model, weights, cut, picture)
        worst = max(worst, float(np.abs(output - expected).max()))
    return worst, len(spec.unit_names)


def undivided_output(model: str, weights: str, picture: np.ndarray) -> np.ndarray:
    """Output of the library's own forward; all units at once where we brought the head."""
    spec = model_spec(model)
    if spec.head == CLASSIFIER:
        network = load_undivided(model, weights)
    else:
        network = load_units(model, 0, len(spec.unit_names), weights)
    with torch.inference_mode():
        return network(torch.from_numpy(picture_to_input(picture, spec))).numpy()


def weight_file(model: str, folder: Path) -> str:
    """Real weights for the model that a package carries them for, else saved random ones."""
    if model_spec(model).family == 'focus':
        try:
            load_units(model, 0, 1, 'focus')
        except WeightsError as error:
            print(f'{model}: random weights, because {error}')
        else:
            return 'focus'
    path = folder / 'weights.safetensors'
    save_weights(load_units(model, 0, len(model_spec(model).unit_names), 'random:0'), path)
    return str(path)


def compare(models: Iterable[str], split: Split) -> tuple[float, int]:
    """Compare models one after the other and print a row for each.

    Returns:
        The largest absolute difference and the number of cuts.
    """
    worst, cuts = 0.0, 0
    print(f'{"model":36} {"cuts":>5} {"max |diff|":>12} {"seconds":>8}')
    for model in models:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            difference, count = max_abs_diff(model, weight_file(model, Path(folder)), split)
        seconds = time.perf_counter() - begin
        print(f'{model:36} {count:5} {difference:12.3g} {seconds:8.1f}', flush=True)
        worst, cuts = max(worst, difference), cuts + count
    return worst, cuts


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--models', nargs='+', default=MODELS, metavar='NAME')
    models = parser.parse_args().models
    worst, cuts = compare(models, LocalSplit())
    print(json.dumps({'max_abs_diff': worst, 'models': len(models), 'cuts': cuts}))


if __name__ == '__main__':
    main()

"""Random changes of pictures that leave their labels true, or change them along."""

from __future__ import annotations

import numpy as np

from lapdtr_ros.perception.detection_targets import HEADING, OFFSET

from .losses import Targets

_BRIGHTNESS = 0.25
_CONTRAST = 0.25
_TINT = 0.08


def jitter_colours(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and the balance of colours of a uint8 picture [H, W, 3]."""
    gain = 1 + rng.uniform(-_CONTRAST, _CONTRAST)
    shift = 255 * rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    tint = 1 + rng.uniform(-_TINT, _TINT, size=3)
    # A table per channel: 768 values instead of a picture's half a million.
    levels = (np.arange(256)[:, None] - 127.5) * gain * tint + 127.5 + shift
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return np.stack([table[picture[..., c], c] for c in range(3)], axis=-1)


def flip_features(picture: np.ndarray) -> np.ndarray:
    """Mirror a normalised picture [3, H, W] from left to right."""
    return np.ascontiguousarray(picture[..., ::-1])


def flip_targets(targets: Targets) -> Targets:
    """What the head shall say about the mirrored picture.

    It is the picture of the mirrored camera: depths and sizes stay, centres lie on the other side
    of their cell's middle, and vehicles turn the other way round.
    """
    values = targets.values[..., ::-1].copy()
    values[OFFSET.start] *= -1
    values[HEADING.start] *= -1
    return Targets(values, targets.weights[..., ::-1].copy())

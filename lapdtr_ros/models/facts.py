"""What is known of a model without its network: spec and profile by name.

Sources, the planner, the fusion and the sink need a model's shapes and costs, but run none of it.
Importing torch and timm takes seconds and hundreds of megabytes in each of their processes, so
facts are worked out once, by whoever asks first, and kept in a file that needs neither. The file's
name carries the versions of both libraries and of the code that describes models.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tempfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lapdtr_ros.planning.profile import ModelProfile, UnitProfile

from .layout import FeatureLayout

CLASSIFIER = 'classifier'
SALIENCY = 'saliency'
DETECTION = 'detection'

_DIGEST_CHARACTERS = 16


@dataclass(frozen=True)
class ModelSpec:
    """What a model takes and gives.

    Attributes:
        name: full name, as given.
        network: name of the network, without picture size and head.
        family: key of `families.FAMILIES`.
        picture_shape: (height, width, 3) of the uint8 RGB picture.
        mean: of each channel of pictures in 0..1.
        std: of each channel of pictures in 0..1.
        unit_names: names of the units in order; the last is ``head``.
        head: `CLASSIFIER` or a key of `heads.HEADS`.
        layout: what the backbone hands to the head.
    """

    name: str
    network: str
    family: str
    picture_shape: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    unit_names: tuple[str, ...]
    head: str
    layout: FeatureLayout


@dataclass(frozen=True)
class ModelFacts:
    """Everything about a model that its name alone decides."""

    spec: ModelSpec
    units: tuple[UnitProfile, ...]


def model_spec(name: str) -> ModelSpec:
    """Describe a model.

    Args:
        name: model name, see `registry`.

    Raises:
        UnknownNameError: nobody defined the network or the head.
        ModelNameError: the name does not follow the grammar.
        PictureSizeError: the network cannot take that picture size.
    """
    return _facts(name).spec


@lru_cache(maxsize=64)
def profile_model(name: str) -> ModelProfile:
    """Costs and sizes of all units (paper §4.2). Raises like `model_spec`."""
    facts = _facts(name)
    return ModelProfile(
        name,
        facts.spec.picture_shape,
        facts.units,
        prefix_tokens=facts.spec.layout.prefix_tokens,
    )


def input_shape(name: str, unit: int) -> tuple[int, ...]:
    """Shape of a unit's input with a batch of 1; for unit 0 that of the normalised picture."""
    profile = profile_model(name)
    if unit == 0:
        height, width, channels = profile.picture_shape
        return (1, channels, height, width)
    return (1, *profile.units[unit - 1].output_shape)


def cache_directory() -> Path:
    """Where facts, and converted and fetched weights, live."""
    return Path(os.environ.get('LAPDTR_CACHE', '~/.cache/lapdtr')).expanduser()


@lru_cache(maxsize=64)
def _facts(name: str) -> ModelFacts:
    path = cache_directory() / 'models' / f'{_digest(f"{name} {_makers()}")}.json'
    kind = TypeAdapter(ModelFacts)
    try:
        facts = kind.validate_json(path.read_bytes())
    except (OSError, ValidationError):  # not there yet, or half a file of a full disk
        # Imported late: this is the import that the file saves.
        from .profiling import work_out_facts

        facts = work_out_facts(name)
        _write(path, kind.dump_json(facts, indent=1))
    return facts


@cache
def _makers() -> str:
    """Everything besides a model's name that its facts depend on."""
    versions = [f'{name} {importlib.metadata.version(name)}' for name in ('torch', 'timm')]
    sources = sorted(Path(__file__).parent.glob('*.py'))
    return ' '.join([*versions, *(_digest(path.read_text('utf-8')) for path in sources)])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]


def _write(path: Path, data: bytes) -> None:
    """Write as a whole: another process may be reading. Facts that cannot be kept are no fault."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    except OSError:
        return

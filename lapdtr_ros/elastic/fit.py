"""Make the elastic levels of a model from calibration frames, without training.

1. Run the model and gather, for every part, the statistics of its groups; sort the groups.
2. Narrow every part alone, with compensation, and measure what the last features lose.
3. Rank these steps and cut the list into levels.
4. For every level, fit its readers again from the first unit to the last. A part that is added to
   the residual stream last also learns to mend what the narrower units before it got wrong. Half of
   the statistics come from the undisturbed stream: the device before may run at full width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.layout import NCHW
from lapdtr_ros.models.weights import StageModule

from .compensation import Moments, compensate, order_groups
from .errors import ElasticError
from .levels import PartKey, Step, Widths, candidate_widths, choose_levels, rank_steps
from .measure import (
    FeatureError,
    Features,
    as_rows,
    output_gain,
    reader_inputs,
    run_frames,
    unit_flops,
)
from .parts import Part, parts_of, replace_parts
from .store import as_tensors

Reader = tuple[Tensor, Tensor]
Progress = Callable[[Iterable[Any], str], Iterable[Any]]

# Shares of the model's FLOPs that levels 1, 2, ... save.
SAVINGS = (0.12, 0.24, 0.36, 0.42)


@dataclass(frozen=True)
class ElasticLevels:
    """The outcome.

    Attributes:
        tensors: for the calibration file, see `store`.
        levels: widths of the parts that are narrower at levels 1, 2, ...
        steps: all steps in the order of their price.
        rigid: names of the units that cannot shrink and keep their full width at every level.
    """

    tensors: dict[str, Tensor]
    levels: list[Widths]
    steps: list[Step]
    rigid: tuple[str, ...]


@dataclass(frozen=True)
class _Prepared:
    """A part with what is known of it from the undisturbed model."""

    part: Part
    moments: Moments
    order: Tensor

    def reader(self, width: int, moments: Moments | None = None) -> Reader:
        """Compensated reader for the ``width`` most important groups."""
        kept = self.part.channels(self.order[:width])
        return compensate(*self.part.reader_matrix(), kept, moments or self.moments)

    def module(self, width: int, reader: Reader) -> nn.Module:
        return self.part.shrunk(self.order[:width], *reader)


def fit_levels(
    stage: StageModule,
    frames: Features,
    trial: Features,
    savings: Sequence[float] = SAVINGS,
    progress: Progress = lambda items, _: items,
) -> ElasticLevels:
    """Make the elastic levels of a model.

    Args:
        stage: all units of the model, loaded, on the CPU.
        frames: calibration pictures, normalised [1, 3, H, W]; 50 or more are advisable.
        trial: other pictures, on which single steps are measured; a handful.
        savings: share of the model's FLOPs that each level saves, rising, each below 1.
        progress: wraps a loop with a title, to show how far it is.

    Raises:
        ElasticError: no frames, savings that do not rise, or a model that cannot shrink.
    """
    _check(stage, frames, trial, savings)
    body = list(stage.units)[:-1]
    prepared = _prepare(body, frames, progress)
    inputs = [list(trial)]
    for unit in body:
        inputs.append(run_frames([unit], inputs[-1]))
    flops = sum(
        unit_flops(unit, features[0]) for unit, features in zip(stage.units, inputs, strict=True)
    )
    steps = _measure_steps(body, prepared, inputs, _channels_first(stage), progress)
    ranked = rank_steps(steps)
    levels = choose_levels(ranked, flops, savings)
    readers = _fit_readers(body, prepared, levels, frames, _channels_first(stage), progress)
    orders = {key: found.order for key, found in prepared.items()}
    names = [*stage.unit_names]
    elastic_units = {unit for unit, _ in prepared}
    return ElasticLevels(
        tensors=as_tensors(orders, dict(enumerate(readers, start=1))),
        levels=levels,
        steps=ranked,
        rigid=tuple(name for number, name in enumerate(names) if number not in elastic_units),
    )


def _check(stage: StageModule, frames: Features, trial: Features, savings: Sequence[float]) -> None:
    if not frames or not trial:
        raise ElasticError('elastic levels of no frames: give calibration and trial pictures')
    rising = all(a < b for a, b in zip((0.0, *savings), (*savings, 1.0), strict=True))
    if not savings or not rising:
        raise ElasticError(f'savings = {list(savings)}: use shares between 0 and 1 that rise')
    if not any(parts_of(unit) for unit in stage.units):
        raise ElasticError(
            f'{stage.model}: none of its units has heads or neurons that can be left out; '
            f'calibrate it without levels'
        )


def _channels_first(stage: StageModule) -> bool:
    return model_spec(stage.model).layout.kind == NCHW


def _prepare(
    body: Sequence[nn.Module], frames: Features, progress: Progress
) -> dict[PartKey, _Prepared]:
    """Statistics and order of all parts, from one run of the undisturbed model."""
    prepared = {}
    for number, unit in enumerate(progress(body, 'statistics')):
        parts = parts_of(unit)
        moments = [_no_moments(part) for part in parts]
        outputs = []
        for features in frames:
            seen, output = reader_inputs(parts, unit, features)
            outputs.append(output)
            for gathered, rows in zip(moments, seen, strict=True):
                gathered.add(rows)
        frames = outputs
        for part, gathered in zip(parts, moments, strict=True):
            least = min(candidate_widths(part), default=part.width)
            order = order_groups(part.reader_matrix()[0], gathered.covariance, part.group, least)
            prepared[number, part.path] = _Prepared(part, gathered, order)
    return prepared


def _measure_steps(
    body: Sequence[nn.Module],
    prepared: Mapping[PartKey, _Prepared],
    inputs: Sequence[Features],
    channels_first: bool,
    progress: Progress,
) -> list[Step]:
    """Every part at every smaller width, alone."""
    error = FeatureError(inputs[-1], channels_first)
    steps = []
    for (number, path), found in progress(prepared.items(), 'single steps'):
        unit, features = body[number], inputs[number]
        flops = unit_flops(unit, features[0])
        for width in candidate_widths(found.part):
            module = found.module(width, found.reader(width))
            narrow = replace_parts(unit, {path: module})
            lost = error(run_frames([narrow, *body[number + 1 :]], features))
            saved = flops - unit_flops(narrow, features[0])
            steps.append(Step((number, path), width, lost, saved))
    return steps


def _fit_readers(
    body: Sequence[nn.Module],
    prepared: Mapping[PartKey, _Prepared],
    levels: Sequence[Widths],
    frames: Features,
    channels_first: bool,
    progress: Progress,
) -> list[dict[PartKey, Reader]]:
    """Readers of all levels, fitted from the first unit to the last."""
    clean: Features = frames
    streams: list[Features] = [frames] * len(levels)
    readers: list[dict[PartKey, Reader]] = [{} for _ in levels]
    for number, unit in enumerate(progress(body, 'levels')):
        after = run_frames([unit], clean)
        for index, widths in enumerate(levels):
            narrow = unit
            for part in parts_of(unit):
                key = (number, part.path)
                if key not in widths:
                    continue
                found = prepared[key]
                moments = found.moments
                if streams[index] is not clean:
                    moments = (
                        _disturbed(part, narrow, streams[index], after, channels_first) + moments
                    )
                reader = found.reader(widths[key], moments)
                readers[index][key] = reader
                narrow = replace_parts(narrow, {part.path: found.module(widths[key], reader)})
            same = narrow is unit and streams[index] is clean
            streams[index] = after if same else run_frames([narrow], streams[index])
        clean = after
    return readers


def _disturbed(
    part: Part, unit: nn.Module, stream: Features, wanted: Features, channels_first: bool
) -> Moments:
    """Statistics of a part behind narrower units, and of what its unit's output lacks."""
    gain = output_gain(part, unit, stream[0], channels_first)
    moments = _no_moments(part)
    for features, target in zip(stream, wanted, strict=True):
        (rows,), output = reader_inputs([part], unit, features)
        errors = None if gain is None else as_rows(target - output, channels_first) / gain
        moments.add(rows, errors)
    return moments


def _no_moments(part: Part) -> Moments:
    return Moments(part.width * part.group, len(part.reader_matrix()[1]))

"""Run candidate plans on pictures exactly as devices would, sharing what they have in common.

A *trial* is the stages of a plan; their devices do not matter, only ranges, levels and packing of
cuts. All trials of one picture are run together: what the first stages of many have in common is
computed once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lapdtr_ros.execution.frames import RAW, Packet
from lapdtr_ros.execution.stage import StageRunner
from lapdtr_ros.features.calibration import Calibration
from lapdtr_ros.features.packing import Packing
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.layout import TOKENS
from lapdtr_ros.models.preprocess import decode_jpeg, encode_jpeg
from lapdtr_ros.planning.plan import LOSSLESS, CutSetting, Stage

_TIMED = 3


@dataclass(frozen=True)
class Trial:
    """Stages to run, and the coding of the picture before them.

    Attributes:
        stages: consecutive ranges that cover the model.
        quality: JPEG quality of the picture, 0 for the raw picture.
    """

    stages: tuple[Stage, ...]
    quality: int = 0

    def __str__(self) -> str:
        parts = [f'q{self.quality}'] if self.quality else []
        for stage in self.stages:
            cut = stage.cut
            parts.append(f'{stage.start}-{stage.stop}:l{stage.level}')
            if cut != LOSSLESS:
                parts.append(f'k{cut.keep}{cut.form}b{cut.bits}{cut.transfer}')
        return ' '.join(parts)


def trial_of(*pieces: tuple[int, int, CutSetting], quality: int = 0) -> Trial:
    """A trial from (stop, level, cut) of each stage."""
    stages, start = [], 0
    for number, (stop, level, cut) in enumerate(pieces):
        stages.append(Stage(str(number), start, stop, level, cut))
        start = stop
    return Trial(tuple(stages), quality)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of one trial on one picture.

    Attributes:
        features: the last features before the head, on the grid [1, ...].
        values: the model's result [1, ...].
        cut_bytes: packed bytes of each cut.
    """

    features: Tensor
    values: np.ndarray
    cut_bytes: tuple[int, ...]


class TrialRunner:
    """One model at all levels of a calibration file.

    Args:
        model: model name.
        weights: weights identifier.
        calibration: calibration file, empty for none.
        levels: levels that trials may use, besides 0.
        threads: of torch.
    """

    def __init__(
        self,
        model: str,
        weights: str,
        calibration: Path | str,
        levels: Sequence[int],
        threads: int,
    ) -> None:
        self._spec = model_spec(model)
        self.units = len(self._spec.unit_names)
        self._runners = {
            0: StageRunner(
                model, weights, 0, self.units, threads=threads, calibration=str(calibration)
            )
        }
        self._runners |= {level: self._runners[0].with_level(level) for level in levels}
        self._packing = Packing(
            self._spec.layout, Calibration(calibration, model, weights) if calibration else None
        )

    def run(self, picture: np.ndarray, trials: Sequence[Trial]) -> list[Outcome]:
        """Run trials on a picture of the model's size, uint8 RGB."""
        known: dict[tuple[int, tuple[Stage, ...]], Packet] = {}
        for quality in {trial.quality for trial in trials}:
            seen = decode_jpeg(encode_jpeg(picture, quality)) if quality else picture
            known[quality, ()] = Packet.of_array(seen, RAW)
        return [self._run(trial, known) for trial in trials]

    def cut_features(self, picture: np.ndarray) -> dict[int, np.ndarray]:
        """Undisturbed features [1, ...] at every cut between units."""
        features, by_cut = picture, {}
        for cut in range(1, self.units):
            features = self._runners[0].run_range(features, cut - 1, cut)
            by_cut[cut] = features
        return by_cut

    def pack_times(self, features: np.ndarray, unit: int, cut: CutSetting) -> tuple[float, float]:
        """Seconds to pack and to unpack the input of a unit [1, ...]; least of three."""
        layout = self._spec.layout
        attention = None
        if layout.kind == TOKENS:
            attention = np.ones(features.shape[1] - layout.prefix_tokens, np.float32)
        packed, unpacked = [], []
        for _ in range(_TIMED):
            begin = time.perf_counter()
            packet = self._packing.pack(features, unit, cut, None, attention)
            between = time.perf_counter()
            self._packing.unpack(packet, unit)
            packed.append(between - begin)
            unpacked.append(time.perf_counter() - between)
        return min(packed), min(unpacked)

    def _run(self, trial: Trial, known: dict[tuple[int, tuple[Stage, ...]], Packet]) -> Outcome:
        body = self._body(trial)
        packet = known[trial.quality, ()]
        cut_bytes = []
        for number in range(1, len(body) + 1):
            key = trial.quality, body[:number]
            if key not in known:
                known[key] = self._stage(trial.quality, body[:number], known)
            packet = known[key]
            cut_bytes.append(packet.nbytes)
        head = self._runners[trial.stages[-1].level]
        values = head.run_packet(packet, self.units - 1, self.units, LOSSLESS)
        sizes = tuple(cut_bytes[: len(trial.stages) - 1])
        return Outcome(self._on_grid(packet), values.to_array(), sizes)

    def _body(self, trial: Trial) -> tuple[Stage, ...]:
        """The stages without the head; an empty last one falls away."""
        last = trial.stages[-1]
        shorter = dataclasses.replace(last, stop=self.units - 1)
        return (*trial.stages[:-1], shorter) if shorter else trial.stages[:-1]

    def _stage(
        self,
        quality: int,
        stages: tuple[Stage, ...],
        known: dict[tuple[int, tuple[Stage, ...]], Packet],
    ) -> Packet:
        """Output of the last of some stages; first stages go unit by unit, for others to share."""
        *before, stage = stages
        runner = self._runners[stage.level]
        start, packet = stage.start, known[quality, tuple(before)]
        if not before:
            for stop in range(1, stage.stop):
                key = quality, (Stage('0', 0, stop, stage.level),)
                if key not in known:
                    known[key] = runner.run_packet(packet, start, stop, LOSSLESS)
                start, packet = stop, known[key]
        return runner.run_packet(packet, start, stage.stop, stage.cut)

    def _on_grid(self, packet: Packet) -> Tensor:
        features, summary = self._packing.unpack(packet, self.units - 1)
        if summary is not None:
            features = summary.restore(features, self._spec.layout.prefix_tokens)
        return torch.from_numpy(features.copy())

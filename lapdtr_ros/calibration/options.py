"""Options of ``lapdtr calibrate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lapdtr_ros.elastic.fit import SAVINGS


@dataclass(frozen=True)
class CalibrationOptions:
    """What to calibrate, on what, and how thoroughly.

    Attributes:
        model: name of a model with head ``detection``.
        weights: weights identifier.
        dataset: OPV2V directory that accuracies are measured on.
        fit_dataset: OPV2V directory whose pictures levels and means are fitted on; no scene of it
            should be in ``dataset``.
        out: folder that gets ``config/models/<name>.yaml`` and
            ``weights/<name>.calibration.safetensors``.
        name: of both files.
        frames: moments that accuracies are measured on.
        fit_pictures: pictures to fit on.
        trial_pictures: pictures that single errors are measured on.
        plans: combined plans whose error is measured.
        rated_plans: of them, those whose accuracy is measured.
        savings: share of the model's FLOPs that each elastic level saves.
        seed: of all choices.
        threads: of torch.
    """

    model: str
    weights: str
    dataset: Path
    fit_dataset: Path
    out: Path
    name: str
    frames: int = 12
    fit_pictures: int = 64
    trial_pictures: int = 6
    plans: int = 40
    rated_plans: int = 6
    savings: tuple[float, ...] = SAVINGS
    seed: int = 0
    threads: int = 2

    @property
    def calibration(self) -> str:
        """Name of the calibration file as tables and plans give it."""
        return f'weights/{self.name}.calibration.safetensors'

    @property
    def table(self) -> Path:
        """The accuracy table."""
        return self.out / 'config' / 'models' / f'{self.name}.yaml'

    @property
    def command(self) -> str:
        """The command that these options are, without this machine's folders."""
        return (
            f'lapdtr calibrate {self.model} --weights {Path(self.weights).name} '
            f'--dataset {self.dataset.name} --fit-dataset {self.fit_dataset.name} '
            f'--frames {self.frames} --fit-pictures {self.fit_pictures} '
            f'--trial-pictures {self.trial_pictures} --plans {self.plans} '
            f'--rated-plans {self.rated_plans} --seed {self.seed}'
        )

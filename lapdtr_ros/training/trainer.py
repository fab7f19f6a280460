"""Training of the camera-based 3D detector on one machine.

The first units may be frozen: their features are then computed once, and a training of the rest
costs a fraction. Without frozen units the pictures themselves are augmented. Training samples are
single pictures; cooperation enters only at inference, where detections are merged.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from lapdtr_ros.datasets.opv2v import open_dataset
from lapdtr_ros.evaluation.average_precision import EvaluationProtocol, evaluate_frames
from lapdtr_ros.evaluation.detected import SCORE_THRESHOLD, detection_grid
from lapdtr_ros.evaluation.detector import FUSIONS, run_units
from lapdtr_ros.models.facts import model_spec
from lapdtr_ros.models.weights import open_weights, write_weights
from lapdtr_ros.perception.boxes import CAMERA_RANGE, Boxes
from lapdtr_ros.perception.detection_targets import decode
from lapdtr_ros.perception.fusion import NMS
from lapdtr_ros.perception.ground_truth import CAMERA_LABELS

from .checkpoint import load_checkpoint, save_checkpoint
from .errors import TrainingError
from .features import cached_features
from .initial import backbone_name, base_of, initial_model
from .losses import detection_loss
from .samples import Sample, SampleDataset, collect_samples

_BETAS = (0.9, 0.99)
_GRADIENT_NORM = 10.0
_LAST_RATE = 0.02  # of the learning rate, at the end
_VALIDATION_BATCH = 8

PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


@dataclass(frozen=True)
class TrainingOptions:
    """All that a training depends on.

    Attributes:
        model: name of a model with head `detection`.
        dataset: OPV2V directory; its split `train` where it has splits.
        validate: OPV2V directory; its split `validate` where it has splits.
        out: weight file that is written after every epoch.
        weights: at the start, see `initial_model`.
        frozen_units: how many of the first units are not trained; -1 for all but the head.
        epochs: passes over the training samples.
        batch: pictures per step.
        learning_rate: highest of the schedule.
        weight_decay: of matrices and kernels.
        warmup: share of the steps in which the rate rises.
        ema: decay of the moving average of weights that is validated and kept.
        seed: of initial values, order and augmentation.
        device: `cpu`, `cuda`, or `auto` for the latter where there is one.
        threads: of torch; 0 leaves its default.
        workers: processes that load samples.
        precision: of the matrix products in training, a key of `PRECISIONS`.
        frame_step: every how many timestamps are used.
        validation_agents: at most so many agents' views are validated after an epoch.
        cache: folder for features of frozen units.
    """

    model: str
    dataset: Path
    validate: Path
    out: Path
    weights: str = 'random:0'
    frozen_units: int = 0
    epochs: int = 20
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: float = 0.05
    ema: float = 0.998
    seed: int = 0
    device: str = 'auto'
    threads: int = 0
    workers: int = 0
    precision: str = 'float32'
    frame_step: int = 1
    validation_agents: int = 100
    cache: Path = Path('out/features')

    def as_dict(self) -> dict[str, Any]:
        """The options for JSON."""
        return {
            key: str(value) if isinstance(value, Path) else value
            for key, value in dataclasses.asdict(self).items()
        }


class Trainer:
    """One training; `run` does it."""

    def __init__(self, options: TrainingOptions) -> None:
        """Load data and the model.

        Raises:
            TrainingError: If an option makes no sense.
            LapdtrError: If the data or the weights cannot be had.
        """
        self.options = options
        if options.precision not in PRECISIONS:
            raise TrainingError(f'precision {options.precision!r}: use {", ".join(PRECISIONS)}')
        if min(options.epochs, options.batch, options.frame_step) < 1:
            raise TrainingError('epochs, batch and frame_step must be at least 1')
        if options.threads:
            torch.set_num_threads(options.threads)
        self.precision = PRECISIONS[options.precision]
        self.device = _device(options.device)
        self.spec = model_spec(options.model)
        self.grid = detection_grid(options.model)
        stage = initial_model(options.model, options.weights, options.seed, self.device)
        # Channels last is what convolutions compute in fastest, on CPUs and GPUs.
        self.stage = stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frozen = _frozen_units(options.frozen_units, len(self.stage.units))
        self.trained = nn.ModuleList(list(self.stage.units)[self.frozen :])
        self.average = copy.deepcopy(self.trained).eval()
        self.optimizer = _optimizer(self.trained, options)
        self._load_data()

    def run(self, resume: bool = False) -> dict[str, Any]:
        """Train, or go on from the last checkpoint.

        Returns:
            The log, as it is written next to the weights.
        """
        history: list[dict[str, Any]] = []
        if resume:
            history = self._resume()
        for epoch in range(len(history), self.options.epochs):
            began = time.perf_counter()
            losses = self._train_epoch(epoch)
            row = {
                'epoch': epoch + 1,
                **{name: round(value, 5) for name, value in losses.items()},
                'train_s': round(time.perf_counter() - began, 1),
                'validation_ap50': round(self.validate(), 4),
            }
            history.append(row)
            tqdm.write('  '.join(f'{name} {value:g}' for name, value in row.items()))
            self._save(history)
        return self._log(history)

    def validate(self) -> float:
        """AP50 of single agents, each with its own cameras against what these can see.

        Within `CAMERA_RANGE`, ranked over all agents; boxes of the four cameras merged by NMS.
        """
        predictions = self._validation_predictions()
        found: dict[tuple[str, str, int], list[Boxes]] = defaultdict(list)
        truths: dict[tuple[str, str, int], list[Boxes]] = defaultdict(list)
        for sample, values in zip(self.validation, predictions, strict=True):
            boxes = decode(values, sample.camera, self.grid, score_threshold=SCORE_THRESHOLD)
            found[sample.agent].append(boxes)
            truths[sample.agent].append(sample.boxes)
        protocol = EvaluationProtocol(
            'validation, single agents',
            vehicles=1,
            limits=CAMERA_RANGE,
            label_rule=CAMERA_LABELS,
            thresholds=(0.5,),
        )
        frames = (
            (FUSIONS[NMS].merge(Boxes.concatenate(found[key])), _without_twins(truths[key]))
            for key in found
        )
        return evaluate_frames(frames, protocol).ap50

    def _load_data(self) -> None:
        options = self.options
        train = open_dataset(options.dataset, _split(options.dataset, 'train'))
        validate = open_dataset(options.validate, _split(options.validate, 'validate'))
        samples = collect_samples(train, self.spec, options.frame_step)
        self.validation = _first_agents(
            collect_samples(validate, self.spec, options.frame_step), options.validation_agents
        )
        features, self._validation_features = None, None
        if self.frozen:
            features = self._features(samples)
            self._validation_features = self._features(self.validation)
        seed = None if self.frozen else options.seed
        self.dataset = SampleDataset(samples, self.spec, self.grid, seed, features)

    def _features(self, samples: Sequence[Sample]) -> np.ndarray:
        options = self.options
        key = f'{options.model} {self._frozen_digest()} seed {options.seed} units {self.frozen}'
        units = list(self.stage.units)[: self.frozen]
        return cached_features(samples, self.spec, units, options.cache, key, self.precision)

    def _frozen_digest(self) -> str:
        """What the frozen units' weights are known by; those of a public base by the base."""
        base = base_of(self.spec, self.options.weights)
        local_names = nn.ModuleDict({'units': self.stage.units[: self.frozen]}).state_dict()
        names = {self.stage.tensor_names[local] for local in local_names}
        weights = self.options.weights
        if base.metadata is not None and not names & base.own:
            weights = base.metadata['base']
        return open_weights(backbone_name(self.spec), weights).digest()

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        loader = self._loader(epoch)
        torch.manual_seed(self.options.seed + epoch)  # what is left random in the network
        self.trained.train()
        sums: dict[str, float] = defaultdict(float)
        steps = len(loader)
        for index, batch in enumerate(tqdm(loader, f'epoch {epoch + 1}', leave=False)):
            step = epoch * steps + index
            rate = learning_rate(step, steps * self.options.epochs, self.options)
            for group in self.optimizer.param_groups:
                group['lr'] = rate
            losses = self._step(*(tensor.to(self.device) for tensor in batch))
            self._follow(step)
            for name, value in losses.items():
                sums[name] += value.item() / steps
        return dict(sums)

    def _loader(self, epoch: int) -> DataLoader[Any]:
        """Samples in the order of the epoch; a last odd one is left out, batch norm needs two."""
        self.dataset.epoch = epoch
        options = self.options
        return DataLoader(
            self.dataset,
            batch_size=min(options.batch, len(self.dataset)),
            shuffle=True,
            drop_last=True,
            num_workers=options.workers,
            generator=torch.Generator().manual_seed(options.seed * 1_000_003 + epoch),
        )

    def _step(self, features: Tensor, values: Tensor, weights: Tensor) -> dict[str, Tensor]:
        mixed = self.precision != torch.float32
        with torch.autocast(features.device.type, self.precision, enabled=mixed):
            for unit in self.trained:
                features = unit(features)
        losses = detection_loss(features.float(), values, weights)
        self.optimizer.zero_grad(set_to_none=True)
        losses['total'].backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), _GRADIENT_NORM)
        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Move the average towards the trained weights; quickly at first."""
        decay = min(self.options.ema, (1 + step) / (10 + step))
        current = self.trained.state_dict()
        for name, tensor in self.average.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(current[name], 1 - decay)
            else:
                tensor.copy_(current[name])

    def _validation_predictions(self) -> Iterator[np.ndarray]:
        dataset = SampleDataset(
            self.validation, self.spec, self.grid, features=self._validation_features
        )
        loader = DataLoader(dataset, _VALIDATION_BATCH, num_workers=self.options.workers)
        for features, _, _ in loader:
            batch = run_units(self.average, features.to(self.device), self.precision)
            yield from batch.cpu().numpy()

    def _save(self, history: list[dict[str, Any]]) -> None:
        options = self.options
        average = copy.deepcopy(self.stage)
        for unit, averaged in zip(average.units[self.frozen :], self.average, strict=True):
            unit.load_state_dict(averaged.state_dict())
        base = base_of(self.spec, options.weights)
        tensors = {}
        for local, tensor in average.state_dict().items():  # units.<number>.<...>
            name = average.tensor_names[local]
            inherited = int(local.split('.')[1]) < self.frozen and name not in base.own
            if base.metadata is None or not inherited:
                tensors[name] = storable(tensor)
        write_weights(tensors, options.out, base.metadata)
        text = json.dumps(self._log(history), indent=1)
        options.out.with_suffix('.json').write_text(f'{text}\n', encoding='utf-8')
        save_checkpoint(
            self._checkpoint_folder,
            {'trained': self.trained, 'average': self.average},
            self.optimizer,
            {'epoch': len(history), 'history': history, 'options': options.as_dict()},
        )

    def _resume(self) -> list[dict[str, Any]]:
        modules: dict[str, nn.Module] = {'trained': self.trained, 'average': self.average}
        state = load_checkpoint(self._checkpoint_folder, modules, self.optimizer)
        options = self.options.as_dict()
        changed = [key for key, value in state['options'].items() if options.get(key) != value]
        if changed:
            raise TrainingError(
                f'{self._checkpoint_folder}: the checkpoint was made with another '
                f'{", ".join(changed)}; give the same options, or start without --resume'
            )
        return state['history']

    @property
    def _checkpoint_folder(self) -> Path:
        return self.options.out.with_suffix('.checkpoint')

    def _log(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            'options': self.options.as_dict(),
            'training_pictures': len(self.dataset),
            'validation_pictures': len(self.validation),
            'validation': 'AP50 of single agents: own four cameras, NMS, against own labels whose '
            'centre lies in a picture; x and y within 51.2 m; BEV IoU; ranked over all agents',
            'epochs': history,
        }


def train(options: TrainingOptions, resume: bool = False) -> dict[str, Any]:
    """Train a detector.

    Returns:
        The log: options, sizes and the metrics of every epoch.
    """
    return Trainer(options).run(resume)


def learning_rate(step: int, steps: int, options: TrainingOptions) -> float:
    """Linear warm-up, then half a cosine down to a small rest."""
    warmup = max(1, round(options.warmup * steps))
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    wave = 0.5 * (1 + math.cos(math.pi * progress))
    return options.learning_rate * (_LAST_RATE + (1 - _LAST_RATE) * wave)


def storable(tensor: Tensor) -> Tensor:
    """A tensor as weight files hold it: matrices and kernels in half precision.

    Vectors stay as they are: they are small, and variances of batch norms may be tiny.
    """
    if tensor.is_floating_point() and tensor.ndim >= 2:
        return tensor.half()
    return tensor


def _device(name: str) -> str:
    if name == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    return name


def _frozen_units(frozen: int, units: int) -> int:
    if not -1 <= frozen < units:
        raise TrainingError(f'frozen_units is {frozen}; use 0 to {units - 1}, or -1 for all but 1')
    return units - 1 if frozen == -1 else frozen


def _optimizer(module: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    groups = [
        {'params': matrices, 'weight_decay': options.weight_decay},
        {'params': vectors, 'weight_decay': 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=_BETAS)


def _split(root: Path, name: str) -> str | None:
    return name if (root / name).is_dir() else None


def _first_agents(samples: Sequence[Sample], count: int) -> list[Sample]:
    kept = set(list(dict.fromkeys(sample.agent for sample in samples))[:count])
    return [sample for sample in samples if sample.agent in kept]


def _without_twins(parts: Sequence[Boxes]) -> Boxes:
    """The vehicles that several pictures of one agent show, once each."""
    boxes = Boxes.concatenate(parts)
    return boxes[np.unique(boxes.ids, return_index=True)[1]]

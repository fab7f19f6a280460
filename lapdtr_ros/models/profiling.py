"""Cost and size of every unit, from shapes alone; times on this machine when asked (paper §4.2)."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lapdtr_ros.planning.profile import CONV, FLOAT_BYTES, MATMUL, UnitProfile

from .attention import attends_to_all
from .facts import ModelFacts, input_shape, model_spec
from .layout import NHWC, TOKENS, FeatureLayout
from .registry import build_model
from .weights import StageModule, load_units

# What does not grow with the square of the tokens: linear layers and convolutions.
_PER_TOKEN = (torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.convolution)


def work_out_facts(name: str) -> ModelFacts:
    """Profile a model in one pass over its units, without weights and without computing.

    Tensors live on the meta device, where operators know shapes only. Raises like
    `facts.model_spec`.
    """
    built = build_model(name)
    height, width, channels = built.spec.picture_shape
    features = torch.empty(1, channels, height, width, device='meta')
    profiles = []
    for unit_name, unit in zip(built.spec.unit_names, built.units, strict=True):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            features = unit(features)
        profiles.append(
            _unit_profile(unit_name, unit, tuple(features.shape[1:]), counter, built.spec.layout)
        )
    return ModelFacts(built.spec, tuple(profiles))


def measure_unit_times(
    model: str | StageModule, repeats: int = 10, warmup: int = 2
) -> tuple[float, ...]:
    """Measure each unit on this machine, with torch and its current number of threads.

    Args:
        model: a loaded stage, or a model name (random weights: time does not depend on values).
        repeats: timed runs per unit.
        warmup: runs before them.

    Returns:
        Median seconds per unit, batch 1.
    """
    if isinstance(model, StageModule):
        stage = model
    else:
        stage = load_units(model, 0, len(model_spec(model).unit_names), 'random:0')
    device = next(stage.parameters()).device
    features = torch.zeros(input_shape(stage.model, stage.start), device=device)
    medians = []
    with torch.inference_mode():
        for unit in stage.units:
            times = []
            for _ in range(warmup + repeats):
                begin = time.perf_counter()
                output = unit(features)
                if device.type == 'cuda':
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - begin)
            medians.append(statistics.median(times[warmup:]))
            features = output
    return tuple(medians)


def _unit_profile(
    name: str,
    unit: nn.Module,
    shape: tuple[int, ...],
    counter: FlopCounterMode,
    layout: FeatureLayout,
) -> UnitProfile:
    elements = torch.Size(shape).numel()
    channels = _channels(shape, layout)
    return UnitProfile(
        name=name,
        flops=float(counter.get_total_flops()),
        parameter_bytes=sum(tensor.nbytes for tensor in unit.state_dict().values()),
        output_shape=shape,
        output_bytes=elements * FLOAT_BYTES,
        kind=_kind(unit, counter),
        heads=_heads(unit),
        embedding_dim=channels,
        hidden_dim=_hidden_dim(unit),
        tokens=elements // channels,
        token_global=layout.kind == TOKENS and attends_to_all(unit),
        attention_flops=_attention_flops(counter),
    )


def _channels(shape: tuple[int, ...], layout: FeatureLayout) -> int:
    is_channels_first_map = len(shape) == 3 and layout.kind != NHWC
    return shape[0] if is_channels_first_map else shape[-1]


def _kind(unit: nn.Module, counter: FlopCounterMode) -> str:
    """`CONV` when convolutions dominate; a patch embedding is a matrix product in disguise."""
    convolutions = [m for m in unit.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    if all(conv.kernel_size == conv.stride and conv.groups == 1 for conv in convolutions):
        return MATMUL
    by_operator = counter.get_flop_counts()['Global']
    convolution = by_operator.get(torch.ops.aten.convolution, 0)
    return CONV if 2 * convolution > counter.get_total_flops() else MATMUL


def _attention_flops(counter: FlopCounterMode) -> float:
    """FLOPs of products between tokens."""
    by_operator = counter.get_flop_counts()['Global']
    return float(sum(flops for op, flops in by_operator.items() if op not in _PER_TOKEN))


def _heads(unit: nn.Module) -> int:
    heads = (getattr(module, 'num_heads', 0) for module in unit.modules())
    return next((number for number in heads if number), 0)


def _hidden_dim(unit: nn.Module) -> int:
    """Width of the first feed-forward network: ``fc1`` or, in EfficientViT, ``pw1``."""
    for module in unit.modules():
        first = getattr(module, 'fc1', None) or getattr(module, 'pw1', None)
        if first is not None:
            return next(first.parameters()).shape[0]
    return 0

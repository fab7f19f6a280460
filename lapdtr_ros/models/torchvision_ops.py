"""timm on a torch whose torchvision has no compiled operators.

timm imports torchvision, and torchvision refuses to be imported when its compiled operators do not
load: CPU-only torch next to a CUDA torchvision, or a vendor's torch on a Jetson. No model of ours
calls these operators, so declaring the two that torchvision insists on is enough. Where they do
load, nothing is declared. Every module of ours takes timm from here.
"""

from __future__ import annotations

import torch

_OPERATORS = ('nms', 'qnms')
_SCHEMA = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'

# A declaration lives as long as its Library object.
_library: torch.library.Library | None = None


def declare_missing_operators() -> tuple[str, ...]:
    """Declare the operators without which torchvision cannot be imported.

    Importing torchvision is the only way to learn whether its own operators load, and declaring
    them first would clash with those, so it is tried first.

    Returns:
        The names that had to be declared, empty where torchvision works by itself.
    """
    global _library  # noqa: PLW0603
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        missing = tuple(op for op in _OPERATORS if not hasattr(torch.ops.torchvision, op))
        if not missing:
            raise
        _library = torch.library.Library('torchvision', 'FRAGMENT')
        for operator in missing:
            _library.define(f'{operator}{_SCHEMA}')
        return missing
    return ()


declare_missing_operators()

import timm  # noqa: E402

__all__ = ['declare_missing_operators', 'timm']

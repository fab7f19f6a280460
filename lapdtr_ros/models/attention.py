"""Attention over all tokens: blocks that may run on summarised tokens, and what they attend to."""

from __future__ import annotations

import inspect
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.float32]

_EVERY_QUERY = 8  # column means of every eighth row of the matrix tell as much as those of all


def attends_to_all(unit: nn.Module) -> bool:
    """Whether a unit of a token model attends from every token to every token.

    Such a unit does not know places, so it may run on fewer tokens than the grid has, and it takes
    a bias for each key.
    """
    return 'attn_mask' in inspect.signature(unit.forward).parameters


class AttentionProbe:
    """Listens to the queries and keys of a block while it runs, as a context manager.

    The fused attention of torch never forms the attention matrix. One row of it, that of the class
    token, costs next to nothing once queries and keys are there, so they are caught on their way.

    Args:
        unit: the block; one without `timm`'s ``attn.qkv`` gives no attention.
        prefix_tokens: class, distillation and register tokens before the patch tokens.
    """

    def __init__(self, unit: nn.Module, prefix_tokens: int) -> None:
        self._prefix_tokens = prefix_tokens
        self._attention: Any = getattr(unit, 'attn', None)
        self._joint: Tensor | None = None
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> AttentionProbe:
        projection = getattr(self._attention, 'qkv', None)
        if isinstance(projection, nn.Linear):
            self._hook = projection.register_forward_hook(self._catch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._hook is not None:
            self._hook.remove()

    def received(self, key_bias: Array | None = None) -> Array | None:
        """Attention that each patch token got, [N], mean over heads.

        From the class token where there is one, else the mean over every eighth query.

        Args:
            key_bias: that the block added to its logits, see `StageModule.forward`.

        Returns:
            None if the block computes no such attention.
        """
        if self._joint is None:
            return None
        module = self._attention
        batch, tokens, _ = self._joint.shape
        parts = self._joint.reshape(batch, tokens, 3, module.num_heads, module.head_dim)
        query, key, _ = parts[:1].permute(2, 0, 3, 1, 4).unbind(0)
        query = query[:, :, :1] if self._prefix_tokens else query[:, :, ::_EVERY_QUERY]
        logits = module.q_norm(query) * module.scale @ module.k_norm(key).transpose(-2, -1)
        if key_bias is not None:
            logits = logits + torch.from_numpy(key_bias).to(logits.device)
        attention = logits.softmax(dim=-1).mean(dim=(0, 1, 2))
        return attention[self._prefix_tokens :].detach().cpu().numpy()

    def _catch(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._joint = output

"""Attention summarization: X_sum = f(A) X with a row-stochastic f (paper §4.1).

Patch tokens are divided into ``k`` groups and each group is sent as one row, a weighted mean. Which
token is in which group is sent along: it is small against the rows, and the receiver needs it to
put the grid back. Two ways to divide, the *forms* of a `CutSetting`:

``literal``
    The paper: the ``k - 1`` most attended tokens are rows of their own, the rest is fused into the
    last row, weighted by attention.
``cluster``
    The default. Tokens that are far apart become centres (greedy k-centre), all others join the
    centre that points their way. A dense head needs the background that nobody attends to, hence
    attention does not choose here, it only weights within a group.

Copying a group's row back to all of its places gives the same as going on with the ``k`` rows alone
if every key of the attention weighs as much as its group is large, i.e. has ``log(size)`` added to
its logits (as in token merging, Bolya et al. 2023). So later stages compute on ``k`` tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lapdtr_ros.planning.plan import CLUSTER, LITERAL_FORM

from .errors import SummaryError

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

# The Gram matrix of more would cost more than what it saves.
MAX_POSITIONS = 2048

_MASSIVE = 3.0  # times the median norm
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Summary:
    """Which row stands for which patch token.

    Attributes:
        assignment: row of each patch token, [N], 0 to ``rows - 1``.
        rows: k.
        form: how the rows were made, see the head of this file.
    """

    assignment: Indices
    rows: int
    form: str = CLUSTER

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Number of tokens that each row stands for, [k]."""
        return np.bincount(self.assignment, minlength=self.rows)

    def key_bias(self, prefix_tokens: int) -> Array | None:
        """What is added to the attention logits of each key, [prefix_tokens + k].

        None for the literal form: the paper has no such term.
        """
        if self.form == LITERAL_FORM:
            return None
        bias = np.zeros(prefix_tokens + self.rows, np.float32)
        bias[prefix_tokens:] = np.log(np.maximum(self.sizes, 1))
        return bias

    def restore(self, features: Array, prefix_tokens: int) -> Array:
        """Put the grid back: [1, prefix_tokens + k, C] to [1, prefix_tokens + N, C]."""
        places = np.concatenate([np.arange(prefix_tokens), prefix_tokens + self.assignment])
        return features[:, places]

    def then(self, later: Summary) -> Summary:
        """The summary that this one and a later one of its rows make together."""
        return Summary(later.assignment[self.assignment], later.rows, later.form)


def summarize(
    patches: Tensor,
    keep: int,
    form: str,
    attention: Array | None = None,
    sizes: npt.NDArray[np.int64] | None = None,
    mean: Array | None = None,
) -> tuple[Tensor, Summary]:
    """Summarise the patch tokens of one picture.

    Gradients flow through the rows into ``patches``; the choice of groups is constant.

    Args:
        patches: [N, C].
        keep: number of rows k, 1 to N.
        form: see the head of this file.
        attention: attention that each token gets, [N], >= 0; None where it is not known.
        sizes: tokens that each of ``patches`` already stands for; 1 each by default.
        mean: static mean of each token [N, C], which clusters take off before and put back after:
            what the position put into a token should not decide about its group.

    Returns:
        Rows [k, C] in the order of their centres, and the summary.

    Raises:
        SummaryError: ``keep`` out of range, too many tokens, or the literal form without attention.
    """
    positions = patches.shape[0]
    if not 1 <= keep <= positions:
        raise SummaryError(
            f'keep = {keep} of {positions} patch tokens: expected 1 to {positions}, or 0 for all'
        )
    if positions > MAX_POSITIONS:
        raise SummaryError(
            f'{positions} positions are too many to summarise; the limit is {MAX_POSITIONS}: '
            f'choose a later cut or keep = 0'
        )
    weights = torch.from_numpy(token_weights(positions, attention, sizes))
    if form == LITERAL_FORM:
        if attention is None:
            raise SummaryError(
                'form literal needs the attention of the block before the cut, and there is none '
                'that covers all tokens; use form cluster'
            )
        assignment = most_attended(attention, keep)
        rows = fuse(patches, torch.from_numpy(assignment), weights, keep)
        return rows, Summary(assignment, keep, form)
    offset = torch.zeros(()) if mean is None else torch.from_numpy(mean)
    centred = patches - offset
    assignment = k_centre(centred.detach().numpy(), keep)
    places = torch.from_numpy(assignment)
    rows = fuse(centred, places, weights, keep)
    if mean is not None:
        rows = rows + group_means(offset, places, keep)
    return rows, Summary(assignment, keep, form)


def token_weights(
    positions: int, attention: Array | None, sizes: npt.NDArray[np.int64] | None
) -> Array:
    """How much each token counts within its group, [N], > 0.

    The attention that a row gets already grows with its size.
    """
    if attention is not None:
        return np.maximum(attention, _TINY, dtype=np.float32)
    if sizes is not None:
        return sizes.astype(np.float32)
    return np.ones(positions, np.float32)


def fuse(patches: Tensor, assignment: Tensor, weights: Tensor, rows: int) -> Tensor:
    """f(A) X: the weighted mean of each group, [rows, C]; differentiable in both tensors.

    Args:
        patches: [N, C].
        assignment: group of each token, [N].
        weights: [N], > 0.
        rows: number of groups.
    """
    total = torch.zeros(rows, dtype=weights.dtype).index_add(0, assignment, weights)
    share = weights / total[assignment]
    return patches.new_zeros(rows, patches.shape[1]).index_add(
        0, assignment, patches * share[:, None]
    )


def group_means(tokens: Tensor, assignment: Tensor, rows: int) -> Tensor:
    """Unweighted mean of each group, [rows, C]."""
    return fuse(tokens, assignment, torch.ones(tokens.shape[0]), rows)


def most_attended(attention: Array, keep: int) -> Indices:
    """The literal division: each of the ``keep - 1`` most attended alone, the others together.

    Returns:
        Group of each token, [N]; single tokens in order of their place, the fused group last.
    """
    chosen = np.sort(np.argsort(-attention, kind='stable')[: keep - 1])
    assignment = np.full(attention.shape[0], keep - 1, np.intp)
    assignment[chosen] = np.arange(keep - 1)
    return assignment


def k_centre(tokens: Array, keep: int) -> Indices:
    """Divide tokens around centres that are far apart from each other.

    Tokens of a norm far above the rest hold scratch data of the whole picture in some networks
    (massive activations); averaging one away damages everything, so they are centres from the start
    and nobody joins them.

    Args:
        tokens: [N, C].
        keep: number of groups k, 1 to N.

    Returns:
        Group of each token, [N], groups in order of their centre's place. No group is empty.
    """
    gram = tokens @ tokens.T
    squares = gram.diagonal().copy()
    massive = _massive(squares, keep)
    centres = np.sort(_spread_out(gram, squares, massive, keep))
    # cosine: the direction of a token tells what it shows, its length how sure the network is
    scores = gram[:, centres] / np.sqrt(np.maximum(squares[centres], _TINY))
    lonely = np.isin(centres, massive)
    if not lonely.all():
        scores[:, lonely] = -np.inf
    assignment = scores.argmax(axis=1)
    assignment[centres] = np.arange(keep)
    return assignment


def _massive(squares: Array, keep: int) -> Indices:
    """Tokens that are always kept, at most half of the centres."""
    found = np.flatnonzero(squares > _MASSIVE**2 * np.median(squares))
    return found[np.argsort(-squares[found], kind='stable')[: keep // 2]]


def _spread_out(gram: Array, squares: Array, massive: Indices, keep: int) -> Indices:
    """Greedy k-centre: start with given centres, or the largest token, add the farthest each."""
    centres = list(massive) or [int(squares.argmax())]
    distance = np.full_like(squares, np.inf)
    # |i - j|^2 = |i|^2 - 2 ij + |j|^2, of which row j holds all but the last term.
    halves = squares - 2 * gram
    for number in range(keep):
        if number == len(centres):
            centres.append(int(distance.argmax()))
        centre = centres[number]
        np.minimum(distance, halves[centre] + squares[centre], out=distance)
        distance[centre] = -np.inf  # never again, even among equal tokens
    return np.array(centres[:keep], np.intp)

"""The importance of each token id, learned from its losses, and the tokens of a sample that it selects.

    importance of an id    0.995 importance + 0.005 mean loss of its tokens in the step; 10 before the first step
    kept                   the K most important tokens of a sample; a hash decides between equal ones; special tokens
                           come first, padding last

The loss of a token is the one at its position: for a causal model, that of predicting the token after it. In the source
(Hou et al., "Token Dropping for Efficient BERT Pretraining", arXiv:2203.13240) a hidden token is predicted itself.

Float64, because ranks sum losses in any order, and rounding must not decide between two ids.

Shapes: B micro-batch, S sequence, K kept tokens, V vocabulary. No state here: every function is pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

START = 10.0
_NEW_SHARE = 0.005


def start_importance(vocab_size: int) -> Tensor:
    """The importance of all ids before the first step, float64 [V]."""
    return torch.full((vocab_size,), START, dtype=torch.float64)


def next_importance(importance_V: Tensor, loss_sums_V: Tensor, counts_V: Tensor) -> Tensor:
    """The importance after a step, float64 [V]; that of an id without a token in the loss does not change.

    ``loss_sums_V`` and ``counts_V`` are over the tokens of the whole global batch.
    """
    mean_V = loss_sums_V / counts_V.clamp_min(1.0)
    return torch.where(counts_V > 0, torch.lerp(importance_V, mean_V, _NEW_SHARE), importance_V)


def importance_of(
    tokens_BS: Tensor, importance_V: Tensor, special_ids: Sequence[int], padding_BS: Tensor | None = None
) -> Tensor:
    """The importance of each token, float64 [B, S]: infinite for special tokens, minus infinity for padding."""
    if special_ids:
        importance_V = importance_V.clone()
        for number in special_ids:  # one by one: a tensor of them would wait for a GPU
            importance_V[number].fill_(torch.inf)
    importance_BS = importance_V[tokens_BS]
    return importance_BS if padding_BS is None else importance_BS.masked_fill(padding_BS, -torch.inf)


def most_important(importance_BS: Tensor, keys_BS: Tensor, kept_tokens: int, strata: int) -> Tensor:
    """Positions of the most important tokens, int64 [B, K], ascending; K / strata of each of ``strata`` equal parts.

    Of equally important tokens those with the smallest keys are selected; ``keys_BS``: int64, distinct in each row.
    """
    batch, seq_length = importance_BS.shape
    part_length = seq_length // strata
    shape = (batch, strata, part_length)
    by_key = keys_BS.view(shape).argsort(dim=2)
    order = importance_BS.view(shape).gather(2, by_key).argsort(dim=2, descending=True, stable=True)
    winners = by_key.gather(2, order[..., : kept_tokens // strata]).sort(dim=2).values
    starts = torch.arange(0, seq_length, part_length, device=winners.device)
    return (winners + starts[:, None]).view(batch, kept_tokens)

"""One microbatch of a causal language model: samples to tensors.

Shapes: B samples of a microbatch, S sequence. Not here: which tokens a sample holds (``data.datasets``), which samples
a microbatch holds (``data.microbatches``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.ltd.data.microbatches import Microbatch
from megatron.ltd.routing.sequence_shard import SequenceShard


@dataclass(frozen=True, kw_only=True)
class Batch(Microbatch):
    """A microbatch of packed documents; under context parallelism this rank's share of each sample.

    ``tokens_BS``, ``labels_BS`` and ``position_ids_BS`` int64; ``loss_mask_BS`` float32, 0 where the loss does not
    count; ``attention_mask`` None (causal) or bool [B, 1, S, S], **True where attention is forbidden** (as in
    Megatron-Core; the rows are the rank's share, the columns all S). A pipeline stage between the first and the last
    needs no tokens and has None.
    """

    tokens_BS: Tensor | None = None
    labels_BS: Tensor | None = None
    loss_mask_BS: Tensor | None = None
    position_ids_BS: Tensor | None = None
    attention_mask: Tensor | None = None


def document_mask(tokens_BS: Tensor, end_of_document: int) -> Tensor:
    """Causal attention within documents: bool [B, 1, S, S], True where query i must not see key j.

    An end of document belongs to the document that it ends: the document of a token is the number of ends before it.
    """
    ends_BS = (tokens_BS == end_of_document).long()
    document_BS = ends_BS.cumsum(dim=1) - ends_BS
    other_document_BSS = document_BS[:, :, None] != document_BS[:, None, :]
    sequence = tokens_BS.shape[1]
    future_SS = torch.ones(sequence, sequence, dtype=torch.bool, device=tokens_BS.device).triu(diagonal=1)
    return (other_document_BSS | future_SS)[:, None]


def build_batch(
    samples: Sequence[Mapping[str, Tensor]],
    sample_ids: Sequence[int],
    *,
    separate_documents_at: int | None = None,
    sequence_shard: SequenceShard | None = None,
    whole_tokens: bool = False,
) -> Batch:
    """Stack samples of ``GPTDataset`` (each ``tokens``, ``labels``, ``loss_mask``, ``position_ids`` [S]).

    ``separate_documents_at`` is the end-of-document id if documents must not attend to each other, else None.
    ``sequence_shard`` is the part of each sample to take, None for all of it. Samples of ``NoTokens`` give sample ids
    only. ``whole_tokens``: the batch also has all tokens of the samples.
    """
    sample_ids_B = torch.tensor(sample_ids, dtype=torch.int64)
    if not samples[0]:
        return Batch(sample_ids_B=sample_ids_B)
    shard = sequence_shard or SequenceShard(1, (0,))

    def stacked(name: str) -> Tensor:
        return shard.take(torch.stack([sample[name] for sample in samples]), dim=1)

    mask = None
    whole_BS = torch.stack([sample["tokens"] for sample in samples])
    if separate_documents_at is not None:
        mask = shard.take(document_mask(whole_BS, separate_documents_at), dim=2)
    return Batch(
        tokens_BS=stacked("tokens"),
        labels_BS=stacked("labels"),
        loss_mask_BS=stacked("loss_mask"),
        position_ids_BS=stacked("position_ids"),
        attention_mask=mask,
        sample_ids_B=sample_ids_B,
        whole_tokens_BS=whole_BS if whole_tokens else None,
    )

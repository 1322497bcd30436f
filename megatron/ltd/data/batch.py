"""One microbatch of a causal language model: samples to tensors.

Shapes: B samples of a microbatch, S sequence, Q the tokens of this rank. An attention mask has S² values a sample: what
travels is where documents start, and the device makes the mask of it.

Not here: which tokens a sample holds (``data.datasets``), which samples a microbatch holds (``data.microbatches``).
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
    count; ``document_starts_BS`` int64 over all S tokens of a sample, None if documents attend to each other;
    ``own_positions_Q`` int64, this rank's positions in the whole sequence. A pipeline stage between the first and the
    last needs no tokens and has None.
    """

    tokens_BS: Tensor | None = None
    labels_BS: Tensor | None = None
    loss_mask_BS: Tensor | None = None
    position_ids_BS: Tensor | None = None
    document_starts_BS: Tensor | None = None
    own_positions_Q: Tensor | None = None

    def attention_mask(self) -> Tensor | None:
        """None (causal), or bool [B, 1, Q, S], made on the batch's device: see ``document_mask``."""
        if self.document_starts_BS is None:
            return None
        assert self.own_positions_Q is not None, "documents are separated at the positions of the queries"
        return document_mask(self.document_starts_BS, self.own_positions_Q)


def document_starts(tokens_BS: Tensor, end_of_document: int) -> Tensor:
    """The position at which the document of each token starts: int64 [B, S], ascending.

    An end of document belongs to the document that it ends.
    """
    positions_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
    after_end_BS = (tokens_BS == end_of_document).roll(1, dims=1)
    after_end_BS[:, 0] = True
    return (positions_S * after_end_BS).cummax(dim=1).values


def document_mask(starts_BS: Tensor, positions_Q: Tensor) -> Tensor:
    """Causal attention within documents: bool [B, 1, Q, S], **True where a query must not see a key**, as in
    Megatron-Core. The queries are at ``positions_Q`` of the sequence, the same in every sample.
    """
    columns_S = torch.arange(starts_BS.shape[1], device=starts_BS.device)
    forbidden_BQS = columns_S < starts_BS.index_select(1, positions_Q)[:, :, None]
    forbidden_BQS |= columns_S > positions_Q[:, None]
    return forbidden_BQS[:, None]


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

    starts_BS = own_positions_Q = None
    whole_BS = torch.stack([sample["tokens"] for sample in samples])
    if separate_documents_at is not None:
        starts_BS = document_starts(whole_BS, separate_documents_at)
        own_positions_Q = shard.take(torch.arange(whole_BS.shape[1]), dim=0)
    return Batch(
        tokens_BS=stacked("tokens"),
        labels_BS=stacked("labels"),
        loss_mask_BS=stacked("loss_mask"),
        position_ids_BS=stacked("position_ids"),
        document_starts_BS=starts_BS,
        own_positions_Q=own_positions_Q,
        sample_ids_B=sample_ids_B,
        whole_tokens_BS=whole_BS if whole_tokens else None,
    )

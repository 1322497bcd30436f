"""One microbatch of BERT's pretraining: samples to tensors.

Shapes: B samples of a microbatch, S sequence. Not here: what a sample holds (``data.bert_datasets``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from megatron.ltd.data.microbatches import Microbatch


@dataclass(frozen=True, kw_only=True)
class BertBatch(Microbatch):
    """A microbatch of masked samples; ``padding_BS`` is always there.

    ``tokens_BS``, ``types_BS`` and ``labels_BS`` int64: what the model reads, 0 or 1 for the sentence, and what was
    there before some tokens were hidden; ``loss_mask_BS`` float32, 1 where one was; ``is_swapped_B`` int64, 1 if the
    second sentence comes first.
    """

    tokens_BS: Tensor
    types_BS: Tensor
    labels_BS: Tensor
    loss_mask_BS: Tensor
    is_swapped_B: Tensor


def build_bert_batch(
    samples: Sequence[Mapping[str, Any]], sample_ids: Sequence[int], *, whole_tokens: bool = False
) -> BertBatch:
    """Stack samples of ``build_bert_datasets``. ``whole_tokens``: for a method that selects by tokens."""

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(numpy.stack([sample[name] for sample in samples]))

    tokens_BS = stacked("tokens")
    return BertBatch(
        tokens_BS=tokens_BS,
        types_BS=stacked("types"),
        labels_BS=stacked("labels"),
        loss_mask_BS=stacked("loss_mask"),
        padding_BS=stacked("padding"),
        is_swapped_B=torch.tensor([sample["is_swapped"] for sample in samples], dtype=torch.int64),
        sample_ids_B=torch.tensor(sample_ids, dtype=torch.int64),
        whole_tokens_BS=tokens_BS if whole_tokens else None,
    )

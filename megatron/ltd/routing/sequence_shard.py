"""Which parts of the sequence a rank holds, under context and sequence parallelism.

The sequence is split into n equal parts, and a rank holds some of them, in order:

    context parallelism (zigzag), 2 ranks      │ 0 │ 1 │ 2 │ 3 │     rank 0: 0 3      rank 1: 1 2
    sequence parallelism, 2 ranks              │ 0 │ 1 │             rank 0: 0        rank 1: 1
    both: a context rank's parts, split again over the tensor-parallel ranks

In causal attention later tokens cost more; with zigzag every context rank has an early and a late part, so that all
have the same work. If the strata are a multiple of n, every part and so every rank keeps the same number of tokens:
gathering needs no communication, and shapes are equal on all ranks.

Shapes: B micro-batch, S sequence, K kept tokens; positions and K are the whole sequence's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.ltd.parallel.layout import num_parts


@dataclass(frozen=True)
class SequenceShard:
    """The parts on a rank, out of ``num_parts`` equal ones, in the order of the rank's tokens."""

    num_parts: int
    parts: tuple[int, ...]

    @classmethod
    def of(cls, context_rank: int, context_size: int, tensor_rank: int = 0, tensor_size: int = 1) -> SequenceShard:
        """The shard of one rank; ``tensor_size`` is 1 without sequence parallelism, and also inside attention."""
        parts = num_parts(context_size, tensor_size)
        if context_size == 1:
            return cls(parts, (tensor_rank,))
        half = parts // (2 * context_size)
        late = 2 * context_size - 1 - context_rank
        zigzag = (*range(context_rank * half, (context_rank + 1) * half), *range(late * half, (late + 1) * half))
        share = len(zigzag) // tensor_size
        return cls(parts, zigzag[tensor_rank * share : (tensor_rank + 1) * share])

    @property
    def is_whole(self) -> bool:
        return len(self.parts) == self.num_parts

    def take(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's part of ``whole``, whose dimension ``dim`` is S."""
        if self.is_whole:
            return whole
        length = whole.shape[dim] // self.num_parts
        return torch.cat([whole.narrow(dim, part * length, length) for part in self.parts], dim)

    def local_kept(self, kept_BK: Tensor, seq_length: int) -> Tensor:
        """The kept tokens on this rank, as positions in its shard: int64 [B, K / ranks], ascending.

        The strata must be a multiple of ``num_parts``. Dimensions before B are kept.
        """
        if self.is_whole:
            return kept_BK
        kept_of_part, part_length = kept_BK.shape[-1] // self.num_parts, seq_length // self.num_parts
        return torch.cat(
            [
                kept_BK.narrow(-1, part * kept_of_part, kept_of_part) + (place - part) * part_length
                for place, part in enumerate(self.parts)
            ],
            dim=-1,
        )

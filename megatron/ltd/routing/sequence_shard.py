"""Which parts of the sequence a rank holds, under context and sequence parallelism.

The sequence is split into n equal parts, called runs here, and a rank holds some of them, in order:

    context parallelism (zigzag), 2 ranks      │ 0 │ 1 │ 2 │ 3 │     rank 0: 0 3      rank 1: 1 2
    sequence parallelism, 2 ranks              │ 0 │ 1 │             rank 0: 0        rank 1: 1
    both: a context rank's runs, split again over the tensor-parallel ranks

In causal attention later tokens cost more; with zigzag every context rank has an early and a late run, so that all have
the same work. If the strata are a multiple of n, every run and so every rank keeps the same number of tokens: gathering
needs no communication, and shapes are equal on all ranks.

Shapes: B micro-batch, S sequence, K kept tokens; positions and K are the whole sequence's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.ltd.parallel.layout import num_runs


@dataclass(frozen=True)
class SequenceShard:
    """The runs on a rank, out of ``num_runs`` equal ones, in the order of the rank's tokens."""

    num_runs: int
    runs: tuple[int, ...]

    @classmethod
    def of(cls, context_rank: int, context_size: int, tensor_rank: int = 0, tensor_size: int = 1) -> SequenceShard:
        """The shard of one rank; ``tensor_size`` is 1 without sequence parallelism, and also inside attention."""
        runs = num_runs(context_size, tensor_size)
        if context_size == 1:
            return cls(runs, (tensor_rank,))
        half = runs // (2 * context_size)
        late = 2 * context_size - 1 - context_rank
        zigzag = (*range(context_rank * half, (context_rank + 1) * half), *range(late * half, (late + 1) * half))
        share = len(zigzag) // tensor_size
        return cls(runs, zigzag[tensor_rank * share : (tensor_rank + 1) * share])

    @property
    def is_whole(self) -> bool:
        return len(self.runs) == self.num_runs

    def take(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's part of ``whole``, whose dimension ``dim`` is S."""
        if self.is_whole:
            return whole
        length = whole.shape[dim] // self.num_runs
        return torch.cat([whole.narrow(dim, run * length, length) for run in self.runs], dim)

    def own_kept(self, kept_BK: Tensor, seq_length: int) -> Tensor:
        """The kept tokens on this rank, as positions in its shard: int64 [B, K / ranks], ascending.

        The strata must be a multiple of ``num_runs``.
        """
        if self.is_whole:
            return kept_BK
        kept_of_run, run_length = kept_BK.shape[1] // self.num_runs, seq_length // self.num_runs
        return torch.cat(
            [
                kept_BK.narrow(1, run * kept_of_run, kept_of_run) + (place - run) * run_length
                for place, run in enumerate(self.runs)
            ],
            dim=1,
        )

"""Which part of the sequence a rank holds, under context and sequence parallelism.

The sequence is cut in n equal runs, and a rank holds some of them, in order:

    context parallelism (zigzag), 2 ranks      │ 0 │ 1 │ 2 │ 3 │     rank 0: 0 3      rank 1: 1 2
    sequence parallelism, 2 ranks              │ 0 │ 1 │             rank 0: 0        rank 1: 1
    both: a context rank's runs, split again over the tensor-parallel ranks

Causal attention gives later tokens more work; zigzag gives every context rank an early and a late run, so that all have
the same. With strata that are a multiple of n every run keeps the same number of tokens, and so does every rank:
gathering needs no communication, and shapes are equal everywhere.

Shapes: B micro-batch, S sequence, K kept tokens; positions and K are the whole sequence's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.ltd.parallel.layout import num_runs


@dataclass(frozen=True)
class SequenceShard:
    """The runs that a rank holds, of ``num_runs`` equal ones, in the order in which it holds them."""

    num_runs: int
    runs: tuple[int, ...]

    @classmethod
    def of(cls, context_rank: int, context_size: int, tensor_rank: int = 0, tensor_size: int = 1) -> SequenceShard:
        """What one rank holds; ``tensor_size`` is 1 without sequence parallelism, and inside attention with it."""
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
        """Of the kept tokens those that this rank holds, counted from its own start: int64 [B, K / ranks], ascending.

        Needs strata that are a multiple of ``num_runs``.
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

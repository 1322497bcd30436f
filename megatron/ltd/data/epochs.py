"""The order of labelled data: in epochs for training, and once for evaluation.

    training      sample i of the run   ->  epoch i // N, row p(epoch)[i % N], p a permutation of the N rows
    evaluation    every row once, in order; then rows of weight 0, up to whole global batches

The permutation is a function of (seed, epoch) alone, so that a resumed run, another layout and a longer run read the
same samples in the same places. A sample is a row and its ``weight``, which is 1 if it counts.

Shapes: B samples of a microbatch. Not here: what a row holds (images, sentences), and what it is judged by
(``training.classification``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron.ltd.data.microbatches import Microbatch, SampleSource


@dataclass(frozen=True, kw_only=True)
class LabelledBatch(Microbatch):
    """A microbatch whose samples have a class each; each workload adds the inputs of its model."""

    labels_B: Tensor | None = None
    """int64, the indices of the classes; None on a stage that needs sample ids only."""
    weights_B: Tensor | None = None
    """float32, 1 where a sample counts, and 0 if it only fills a batch."""


def stacked_labels(samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """``labels_B`` and ``weights_B`` of samples with ``label`` and ``weight``."""
    return {
        "labels_B": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
        "weights_B": torch.tensor([sample["weight"] for sample in samples], dtype=torch.float32),
    }


@dataclass(frozen=True)
class ShuffledEpochs:
    """``num_samples`` samples of a run: ``rows`` in as many epochs as needed, each in another order."""

    rows: SampleSource
    seed: int
    num_samples: int

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(index, len(self.rows))
        row = int(permutation(self.seed, epoch, len(self.rows))[place])
        return {**self.rows[row], "weight": 1.0}


@dataclass(frozen=True)
class SinglePass:
    """Every row once, then rows of weight 0 up to ``num_samples``."""

    rows: SampleSource
    num_samples: int

    def __post_init__(self) -> None:
        assert len(self.rows) <= self.num_samples, (len(self.rows), self.num_samples)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        counts = index < len(self.rows)
        return {**self.rows[index if counts else 0], "weight": float(counts)}


def whole_batches(num_rows: int, global_batch_samples: int) -> int:
    """Samples of the smallest number of global batches that hold every row."""
    return -(-num_rows // global_batch_samples) * global_batch_samples


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """The order of the rows in the 0-based ``epoch``, int64 [N]."""
    # numpy guarantees that the numbers of this generator do not change with its version.
    return np.random.RandomState([seed, epoch]).permutation(num_rows)

"""A rank's microbatches: which samples it reads, in which order, and the tensors it makes of them.

    global order   consumed, consumed + 1, consumed + 2, ...            (the sample ids)
    microbatch m of data-parallel rank r, with b samples a microbatch and d ranks:
                   consumed + m*b*d + r*b   ...   consumed + m*b*d + (r+1)*b - 1

A global batch is simply the next so many samples, so the order knows nothing of global batch sizes: it is the same
through a batch-size ramp-up, after a restart at any sample, and under any number of data-parallel ranks. There is no
state.

Shapes: B samples of a microbatch, S sequence. Not here: which tokens a sample holds (``data.datasets``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from megatron.ltd.processes import starting_deaf_processes
from megatron.ltd.sequence import SequenceShard


class SampleSource(Protocol):
    """A map-style dataset: ``source[i]`` is the i-th sample of the run's order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class NoTokens:
    """The source of a rank that needs its samples' numbers only: ``num_samples`` samples that hold nothing."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {}


@dataclass(frozen=True)
class Batch:
    """One microbatch of one data-parallel rank; under context parallelism this rank's share of each sample.

    ``tokens_BS``, ``labels_BS`` and ``position_ids_BS`` int64; ``loss_mask_BS`` float32, 0 where the loss does not
    count; ``attention_mask`` None (plain causal) or bool [B, 1, S, S], **True where attention is forbidden**
    (Megatron-Core's sense; the rows are the rank's share, the columns all S); ``sample_ids_B`` int64, each sample's
    place in the run's global order. A pipeline stage between the first and the last needs no tokens and has None.
    """

    tokens_BS: Tensor | None
    labels_BS: Tensor | None
    loss_mask_BS: Tensor | None
    position_ids_BS: Tensor | None
    attention_mask: Tensor | None
    sample_ids_B: Tensor
    whole_tokens_BS: Tensor | None = None
    """The tokens of whole samples, for a method that chooses by them; None where none does."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on ``device``; from pinned memory ``non_blocking`` overlaps the copy with computation."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (torch's ``DataLoader`` calls this)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        mapped: dict[str, Any] = {name: None if value is None else function(value) for name, value in tensors.items()}
        return Batch(**mapped)


def document_mask(tokens_BS: Tensor, end_of_document: int) -> Tensor:
    """Causal attention within documents: bool [B, 1, S, S], True where query i must not see key j.

    The end of document belongs to the document that it ends: a token's document is the number of ends before it.
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
    separate_documents_at: int | None,
    sequence_shard: SequenceShard | None = None,
    *,
    whole_tokens: bool = False,
) -> Batch:
    """Stack samples of ``GPTDataset`` (each ``tokens``, ``labels``, ``loss_mask``, ``position_ids`` [S]).

    ``separate_documents_at`` is the end-of-document id when documents must not see each other, else None.
    ``sequence_shard`` is the part of each sample to take, None for all of it. Samples of ``NoTokens`` give sample ids.
    ``whole_tokens``: all tokens of the samples come beside the part.
    """
    sample_ids_B = torch.tensor(sample_ids, dtype=torch.int64)
    if not samples[0]:
        return Batch(None, None, None, None, None, sample_ids_B)
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


def microbatches(
    dataset: SampleSource,
    *,
    consumed_samples: int,
    micro_batch_size: int,
    data_parallel_rank: int,
    data_parallel_size: int,
    sequence_shard: SequenceShard | None = None,
    separate_documents_at: int | None = None,
    whole_tokens: bool = False,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """This rank's microbatches from ``consumed_samples`` [samples] on, in the order drawn at the top of this file.

    Ends where the dataset has no whole microbatch left for every rank. ``sequence_shard``,
    ``separate_documents_at`` and ``whole_tokens``: see ``build_batch``. Close it to end its processes, if it has any.
    With ``num_workers`` 0 samples are read in this process, else that many processes read ahead. The default random
    generator is left untouched, so that reading data never changes what a run draws.
    """
    assert 0 <= data_parallel_rank < data_parallel_size
    assert consumed_samples >= 0 and micro_batch_size >= 1
    order = _Order(len(dataset), consumed_samples, micro_batch_size, data_parallel_rank, data_parallel_size)
    loader: DataLoader[Batch] = DataLoader(
        _Numbered(dataset),
        batch_sampler=order,
        collate_fn=partial(
            _collate,
            separate_documents_at=separate_documents_at,
            sequence_shard=sequence_shard,
            whole_tokens=whole_tokens,
        ),
        num_workers=num_workers,
        pin_memory=pin_memory,
        # Without one of its own the loader would draw its workers' seed from the default generator.
        generator=torch.Generator(),
    )
    return _read(loader)


def _read(loader: DataLoader[Batch]) -> Generator[Batch, None, None]:
    with starting_deaf_processes():
        batches = iter(loader)
    yield from batches


@dataclass(frozen=True)
class _Order:
    """The sample ids of each of a rank's microbatches."""

    num_samples: int
    consumed_samples: int
    micro_batch_size: int
    data_parallel_rank: int
    data_parallel_size: int

    def __iter__(self) -> Iterator[list[int]]:
        stride = self.micro_batch_size * self.data_parallel_size
        offset = self.data_parallel_rank * self.micro_batch_size
        for first in range(self.consumed_samples, self.num_samples - stride + 1, stride):
            yield list(range(first + offset, first + offset + self.micro_batch_size))


class _Numbered(Dataset[Any]):
    """A dataset whose samples come with their number, as a sample's place in the order is part of its batch."""

    def __init__(self, dataset: SampleSource) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, Mapping[str, Any]]:
        return index, self.dataset[index]


def _collate(
    numbered: Sequence[tuple[int, Mapping[str, Any]]],
    separate_documents_at: int | None,
    sequence_shard: SequenceShard | None,
    whole_tokens: bool,
) -> Batch:
    samples, numbers = [sample for _, sample in numbered], [number for number, _ in numbered]
    return build_batch(samples, numbers, separate_documents_at, sequence_shard, whole_tokens=whole_tokens)

"""The microbatches of a rank: which samples it reads, in which order.

    global order   consumed, consumed + 1, consumed + 2, ...            (the sample ids)
    microbatch m of data-parallel rank r, with b samples a microbatch and d ranks:
                   consumed + m*b*d + r*b   ...   consumed + m*b*d + (r+1)*b - 1

A global batch is a number of consecutive samples, so that the order does not depend on global batch sizes: it is the
same during a batch-size ramp-up, after a restart at any sample, and with any number of data-parallel ranks. It has no
state.

Shapes: B samples of a microbatch, S sequence. Not here: what a sample holds (``data.datasets`` and its siblings).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from megatron.ltd.methods.base import Samples
from megatron.ltd.parallel.signals import signals_blocked


class SampleSource(Protocol):
    """A map-style dataset: ``source[i]`` is the i-th sample of the run's order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class NoTokens:
    """The source of a rank that needs sample ids only: samples without data."""

    num_samples: int

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {}


@dataclass(frozen=True)
class BegunLater:
    """The samples of ``source`` as those of a run from sample number ``first`` on; earlier ones cannot be read."""

    source: SampleSource
    first: int

    def __len__(self) -> int:
        return self.first + len(self.source)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        assert index >= self.first, (index, self.first)
        return self.source[index - self.first]


@dataclass(frozen=True, kw_only=True)
class Microbatch(Samples):
    """One microbatch of a data-parallel rank; each workload adds the tensors that its model and its loss need."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Any:
        """The microbatch on ``device``; from pinned memory ``non_blocking`` overlaps copying and computing."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Any:
        """The microbatch in page-locked memory (torch's ``DataLoader`` calls this)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Any:
        tensors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        mapped: dict[str, Any] = {name: None if value is None else function(value) for name, value in tensors.items()}
        return type(self)(**mapped)


MicrobatchType = TypeVar("MicrobatchType", bound=Microbatch)
Collate = Callable[[Sequence[Mapping[str, Any]], Sequence[int]], MicrobatchType]
"""From samples and their ids to a microbatch."""


def microbatches(
    dataset: SampleSource,
    collate: Collate[MicrobatchType],
    *,
    consumed_samples: int,
    micro_batch_size: int,
    data_parallel_rank: int,
    data_parallel_size: int,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Generator[MicrobatchType, None, None]:
    """This rank's microbatches from ``consumed_samples`` [samples] on, in the order at the top of this file.

    The generator ends when the dataset has no whole microbatch left for every rank. Close it to end its processes.
    With ``num_workers`` 0 samples are read in this process, else that many processes read ahead. The default random
    generator is not used, so that reading data does not change what a run draws.
    """
    assert 0 <= data_parallel_rank < data_parallel_size
    assert consumed_samples >= 0 and micro_batch_size >= 1
    stride, offset = micro_batch_size * data_parallel_size, micro_batch_size * data_parallel_rank
    loader: DataLoader[MicrobatchType] = DataLoader(
        _Microbatches(dataset, collate, micro_batch_size),
        batch_size=None,  # an item is a whole microbatch, found by its first sample
        sampler=range(consumed_samples + offset, len(dataset) - stride + 1 + offset, stride),
        num_workers=num_workers,
        pin_memory=pin_memory,
        # Otherwise the loader would draw the seed of its workers from the default generator.
        generator=torch.Generator(),
    )
    return _read(loader)


def _read(loader: DataLoader[MicrobatchType]) -> Generator[MicrobatchType, None, None]:
    with signals_blocked():
        batches = iter(loader)
    yield from batches


@dataclass(frozen=True)
class _Microbatches(Dataset[MicrobatchType]):
    """The microbatch that begins at each sample."""

    dataset: SampleSource
    collate: Collate[MicrobatchType]
    size: int

    def __getitem__(self, first: int) -> MicrobatchType:
        ids = range(first, first + self.size)
        return self.collate([self.dataset[index] for index in ids], ids)

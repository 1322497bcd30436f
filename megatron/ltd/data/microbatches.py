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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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


class NoTokens:
    """The source of a rank that needs sample ids only: ``num_samples`` samples without data."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {}


class BegunLater:
    """The samples of ``source`` as those of a run from sample number ``first`` on; earlier ones cannot be read."""

    def __init__(self, source: SampleSource, first: int) -> None:
        self._source = source
        self._first = first

    def __len__(self) -> int:
        return self._first + len(self._source)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        assert index >= self._first, (index, self._first)
        return self._source[index - self._first]


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
    order = _Order(len(dataset), consumed_samples, micro_batch_size, data_parallel_rank, data_parallel_size)
    loader: DataLoader[MicrobatchType] = DataLoader(
        _Numbered(dataset),
        batch_sampler=order,
        collate_fn=partial(_collate, collate),
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
class _Order:
    """The sample ids of each microbatch of a rank."""

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
    """A dataset whose samples come with their ids, which are part of a microbatch."""

    def __init__(self, dataset: SampleSource) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, Mapping[str, Any]]:
        return index, self.dataset[index]


def _collate(collate: Collate[MicrobatchType], numbered: Sequence[tuple[int, Mapping[str, Any]]]) -> MicrobatchType:
    return collate([sample for _, sample in numbered], [number for number, _ in numbered])

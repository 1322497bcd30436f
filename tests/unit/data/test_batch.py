"""Order of samples over ranks and restarts, document masks against Megatron-Core's, and the fields of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

from megatron.ltd.data.batch import Batch, build_batch
from megatron.ltd.data.microbatches import NoTokens, microbatches
from megatron.ltd.routing.sequence_shard import SequenceShard

SEQUENCE = 4


class Counting:
    """A dataset whose sample i holds the tokens i*S ... i*S + S - 1, so that any mix-up is visible."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(SEQUENCE) + index * SEQUENCE
        return {
            "tokens": tokens,
            "labels": tokens + 1,
            "loss_mask": torch.ones(SEQUENCE),
            "position_ids": torch.arange(SEQUENCE),
        }


def read(
    length: int, start: int, size: int, rank: int = 0, ranks: int = 1, num_workers: int = 0, **options: Any
) -> Iterator[Batch]:
    return microbatches(
        Counting(length),
        partial(build_batch, **options),
        consumed_samples=start,
        micro_batch_size=size,
        data_parallel_rank=rank,
        data_parallel_size=ranks,
        num_workers=num_workers,
    )


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 40), size=st.integers(1, 4), ranks=st.integers(1, 4), length=st.integers(0, 60))
def test_ranks_together_read_the_global_order(start: int, size: int, ranks: int, length: int) -> None:
    per_rank = [
        [batch.sample_ids_B.tolist() for batch in read(length, start, size, rank, ranks)] for rank in range(ranks)
    ]
    together = [sample for step in zip(*per_rank, strict=True) for rank in step for sample in rank]
    whole = max(0, length - start) // (size * ranks) * (size * ranks)
    assert together == list(range(start, start + whole))


@settings(max_examples=60, deadline=None)
@given(restart=st.integers(0, 10), size=st.integers(1, 3), ranks=st.integers(1, 3))
def test_a_restart_continues_where_it_stopped(restart: int, size: int, ranks: int) -> None:
    straight = list(read(80, 5, size, ranks - 1, ranks))[restart:]
    resumed = list(read(80, 5 + restart * size * ranks, size, ranks - 1, ranks))
    assert len(straight) == len(resumed)
    for one, other in zip(straight, resumed, strict=True):
        assert torch.equal(one.tokens_BS, other.tokens_BS) and torch.equal(one.sample_ids_B, other.sample_ids_B)


def test_a_batch_stacks_its_samples() -> None:
    batch = next(read(10, 3, 2, rank=1, ranks=2))
    assert batch.sample_ids_B.dtype == torch.int64 and batch.sample_ids_B.tolist() == [5, 6]
    assert batch.tokens_BS.tolist() == [[20, 21, 22, 23], [24, 25, 26, 27]]
    assert torch.equal(batch.labels_BS, batch.tokens_BS + 1)
    assert batch.loss_mask_BS.dtype == torch.float32 and batch.loss_mask_BS.shape == (2, SEQUENCE)
    assert torch.equal(batch.position_ids_BS, torch.arange(SEQUENCE).expand(2, SEQUENCE))
    assert batch.attention_mask() is None


def test_reading_does_not_advance_the_random_generator() -> None:
    before = torch.get_rng_state()
    list(read(8, 0, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # since Python 3.12
def test_worker_processes_read_the_same_batches() -> None:
    alone, helped = (
        list(read(12, 1, 2, separate_documents_at=9)),
        list(read(12, 1, 2, separate_documents_at=9, num_workers=2)),
    )
    assert [batch.sample_ids_B.tolist() for batch in helped] == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.tokens_BS, other.tokens_BS)
        assert torch.equal(one.attention_mask(), other.attention_mask())


def of_tokens(tokens_BS: torch.Tensor) -> Batch:
    samples = [dict.fromkeys(("tokens", "labels", "loss_mask", "position_ids"), row) for row in tokens_BS]
    return build_batch(samples, range(len(samples)), separate_documents_at=0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=12, max_size=12), min_size=1, max_size=3))
def test_document_mask_is_megatron_cores(rows: list[list[int]]) -> None:
    tokens_BS = torch.tensor(rows)
    theirs = [_get_ltor_masks_and_position_ids(row, 0, False, True, False, True)[0] for row in tokens_BS]
    ours = of_tokens(tokens_BS).attention_mask()
    assert ours is not None and ours.dtype == torch.bool
    assert torch.equal(ours, torch.stack(theirs))


@pytest.mark.parametrize("separate", [None, 2])
def test_to_moves_every_tensor(separate: int | None) -> None:
    batch = build_batch([Counting(2)[0], Counting(2)[1]], [0, 1], separate_documents_at=separate)
    moved = batch.to("meta")
    tensors = [moved.tokens_BS, moved.labels_BS, moved.loss_mask_BS, moved.position_ids_BS, moved.sample_ids_B]
    assert all(tensor.is_meta for tensor in tensors)
    mask = moved.attention_mask()
    assert (mask is None) == (separate is None)
    assert separate is None or (mask is not None and mask.is_meta and mask.shape == (2, 1, 4, 4))
    assert not batch.tokens_BS.is_meta


def test_context_ranks_share_a_batch() -> None:
    """A rank's batch has the fields at its positions; its attention mask has their queries and all keys."""
    options = {"separate_documents_at": 2}
    whole = next(iter(read(6, 0, 2, **options)))
    for rank, positions in ((0, [0, 3]), (1, [1, 2])):
        shard = SequenceShard.of(rank, 2)
        batch = next(iter(read(6, 0, 2, sequence_shard=shard, **options)))
        for name in ("tokens_BS", "labels_BS", "loss_mask_BS", "position_ids_BS"):
            assert torch.equal(getattr(batch, name), getattr(whole, name)[:, positions])
        mask, whole_mask = batch.attention_mask(), whole.attention_mask()
        assert mask is not None and whole_mask is not None
        assert torch.equal(mask, whole_mask[:, :, positions])
        assert torch.equal(batch.sample_ids_B, whole.sample_ids_B)
        assert batch.whole_tokens_BS is None
        batch = next(iter(read(6, 0, 2, sequence_shard=shard, whole_tokens=True)))
        assert torch.equal(batch.whole_tokens_BS, whole.tokens_BS)


def test_no_mask_travels() -> None:
    """A batch with separated documents has a few numbers for each token, and nothing of S² values."""
    batch = of_tokens(torch.ones(3, 64, dtype=torch.int64))
    sizes = [tensor.numel() for tensor in vars(batch).values() if tensor is not None]
    assert len(sizes) == 7 and max(sizes) == 3 * 64


def test_a_pipeline_stage_without_tokens_counts_the_same_samples() -> None:
    source = NoTokens(11)
    options = {"consumed_samples": 2, "micro_batch_size": 2, "data_parallel_rank": 1, "data_parallel_size": 2}
    found = list(microbatches(source, build_batch, **options))
    assert [batch.sample_ids_B.tolist() for batch in found] == [
        batch.sample_ids_B.tolist() for batch in read(11, 2, 2, 1, 2)
    ]
    assert all(batch.tokens_BS is None and batch.attention_mask() is None for batch in found)
    assert found[0].to("cpu").labels_BS is None

"""The part of the sequence that each rank holds: equal shares, zigzag over context ranks, and their kept tokens."""

from __future__ import annotations

import pytest
import torch

from megatron.ltd.parallel.layout import num_parts
from megatron.ltd.routing.sampling import kept_indices
from megatron.ltd.routing.sequence_shard import SequenceShard

LAYOUTS = [(1, 1), (1, 2), (1, 8), (2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (4, 2), (4, 8)]


def shards(context: int, tensor: int) -> list[SequenceShard]:
    return [SequenceShard.of(c, context, t, tensor) for c in range(context) for t in range(tensor)]


@pytest.mark.parametrize(("context", "tensor"), LAYOUTS)
def test_ranks_hold_equal_shares_of_the_whole(context: int, tensor: int) -> None:
    parts = num_parts(context, tensor)
    held = [shard.parts for shard in shards(context, tensor)]
    assert sorted(part for share in held for part in share) == list(range(parts))
    assert {len(share) for share in held} == {parts // (context * tensor)}


def zigzag(rank: int, size: int, seq_length: int) -> list[int]:
    """The positions of a context rank, from the definition: parts r and 2·size - 1 - r of 2·size equal parts."""
    chunk = seq_length // (2 * size)
    early, late = rank * chunk, (2 * size - 1 - rank) * chunk
    return [*range(early, early + chunk), *range(late, late + chunk)]


@pytest.mark.parametrize(("context", "tensor"), [layout for layout in LAYOUTS if layout[0] > 1])
def test_context_ranks_zigzag_and_tensor_ranks_split_their_share(context: int, tensor: int) -> None:
    seq_length = 2 * num_parts(context, tensor)
    positions = torch.arange(seq_length)
    for rank in range(context):
        whole = SequenceShard.of(rank, context)
        assert whole.take(positions, 0).tolist() == zigzag(rank, context, seq_length)
        parts = [SequenceShard.of(rank, context, t, tensor).take(positions, 0) for t in range(tensor)]
        assert torch.cat(parts).tolist() == zigzag(rank, context, seq_length)


def test_zigzag_order_is_megatron_cores() -> None:
    """Megatron-Core gives each context rank the rotary angles of the tokens that the rank holds here."""
    from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank

    from megatron.ltd.parallel import cpu_backend

    cpu_backend.install()

    class Group:
        def __init__(self, rank: int, size: int) -> None:
            self.rank, self.size = lambda: rank, lambda: size

    angles = torch.arange(24.0)[:, None, None, None]
    for size in (2, 3, 4):
        for rank in range(size):
            expected = get_pos_emb_on_this_cp_rank(angles, 0, Group(rank, size))
            assert torch.equal(SequenceShard.of(rank, size).take(angles, 0), expected)


@pytest.mark.parametrize(("context", "tensor"), LAYOUTS)
@pytest.mark.parametrize("strata_of_part", [1, 2])
def test_local_kept_tokens_are_those_that_the_rank_holds(context: int, tensor: int, strata_of_part: int) -> None:
    strata = strata_of_part * num_parts(context, tensor)
    seq_length, kept_tokens = 4 * strata, 3 * strata
    kept_BK = kept_indices(3, torch.arange(5), 2, seq_length, kept_tokens, strata)
    positions = torch.arange(seq_length)
    for shard in shards(context, tensor):
        held = shard.take(positions, 0).tolist()
        own_BK = shard.local_kept(kept_BK, seq_length)
        assert own_BK.shape == (5, kept_tokens // (context * tensor))
        for own, kept in zip(own_BK.tolist(), kept_BK.tolist(), strict=True):
            assert own == [place for place, position in enumerate(held) if position in set(kept)]


def test_the_whole_sequence_is_taken_as_it_is() -> None:
    whole, kept_BK = torch.arange(6), torch.tensor([[1, 4]])
    shard = SequenceShard.of(0, 1)
    assert shard.is_whole and shard.take(whole, 0) is whole and shard.local_kept(kept_BK, 6) is kept_BK

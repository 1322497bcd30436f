"""The draw of kept tokens: a second implementation in plain Python, fixed values, and statistics over many draws.

Draws are a pure function, so every statistic below is a fixed number: a test that passes keeps passing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron.ltd.routing.sampling import kept_by_layers, kept_indices, uniform
from tests.support_dispatch import Operations

MODULUS = 2**64


def splitmix64(state: int) -> int:
    """The output of the published SplitMix64 generator in the state ``state``."""
    z = state % MODULUS
    z = (z ^ (z // 2**30)) * 0xBF58476D1CE4E5B9 % MODULUS
    z = (z ^ (z // 2**27)) * 0x94D049BB133111EB % MODULUS
    return z ^ (z // 2**31)


def plain_kept_indices(
    seed: int, sample_id: int, layer_number: int, seq_length: int, kept_tokens: int, strata: int, block_size: int = 1
) -> list[int]:
    if block_size > 1:
        blocks = plain_kept_indices(
            seed, sample_id, layer_number, seq_length // block_size, kept_tokens // block_size, strata
        )
        return [position for block in blocks for position in range(block * block_size, (block + 1) * block_size)]
    step = 0x9E3779B97F4A7C15
    state = splitmix64(splitmix64(splitmix64(seed) + layer_number * step) + sample_id * step)
    low_bits = 1
    while low_bits < seq_length:
        low_bits *= 2

    def key(position: int) -> int:
        bits = splitmix64(state + (position + 1) * step)
        value = bits - bits % low_bits + position
        return value - MODULUS if value >= MODULUS // 2 else value

    run = seq_length // strata
    runs = [range(first, first + run) for first in range(0, seq_length, run)]
    return [position for part in runs for position in sorted(sorted(part, key=key)[: kept_tokens // strata])]


def assert_chi_square(statistic: float, degrees: int) -> None:
    """Fail beyond 4 standard deviations (Wilson-Hilferty) on either side: too even is as wrong as too uneven."""
    spread = 2 / (9 * degrees)
    z = ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    assert abs(z) < 4, f"chi-square {statistic:.1f} at {degrees} degrees of freedom, z = {z:.1f}"


def chi_square(counts: Tensor) -> float:
    """The chi-square statistic of ``counts`` against equal expected counts."""
    expected = counts.sum().item() / counts.numel()
    return ((counts - expected) ** 2 / expected).sum().item()


def subset_numbers(kept_BK: Tensor, seq_length: int) -> Tensor:
    """The number of each row among all subsets of its size: int64 [B]."""
    subsets = itertools.combinations(range(seq_length), kept_BK.shape[1])
    numbers = torch.zeros(2**seq_length, dtype=torch.int64)
    for number, subset in enumerate(subsets):
        numbers[sum(2**position for position in subset)] = number
    return numbers[(2**kept_BK).sum(dim=1)]


@given(
    seed=st.integers(-(2**63), 2**64),
    sample_ids=st.lists(st.integers(0, 2**62), min_size=1, max_size=3),
    layer_number=st.integers(1, 200),
    run=st.integers(1, 33),
    kept_run=st.integers(1, 33),
    strata=st.integers(1, 4),
    block_size=st.integers(1, 5),
)
def test_equals_a_second_implementation(
    seed: int, sample_ids: list[int], layer_number: int, run: int, kept_run: int, strata: int, block_size: int
) -> None:
    """``run`` and ``kept_run`` count the blocks of a stratum."""
    seq_length, kept_tokens = run * strata * block_size, min(run, kept_run) * strata * block_size
    draw = (layer_number, seq_length, kept_tokens, strata, block_size)
    kept_BK = kept_indices(seed, torch.tensor(sample_ids), *draw)
    expected = [plain_kept_indices(seed, sample_id, *draw) for sample_id in sample_ids]
    assert kept_BK.dtype == torch.int64
    assert kept_BK.tolist() == expected
    assert (kept_BK.diff(dim=1) > 0).all(), "ascending and distinct"
    assert kept_BK.min() >= 0 and kept_BK.max() < seq_length


GOLDEN = [[1, 3, 7, 9, 12, 14], [0, 1, 2, 5, 6, 14], [3, 4, 8, 10, 14, 15]]
GOLDEN_STRATA = [[46, 85, 318, 425, 1057, 1472, 1511, 1771]]
GOLDEN_BLOCKS = [[4, 5, 6, 7, 28, 29, 30, 31], [4, 5, 6, 7, 20, 21, 22, 23]]


def test_values_that_must_never_change() -> None:
    """A run that resumes under a later version must draw what it drew before."""
    assert kept_indices(1234, torch.tensor([0, 1, 2**40]), 2, 16, 6).tolist() == GOLDEN
    assert kept_indices(0, torch.tensor([7]), 23, 2048, 8, strata=2).tolist() == GOLDEN_STRATA
    assert kept_indices(1234, torch.tensor([0, 1]), 2, 32, 8, block_size=4).tolist() == GOLDEN_BLOCKS


def test_numbers_of_other_draws_are_none_of_the_tokens() -> None:
    """``uniform`` at the coordinates of a token's key: with the seed as it is, it would be a hash of that key."""
    seed, layer, sample, position, step = 7, 3, 11, 5, 0x9E3779B97F4A7C15

    def hashed_key(seed: int) -> float:
        state = splitmix64(splitmix64(splitmix64(seed) + layer * step) + sample * step)
        return (splitmix64(splitmix64(state + position * step)) >> 11) * 2.0**-53

    coordinates = (layer - 1, sample - 1, position - 1)
    assert uniform(seed, *coordinates) == hashed_key(seed ^ 0xD1B54A32D192ED03) != hashed_key(seed)


@pytest.mark.parametrize(("seq_length", "kept_tokens"), [(8, 3), (8, 5), (7, 1)])
def test_every_subset_is_equally_likely(seq_length: int, kept_tokens: int) -> None:
    kept_BK = kept_indices(5, torch.arange(50_000), 3, seq_length, kept_tokens)
    num_subsets = math.comb(seq_length, kept_tokens)
    counts = torch.bincount(subset_numbers(kept_BK, seq_length), minlength=num_subsets)
    assert_chi_square(chi_square(counts), num_subsets - 1)


def test_positions_of_a_long_sequence_are_equally_likely() -> None:
    draws, seq_length, kept_tokens = 20_000, 512, 128
    kept_BK = kept_indices(1, torch.arange(draws), 2, seq_length, kept_tokens)
    counts = torch.bincount(kept_BK.flatten(), minlength=seq_length)
    share = kept_tokens / seq_length
    # Counts of a draw without replacement are correlated; this factor makes their statistic a chi-square.
    statistic = ((counts - draws * share) ** 2).sum().item() / (draws * share * (1 - share)) * (1 - 1 / seq_length)
    assert_chi_square(statistic, seq_length - 1)


def test_pairs_of_neighbouring_positions_are_equally_likely() -> None:
    draws, seq_length, kept_tokens = 20_000, 256, 64
    kept_BK = kept_indices(1, torch.arange(draws), 2, seq_length, kept_tokens)
    chosen_BS = torch.zeros(draws, seq_length).scatter_(1, kept_BK, 1.0)
    for distance in (1, 2, 16, 128):
        both = (chosen_BS[:, distance:] * chosen_BS[:, :-distance]).mean().item()
        expected = kept_tokens * (kept_tokens - 1) / (seq_length * (seq_length - 1))
        assert both == pytest.approx(expected, rel=0.01)


NEIGHBOURS = {
    "next sample": (dict(seed=1, first_id=0, layer_number=2), dict(seed=1, first_id=1, layer_number=2)),
    "next epoch": (dict(seed=1, first_id=0, layer_number=2), dict(seed=1, first_id=2**20, layer_number=2)),
    "next layer": (dict(seed=1, first_id=0, layer_number=2), dict(seed=1, first_id=0, layer_number=3)),
    "next seed": (dict(seed=1, first_id=0, layer_number=2), dict(seed=2, first_id=0, layer_number=2)),
    "next seed, layer before": (dict(seed=1, first_id=0, layer_number=3), dict(seed=2, first_id=0, layer_number=2)),
}


@pytest.mark.parametrize("neighbours", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_neighbouring_draws_are_independent(neighbours: tuple[dict[str, int], dict[str, int]]) -> None:
    """All 6 x 6 joint outcomes of two draws of 2 positions out of 4 are equally likely."""
    numbers = [
        subset_numbers(
            kept_indices(draw["seed"], torch.arange(50_000) + draw["first_id"], draw["layer_number"], 4, 2), 4
        )
        for draw in neighbours
    ]
    counts = torch.bincount(numbers[0] * 6 + numbers[1], minlength=36)
    assert_chi_square(chi_square(counts), 35)


@pytest.mark.parametrize("axis", ["layers", "seeds"])
def test_one_sample_over_many_layers_and_seeds(axis: str) -> None:
    sample_ids = torch.tensor([11])
    rows = [
        kept_indices(number if axis == "seeds" else 3, sample_ids, number if axis == "layers" else 3, 6, 2)
        for number in range(1, 3001)
    ]
    counts = torch.bincount(subset_numbers(torch.cat(rows), 6), minlength=15)
    assert_chi_square(chi_square(counts), 14)


def test_a_row_depends_on_its_own_sample_only() -> None:
    sample_ids = torch.tensor([5, 99, 3, 1000, 12])
    together = kept_indices(1, sample_ids, 4, 64, 16)
    alone = torch.cat([kept_indices(1, sample_id[None], 4, 64, 16) for sample_id in sample_ids])
    assert torch.equal(together, alone)
    order = torch.tensor([4, 0, 3, 1, 2])
    assert torch.equal(kept_indices(1, sample_ids[order], 4, 64, 16), together[order])


@pytest.mark.parametrize("layer_numbers", [(2,), range(2, 7), (2, 3, 5, 9, 10), (7, 3)], ids=str)
@pytest.mark.parametrize(("kept_tokens", "strata", "block_size"), [(24, 1, 1), (24, 4, 1), (32, 2, 4), (64, 1, 1)])
def test_layers_drawn_together_keep_what_each_keeps_alone(
    layer_numbers: Sequence[int], kept_tokens: int, strata: int, block_size: int
) -> None:
    sample_ids = torch.tensor([5, 99, 2**40])
    together = kept_by_layers(3, sample_ids, layer_numbers, 64, kept_tokens, strata, block_size)
    alone = [kept_indices(3, sample_ids, number, 64, kept_tokens, strata, block_size) for number in layer_numbers]
    assert torch.equal(together, torch.stack(alone))


def test_a_draw_takes_as_many_operations_for_many_layers_as_for_one() -> None:
    one, many = Operations(), Operations()
    for operations, layer_numbers in ((one, (2,)), (many, range(2, 24))):
        with operations:
            kept_by_layers(1, torch.arange(4), layer_numbers, 64, 16)
    assert one.names == many.names and not many.waiting
    assert many.names.total() <= 49, "each is the launch of a kernel, for every microbatch"


def test_fewer_tokens_are_a_subset_of_more() -> None:
    sample_ids = torch.arange(4)
    few, more = (kept_indices(1, sample_ids, 4, 64, kept_tokens) for kept_tokens in (16, 24))
    assert all(set(a) < set(b) for a, b in zip(few.tolist(), more.tolist(), strict=True))


def test_strata_keep_their_share() -> None:
    kept_BK = kept_indices(1, torch.arange(50), 2, 64, 16, strata=4)
    assert torch.equal(kept_BK // 16, torch.arange(4).repeat_interleave(4).expand(50, 16))


def test_keeping_all_tokens_gives_every_position() -> None:
    assert kept_indices(1, torch.arange(3), 2, 8, 8).tolist() == [list(range(8))] * 3


def test_no_random_state_is_read_or_changed() -> None:
    before = torch.get_rng_state()
    first = kept_indices(1, torch.arange(4), 2, 64, 16)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(kept_indices(1, torch.arange(4), 2, 64, 16), first)


def test_the_sample_ids_are_not_modified() -> None:
    sample_ids = torch.arange(4)
    kept_indices(1, sample_ids, 2, 64, 16)
    assert torch.equal(sample_ids, torch.arange(4))


@pytest.mark.parametrize(
    ("kept_tokens", "strata", "block_size"), [(16, 0, 1), (16, 3, 1), (18, 4, 1), (16, 1, 0), (24, 1, 16), (16, 2, 16)]
)
def test_shares_that_do_not_divide_fail_an_assertion(kept_tokens: int, strata: int, block_size: int) -> None:
    """Flags are checked when a method is built (``ScheduleFlags``), so a bad value that gets here is a bug."""
    with pytest.raises(AssertionError):
        kept_indices(1, torch.arange(2), 2, 64, kept_tokens, strata, block_size)


@pytest.mark.parametrize("strata", [1, 4])
def test_blocks_keep_every_token_equally_often(strata: int) -> None:
    draws, seq_length, kept_tokens, block_size = 20_000, 256, 64, 8
    kept_BK = kept_indices(1, torch.arange(draws), 2, seq_length, kept_tokens, strata, block_size)
    counts = torch.bincount(kept_BK.flatten(), minlength=seq_length)
    blocks = counts.view(-1, block_size)
    assert (blocks == blocks[:, :1]).all(), "all of a block's tokens or none of them"
    share, num_blocks = kept_tokens / seq_length, seq_length // block_size
    spread = draws * share * (1 - share) / (1 - strata / num_blocks)
    assert_chi_square(((blocks[:, 0] - draws * share) ** 2).sum().item() / spread, num_blocks - strata)


def test_neighbouring_blocks_are_kept_together_as_often_as_expected() -> None:
    """With 4 of 8 blocks kept, a kept block's left neighbour is kept with probability 3 / 7, inside a block always."""
    kept_BK = kept_indices(3, torch.arange(50_000), 2, 32, 16, block_size=4)
    chosen_BS = torch.zeros(50_000, 32).scatter_(1, kept_BK, 1.0)
    with_left_S = (chosen_BS[:, 1:] * chosen_BS[:, :-1]).sum(0) / chosen_BS[:, 1:].sum(0)
    for position, share in enumerate(with_left_S.tolist(), start=1):
        assert share == (pytest.approx(3 / 7, abs=0.015) if position % 4 == 0 else 1.0)


@pytest.mark.gpu
def test_a_gpu_draws_what_a_cpu_draws() -> None:
    sample_ids = torch.arange(1000, 1008)
    for strata, block_size in ((1, 1), (4, 1), (1, 16), (4, 16)):
        on_gpu = kept_indices(9, sample_ids.cuda(), 5, 2048, 512, strata, block_size)
        assert on_gpu.is_cuda
        assert torch.equal(on_gpu.cpu(), kept_indices(9, sample_ids, 5, 2048, 512, strata, block_size))

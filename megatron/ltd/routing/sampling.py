"""Which tokens a layer keeps: a pure function of (seed, sample id, layer, position).

    key(position) = hash(seed, layer, sample id, position)        the K smallest keys win
    positions       0   1   2   3   4   5   6   7
    keys           .8  .1  .5  .9  .3  .7  .2  .6    K = 3   ->   kept 1 4 6

    strata = 2:    [.8  .1  .5  .9][.3  .7  .2  .6]  K = 4   ->   kept 1 2 | 4 6     (K / 2 from each half)
    blocks of 2:    0 0   1 1   2 2   3 3             positions in blocks of neighbours
                    .8    .1    .5    .9              K = 4   ->   kept 2 3 | 4 5     (one key a block)

Ranking independent uniform keys draws uniformly without replacement, tokens or blocks of tokens, and every token is
kept with the same probability K / S. The keys come from a counter-based hash, not from a random number generator: there
is no state to save or synchronise, so that every tensor-, context- and pipeline-parallel rank, a recomputed layer and a
resumed run keep the same tokens, while each sample, layer and epoch has its own. ``gather_scatter`` uses the result.

Shapes: L layers that are drawn together, B micro-batch, S sequence, K kept tokens, n strata, N tokens of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron.ltd.routing.splitmix64 import FACTORS, SHIFTS, STEP, finalise, position_mask, runs, signed

_APART = 0xD1B54A32D192ED03
"""Makes the seed of ``uniform`` another one than that of token keys, so that equal coordinates share no hash."""


def _xor_shift_(values: Tensor, shift: int) -> Tensor:
    """``values ^= values >>> shift`` in place; torch shifts int64 arithmetically, so copied sign bits are masked."""
    return values.bitwise_xor_((values >> shift).bitwise_and_((1 << (64 - shift)) - 1))


def _finalise_(values: Tensor) -> Tensor:
    """``finalise`` on every element of an int64 tensor, in place; products wrap modulo 2^64."""
    _xor_shift_(values, SHIFTS[0]).mul_(signed(FACTORS[0]))
    _xor_shift_(values, SHIFTS[1]).mul_(signed(FACTORS[1]))
    return _xor_shift_(values, SHIFTS[2])


def uniform(seed: int, *place: int) -> float:
    """A number in [0, 1), a pure function of the seed and of coordinates such as (step, microbatch, layer).

    It is computed with Python integers, so that it never waits for a GPU.
    """
    state = finalise(seed ^ _APART)
    for coordinate in place:
        state = finalise(state + (coordinate + 1) * STEP)
    return (finalise(state) >> 11) * 2.0**-53


def kept_indices(
    seed: int,
    sample_ids: Tensor,
    layer_number: int,
    seq_length: int,
    kept_tokens: int,
    strata: int = 1,
    block_size: int = 1,
) -> Tensor:
    """Positions that layer ``layer_number`` keeps of each sample: uniform without replacement, ascending, distinct.

    A row depends on its own sample id only, not on its neighbours or its place in the micro-batch. It is computed on
    the device of ``sample_ids``, without a host synchronisation.

    Args:
        seed: the run's seed, any integer.
        sample_ids: int64 [B], index of each sample in the run's global order (so that each epoch draws other tokens).
        layer_number: 1-based and global.
        seq_length: S, tokens of a sample.
        kept_tokens: K, from 1 to S.
        strata: n, split the sequence into n equal parts and keep K / n of each, so that gathering is local if the
            sequence is split over n ranks.
        block_size: N, draw blocks of N neighbouring tokens, K / N of the S / N blocks. 1 draws single tokens.

    Returns:
        int64 [B, K] on the device of ``sample_ids``.
    """
    return kept_by_layers(seed, sample_ids, (layer_number,), seq_length, kept_tokens, strata, block_size)[0]


def kept_by_layers(
    seed: int,
    sample_ids: Tensor,
    layer_numbers: Sequence[int],
    seq_length: int,
    kept_tokens: int,
    strata: int = 1,
    block_size: int = 1,
    kernels: str = "torch",
) -> Tensor:
    """``kept_indices`` of several layers, in as many operations as that of one: int64 [L, B, K].

    ``kernels``: "triton" draws the same tokens in one launch, if there are up to 16,384 blocks in a stratum.
    """
    assert 1 <= kept_tokens <= seq_length, f"{kept_tokens} kept tokens of {seq_length}"
    assert sample_ids.dtype == torch.int64, f"sample ids are int64, not {sample_ids.dtype}"
    layers, batch = len(layer_numbers), sample_ids.shape[0]
    if kept_tokens == seq_length:
        return torch.arange(seq_length, dtype=torch.int64, device=sample_ids.device).repeat(layers, batch, 1)
    assert strata >= 1 and block_size >= 1, f"{strata} strata, blocks of {block_size}"
    assert seq_length % (strata * block_size) == 0 == kept_tokens % (strata * block_size), (
        f"{strata} strata and blocks of {block_size} do not divide {kept_tokens} of {seq_length} tokens"
    )
    num_blocks = seq_length // block_size
    if kernels == "triton":
        from megatron.ltd.routing.triton_kernels import MOST_KEYS, draw

        if num_blocks // strata <= MOST_KEYS:
            return draw(seed, sample_ids, layer_numbers, seq_length, kept_tokens, strata, block_size)
    keys = token_keys(seed, sample_ids, layer_numbers, num_blocks).view(-1, num_blocks // strata)
    winners = torch.topk(keys, kept_tokens // block_size // strata, dim=1, largest=False, sorted=False).values
    kept_blocks = winners.bitwise_and_(position_mask(num_blocks)).sort(dim=1).values.view(layers, batch, -1)
    return kept_blocks if block_size == 1 else _positions(kept_blocks, block_size)


def _positions(kept_blocks: Tensor, block_size: int) -> Tensor:
    """The positions of each row's blocks: [L, B, K / N] to [L, B, K]."""
    within_N = torch.arange(block_size, dtype=torch.int64, device=kept_blocks.device)
    return (kept_blocks[..., None] * block_size + within_N).flatten(2)


def token_keys(seed: int, sample_ids: Tensor, layer_numbers: Sequence[int], seq_length: int) -> Tensor:
    """A uniform key for each token, int64 [L, B, S], distinct in each row; arguments as for ``kept_by_layers``."""
    positions_S = torch.arange(seq_length, dtype=torch.int64, device=sample_ids.device)
    layers_L = _numbers(layer_numbers, sample_ids.device).mul_(signed(STEP)).add_(signed(finalise(seed)))
    states_LB = _finalise_(_finalise_(layers_L)[:, None] + sample_ids * signed(STEP))
    keys_LBS = _finalise_(states_LB[..., None] + (positions_S + 1).mul_(signed(STEP)))
    # The position in the low bits makes keys distinct, and is read from the selected keys.
    return keys_LBS.bitwise_and_(~position_mask(seq_length)).bitwise_or_(positions_S)


def _numbers(numbers: Sequence[int], device: torch.device) -> Tensor:
    """int64 [L], made on ``device`` from runs of neighbours: a copy from the host would wait for the device."""
    return torch.cat([torch.arange(run.start, run.stop, dtype=torch.int64, device=device) for run in runs(numbers)])

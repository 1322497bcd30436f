"""Two kernels in Triton: the draw of kept tokens in one launch, and sums that are written to the rows of kept tokens.

    draw          keys of a row of positions -> its K-th smallest key, bit by bit -> positions of the keys up to it
    write_sums    into[rows] = first + (second + bias)

Both have the bits of the torch code that they replace, of ``sampling`` and of ``gather_scatter``. A row has one
program, kept tokens are distinct, and nothing is added up in an order that could change. Gathering is left to torch,
which does it in one launch that copies each number once: there is nothing to save, in blocks of neighbours either.

The number of kept tokens, the layer and the batch are not compiled in, so that a kernel is compiled once in a run, at
whatever K. ``TRITON_INTERPRET=1`` runs both on CPU tensors.

Shapes: L layers, B micro-batch, S sequence, K kept tokens, H hidden, n strata, N tokens of a block. This module imports
Triton, and is imported where ``--ltd-kernels triton`` is used only.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from megatron.ltd.routing import splitmix64

_STEP = tl.constexpr(splitmix64.STEP)
_FACTOR_1, _FACTOR_2 = (tl.constexpr(factor) for factor in splitmix64.FACTORS)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = (tl.constexpr(shift) for shift in splitmix64.SHIFTS)
_SIGN = tl.constexpr(1 << 63)
_COLUMNS_OF_A_PROGRAM = 2048
_KEYS_OF_A_WARP = 256
MOST_KEYS = 16384
"""That a row may have: more do not fit into the registers of a program."""


@triton.jit
def _finalise(state):
    """``splitmix64.finalise`` on uint64."""
    state = (state ^ (state >> _SHIFT_1)) * _FACTOR_1
    state = (state ^ (state >> _SHIFT_2)) * _FACTOR_2
    return state ^ (state >> _SHIFT_3)


@triton.jit(
    do_not_specialize=["seed_state", "first_layer", "batch", "kept_of_part"],
    do_not_specialize_on_alignment=["kept", "sample_ids"],
)
def _draw(
    kept,  # int64 [L, B, n, K / n]
    sample_ids,  # int64 [B]
    seed_state,
    first_layer,
    batch,
    part_length,  # keys of a stratum
    kept_of_part,  # how many of them win
    block_size,
    POSITION_MASK: tl.constexpr,  # noqa: N803
    LENGTH: tl.constexpr,  # noqa: N803  # part_length, to a power of 2
):
    row = tl.program_id(0)
    part = tl.program_id(1)
    state = _finalise(seed_state.to(tl.uint64) + (first_layer + row // batch).to(tl.uint64) * _STEP)
    state = _finalise(state + tl.load(sample_ids + row % batch).to(tl.uint64) * _STEP)
    place = tl.arange(0, LENGTH)
    inside = place < part_length
    position = (part * part_length + place).to(tl.int64)
    key = _finalise(state + (position + 1).to(tl.uint64) * _STEP)
    key = (((key | POSITION_MASK) ^ POSITION_MASK) | position.to(tl.uint64)) ^ _SIGN  # torch's keys are signed

    # The K-th smallest key is the largest number that has fewer than K keys below it.
    bit = (seed_state * 0).to(tl.uint64) + _SIGN
    limit = bit * 0
    for _ in range(64):
        trial = limit | bit
        below = tl.sum(((key < trial) & inside).to(tl.int32), 0)
        limit = tl.where(below < kept_of_part, trial, limit)
        bit = bit >> 1

    wins = (key <= limit) & inside
    order = tl.cumsum(wins.to(tl.int32), 0) - 1
    of_part = (row.to(tl.int64) * tl.num_programs(1) + part) * kept_of_part * block_size
    for token in range(block_size):
        tl.store(kept + of_part + order * block_size + token, position * block_size + token, mask=wins)


def draw(
    seed: int,
    sample_ids: Tensor,
    layer_numbers: Sequence[int],
    seq_length: int,
    kept_tokens: int,
    strata: int,
    block_size: int,
) -> Tensor:
    """``sampling.kept_by_layers``, with the same arguments and bits: int64 [L, B, K].

    One launch for each run of neighbouring ``layer_numbers``.
    """
    batch = len(sample_ids)
    kept_LBK = sample_ids.new_empty(len(layer_numbers), batch, kept_tokens)
    num_blocks = seq_length // block_size
    part_length = num_blocks // strata
    length = triton.next_power_of_2(part_length)
    done = 0
    for run in splitmix64.runs(layer_numbers):
        _draw[len(run) * batch, strata](
            kept_LBK[done:],
            sample_ids.contiguous(),
            splitmix64.signed(splitmix64.finalise(seed)),
            run[0],
            batch,
            part_length,
            kept_tokens // block_size // strata,
            block_size,
            POSITION_MASK=splitmix64.position_mask(num_blocks),
            LENGTH=length,
            num_warps=min(max(length // _KEYS_OF_A_WARP, 1), 32),
        )
        done += len(run)
    return kept_LBK


@triton.jit(do_not_specialize_on_alignment=["rows"])
def _write_sums(
    into,  # [R, H]
    rows,  # int64 [k]
    first,  # [k, H]
    second,  # [k, H]
    bias,  # [H], not read without HAS_BIAS
    width,  # H
    HAS_BIAS: tl.constexpr,  # noqa: N803
    ROUNDS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    place = tl.program_id(0).to(tl.int64)  # times H it may not fit into 32 bits
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    kind = into.dtype.element_ty
    summed = tl.float64 if kind == tl.float64 else tl.float32
    total = tl.load(second + place * width + column, mask=inside).to(summed)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=inside).to(summed)
        if ROUNDS:
            total = total.to(kind).to(summed)
    total += tl.load(first + place * width + column, mask=inside).to(summed)
    tl.store(into + tl.load(rows + place) * width + column, total.to(kind), mask=inside)


def write_sums(
    into_SBH: Tensor, rows: Tensor, first_KBH: Tensor, second_KBH: Tensor, bias_H: Tensor | None, *, rounds: bool
) -> None:
    """``into_SBH``, contiguous, after ``first + (second + bias)`` was written to its ``rows``, in one launch.

    All have one type. Sums are in fp32, or fp64 for such; ``rounds``: the one in brackets is rounded to the type, as
    torch rounds it where it adds a bias in a kernel of its own.
    """
    width = into_SBH.shape[-1]
    columns = min(triton.next_power_of_2(width), _COLUMNS_OF_A_PROGRAM)
    _write_sums[rows.numel(), triton.cdiv(width, columns)](
        into_SBH,
        rows,
        first_KBH.contiguous(),
        second_KBH.contiguous(),
        bias_H,
        width,
        HAS_BIAS=bias_H is not None,
        ROUNDS=rounds,
        COLUMNS=columns,
    )

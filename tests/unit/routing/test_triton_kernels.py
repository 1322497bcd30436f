"""Triton's kernels, interpreted on the CPU, against torch's: the same bits. Compiled, they are few."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron.ltd.routing.gather_scatter import flat_rows, merge_tokens, split_tokens
from megatron.ltd.routing.sampling import kept_by_layers, kept_indices
from tests.support_processes import PATIENCE_SECONDS

pytestmark = pytest.mark.usefixtures("triton_on_cpu")

IDS = torch.tensor([5, 123456789, 0, 2**40 + 3])
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize(
    ("layers", "seq_length", "kept_tokens", "strata", "block_size"),
    [
        ((2, 3, 4), 64, 16, 1, 1),
        ((2, 5, 6, 23), 63, 1, 1, 1),
        ((3,), 65, 64, 1, 1),
        ((3,), 7, 7, 1, 1),
        ((1,), 200, 40, 4, 5),
        ((17, 18), 256, 64, 1, 16),
        ((2,), 128, 96, 2, 16),
        ((2,), 3 * 2048, 1000, 2, 1),
    ],
)
def test_the_draw_is_torchs(
    layers: tuple[int, ...], seq_length: int, kept_tokens: int, strata: int, block_size: int
) -> None:
    for seed, ids in ((1234, IDS), (-7, IDS[:1]), (2**64 - 3, IDS[::2])):
        drawn = (seed, ids, layers, seq_length, kept_tokens, strata, block_size)
        found = kept_by_layers(*drawn, kernels="triton")
        assert found.dtype == torch.int64 and torch.equal(found, kept_by_layers(*drawn))


def values(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("length", "kept_tokens"), [(16, 1), (16, 5), (8, 8)])
@pytest.mark.parametrize(("batch", "width"), [(1, 37), (4, 64), (4, 1)])
def test_sums_in_rows(dtype: torch.dtype, length: int, kept_tokens: int, batch: int, width: int) -> None:
    from megatron.ltd.routing.triton_kernels import write_sums

    rows = flat_rows(kept_indices(1, IDS[:batch], 2, length, kept_tokens))
    first, second = (values(batch, kept_tokens, width, seed=n, dtype=dtype).transpose(0, 1) for n in (1, 2))
    bias = values(width, seed=3, dtype=dtype)
    before = values(length, batch, width, seed=4, dtype=dtype)
    exact = (first.double() + (second.double() + bias.double())).to(dtype)
    by_type = {(False, False): first + second, (True, True): first + (second + bias), (True, False): exact}
    for (has_bias, rounds), total in by_type.items():
        if (has_bias, rounds) == (True, False) and dtype in (torch.float32, torch.float64):
            total = first + (second + bias)
        into, wanted = before.clone(), before.clone().view(-1, width)
        wanted[rows] = total.reshape(-1, width)
        write_sums(into, rows, first, second, bias if has_bias else None, rounds=rounds)
        assert torch.equal(into.view(-1, width), wanted)


def test_rows_that_are_wider_than_a_program() -> None:
    from megatron.ltd.routing.triton_kernels import write_sums

    first, second = (values(2, 1, 5001, seed=n, dtype=torch.float32) for n in (1, 2))
    into = torch.zeros(3, 1, 5001)
    write_sums(into, torch.tensor([2, 0]), first, second, None, rounds=False)
    assert torch.equal(into, torch.stack([(first + second)[1], torch.zeros(1, 5001), (first + second)[0]]))


S, B, H, K = 7, 3, 4, 3
KEPT_BK = torch.tensor([[0, 2, 6], [1, 2, 3], [0, 4, 5]])
ROWS = flat_rows(KEPT_BK)


def layer(x_SBH: Tensor, rows: Tensor, weight_HH: Tensor, bias_H: Tensor | None, triton: bool) -> Tensor:
    """A routed layer of two sublayers, each with its residual."""

    def plus_bias(x_KBH: Tensor) -> Tensor:
        return x_KBH if bias_H is None else x_KBH + bias_H

    if triton:
        from megatron.ltd.routing.split_sums import merge_sum, split_for_sum

        part_KBH, residual_KBH, rest_SBH = split_for_sum(x_SBH, rows)
        between_KBH = residual_KBH + plus_bias((part_KBH @ weight_HH).tanh())
        return merge_sum(rest_SBH, between_KBH, (between_KBH @ weight_HH).sin(), bias_H, rows, rounds=True)
    part_KBH, rest_SBH = split_tokens(x_SBH, rows)
    between_KBH = part_KBH + plus_bias((part_KBH @ weight_HH).tanh())
    return merge_tokens(rest_SBH, between_KBH + plus_bias((between_KBH @ weight_HH).sin()), rows)


def leaf(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return values(*shape, seed=seed, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("has_bias", [False, True])
def test_numerical_gradients(has_bias: bool) -> None:
    def run(x_SBH: Tensor, weight_HH: Tensor, bias_H: Tensor) -> Tensor:
        for rows in (ROWS, flat_rows((KEPT_BK + 1).remainder(S).sort(dim=1).values)):
            x_SBH = layer(x_SBH, rows, weight_HH, bias_H if has_bias else None, True)
        return x_SBH

    inputs = (leaf(S, B, H, seed=0), leaf(H, H, seed=1), leaf(H, seed=2))
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)  # the interpreter takes its time


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_layers_have_torchs_bits(dtype: torch.dtype, recomputed: bool, has_bias: bool) -> None:
    outcomes = []
    for triton in (False, True):
        leaf_SBH = leaf(S, B, H, seed=0, dtype=dtype)
        weights = [leaf(H, H, seed=n, dtype=dtype) for n in range(1, 5)]
        biases = [leaf(H, seed=n, dtype=dtype) if has_bias else None for n in range(5, 9)]

        def layers(x_SBH: Tensor) -> Tensor:
            for number, (weight_HH, bias_H) in enumerate(zip(weights, biases, strict=True)):  # noqa: B023
                rows = flat_rows((KEPT_BK + number).remainder(S).sort(dim=1).values)
                x_SBH = layer(x_SBH, rows, weight_HH, bias_H, triton)  # noqa: B023
            return x_SBH

        given_SBH = leaf_SBH * 1.5
        out_SBH = checkpoint(layers, given_SBH, use_reentrant=True) if recomputed else layers(given_SBH)
        out_SBH.float().square().sum().backward()
        inputs = [leaf_SBH, *weights, *(bias for bias in biases if bias is not None)]
        outcomes.append([out_SBH, *(tensor.grad for tensor in inputs)])
    assert all(torch.equal(plain, sums) for plain, sums in zip(*outcomes, strict=True))


@pytest.mark.parametrize("unused", ["part", "residual", "both", "rest", "rest and part", "rest and residual"])
def test_what_does_not_reach_the_loss(unused: str) -> None:
    """The gradient is that of plain indexing, whichever outputs of the split are used."""
    from megatron.ltd.routing.split_sums import split_for_sum

    x_SBH = leaf(S, B, H, seed=0)
    part_KBH, residual_KBH, rest_SBH = split_for_sum(x_SBH, ROWS)
    factors = {"part": 2.0 * ("part" not in unused), "residual": 3.0 * ("residual" not in unused)}
    if unused == "both":
        factors = dict.fromkeys(factors, 0.0)
    loss = torch.zeros((), dtype=torch.float64)
    for factor, tensor in zip(factors.values(), (part_KBH, residual_KBH), strict=True):
        loss = loss + (tensor * factor).sum() if factor else loss
    if "rest" not in unused.split(" ") or unused == "residual":
        loss = loss + merge_tokens(rest_SBH, torch.zeros(K, B, H, dtype=torch.float64), ROWS).sum()
    loss.backward()
    wanted = torch.full((S * B, H), float("rest" not in unused.split(" ")), dtype=torch.float64)
    wanted[ROWS] = sum(factors.values())
    assert torch.equal(x_SBH.grad, wanted.view(S, B, H))


def test_memory_is_that_of_what_was_computed_and_writes_are_noticed() -> None:
    leaf_SBH, weight_HH = leaf(S, B, H, seed=0), leaf(H, H, seed=1)
    computed_SBH = leaf_SBH * 1.0
    squared_SBH = computed_SBH.square()  # keeps what it squares for its gradient
    out_SBH = layer(computed_SBH, ROWS, weight_HH, None, True)
    assert out_SBH.data_ptr() == computed_SBH.data_ptr() and out_SBH._base is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared_SBH.sum().backward()
    before_SBH = leaf_SBH.detach().clone()
    layer(leaf_SBH, ROWS, weight_HH, None, True)
    assert torch.equal(leaf_SBH, before_SBH)


@pytest.mark.slow
def test_a_run_compiles_each_kernel_once(repository: Path, tmp_path: Path) -> None:
    """Whatever K, the layer and the place of its rows; Triton compiles for an H100 without having one."""
    environment = os.environ | {
        "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"
    }  # fmt: skip
    code = "from tests.support_triton import compile_for_h100 as compiled; compiled()"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert ended.returncode == 0, ended.stderr
    (drawn,), (sums,) = json.loads(ended.stdout).values()
    assert "bar.sync" in drawn
    assert sums.count("add.bf16x2") == 8, "rounded to the nearest, as an fp32 sum that is rounded again"
    assert sums.count("ld.global.v4") == 4 and sums.count("st.global.v4") == 2, "16 bytes at a time"

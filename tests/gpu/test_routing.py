"""The draw of kept tokens, gather and scatter on each device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron.ltd.routing.gather_scatter import flat_rows, gather_tokens, merge_tokens, scatter_tokens, split_tokens
from megatron.ltd.routing.sampling import kept_by_layers, kept_indices
from tests.gpu.runs import column, train


@pytest.mark.parametrize("draw", [(2, 2048, 128, 1), (17, 2048, 1024, 4)])
@pytest.mark.parametrize("block_size", [1, 16])
def test_all_devices_select_the_same_tokens(device: str, draw: tuple[int, ...], block_size: int) -> None:
    ids = torch.arange(1000, 1064)
    found = kept_indices(1234, ids.to(device), *draw, block_size)
    assert found.device.type == device
    assert torch.equal(found.cpu(), kept_indices(1234, ids, *draw, block_size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routing_is_deterministic_and_equal_to_the_plain_pair(device: str, dtype: torch.dtype) -> None:
    kept_BK = kept_indices(1, torch.arange(4).to(device), 2, 512, 128)

    def run(fused: bool) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.randn(512, 4, 64, generator=torch.Generator().manual_seed(0)).to(device, dtype).requires_grad_()
        if fused:
            rows = flat_rows(kept_BK)
            part, rest = split_tokens(hidden, rows)
            out = merge_tokens(rest, part * 3, rows)
        else:
            out = scatter_tokens(hidden, gather_tokens(hidden, kept_BK) * 3, kept_BK)
        out.float().pow(2).sum().backward()
        assert hidden.grad is not None
        return out.detach(), hidden.grad

    fused, again, plain = run(True), run(True), run(False)
    assert all(torch.equal(a, b) for a, b in zip(fused, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(fused, plain, strict=True))


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("drawn", [((2, 3, 4, 7), 2048, 128, 1, 1), ((17, 18), 2048, 1024, 4, 16)])
def test_triton_draws_the_same_tokens(device: str, drawn: tuple) -> None:
    ids = torch.arange(1000, 1064 if device == "cuda" else 1002)
    found = kept_by_layers(1234, ids.to(device), *drawn, kernels="triton")
    assert found.device.type == device
    assert torch.equal(found.cpu(), kept_by_layers(1234, ids, *drawn))


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_adds_as_torch_does(device: str, dtype: torch.dtype) -> None:
    """Three layers whose kept tokens grow, with a bias: values, and gradients of all inputs."""
    from megatron.ltd.routing.split_sums import merge_sum, split_for_sum

    outcomes = []
    for triton in (False, True):
        generator = torch.Generator().manual_seed(0)
        hidden, bias = (torch.randn(*shape, generator=generator) for shape in ((512, 4, 64), (64,)))
        hidden, bias = (tensor.to(device, dtype).requires_grad_() for tensor in (hidden, bias))
        x = hidden * 1.0
        for layer, kept_tokens in enumerate((96, 128, 160)):
            rows = flat_rows(kept_indices(1, torch.arange(4).to(device), layer, 512, kept_tokens))
            if triton:
                part, residual, rest = split_for_sum(x, rows)
                x = merge_sum(rest, residual, part.sin(), bias, rows, rounds=True)
            else:
                part, rest = split_tokens(x, rows)
                x = merge_tokens(rest, part + (part.sin() + bias), rows)
        x.float().pow(2).sum().backward()
        outcomes.append((x.detach(), hidden.grad, bias.grad))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("more", ["", "--ltd-block-size 16", "--reset-attention-mask"])
def test_runs_on_triton_log_the_same(device: str, data: Path, tmp_path: Path, impl: str, more: str) -> None:
    """Over steps of growing K, bit for bit: torch does not compile what both have."""
    flags = ("--transformer-impl", impl, "--bf16", "--deterministic-mode", "--no-bias-dropout-fusion", *more.split())
    runs = [train(device, data, tmp_path / name, *flags, "--ltd-kernels", name) for name in ("torch", "triton")]
    for name in ("loss", "grad_norm", "kept_tokens"):
        assert column(runs[0], name) == column(runs[1], name)
    assert len(set(column(runs[1], "kept_tokens"))) > 1

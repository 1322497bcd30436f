"""The draw of kept tokens, gather and scatter on each device."""

from __future__ import annotations

import pytest
import torch

from megatron.ltd.routing.gather_scatter import flat_rows, gather_tokens, merge_tokens, scatter_tokens, split_tokens
from megatron.ltd.routing.sampling import kept_indices


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

"""Attention of kept tokens on each device, with every backend, against a softmax in float64.

K = 192 kept tokens, which are 64 more than a multiple of 128: there cuDNN's backward pass can give NaN with a mask
(pytorch#196678).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from torch import Tensor

from megatron.ltd.layers.attention import FusedAttention
from megatron.ltd.layers.attention_backend import check_backend
from megatron.ltd.models.execution_config import PrecisionConfig, RecomputeConfig
from megatron.ltd.models.transformer import transformer_config
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.routing.gather_scatter import gather_mask
from megatron.ltd.routing.sampling import kept_indices
from tests.support import relative_error, separated, small_model
from tests.support_errors import refused

S, K, B, HEADS, HEAD_SIZE = 256, 192, 2, 4, 64
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
CASES = [
    *((backend, dtype, masked) for backend in ("auto", "local", "unfused") for dtype in TOLERANCE for masked in (0, 1)),
    *((backend, torch.bfloat16, 0) for backend in ("flash", "fused")),
]
"""Backend, type and whether there is a mask, where the backend can compute it"""


def mask_of_documents() -> Tensor:
    """The mask among the kept tokens of samples of several documents, [B, 1, K, K]."""
    tokens_BS = torch.randint(0, 40, (B, S), generator=torch.Generator().manual_seed(1))
    mask = gather_mask(separated(tokens_BS), kept_indices(7, torch.arange(B), 2, S, K))
    assert mask is not None and mask.float().mean() > 0.6, "more than the causal half is forbidden"
    return mask


def attention_of(device: str, backend: str, dtype: torch.dtype) -> FusedAttention:
    """The attention of a model's layer. Its settings need the device of a mesh only."""
    precision = PrecisionConfig(bf16=dtype == torch.bfloat16)
    mesh: Any = SimpleNamespace(device=torch.device(device))
    parallel, model = ParallelConfig(device=device), small_model(attention_backend=backend)
    core_config = transformer_config(model, parallel, precision, RecomputeConfig(), mesh)
    return FusedAttention(core_config, 1, AttnMaskType.causal, "self")


def expected(query: Tensor, key: Tensor, value: Tensor, forbidden: Tensor) -> Tensor:
    """[K, B, N * D] by the formula; keys and values are shared by groups of heads."""
    repeats = query.shape[2] // key.shape[2]
    key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
    scores = torch.einsum("sbnd,tbnd->bnst", query, key) / HEAD_SIZE**0.5
    weights = scores.masked_fill(forbidden, -torch.inf).softmax(-1)
    return torch.einsum("bnst,tbnd->sbnd", weights, value).flatten(2)


@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize(("backend", "dtype", "masked"), CASES)
def test_gradients_are_those_of_a_softmax(
    device: str, backend: str, dtype: torch.dtype, masked: bool, groups: int
) -> None:
    attention = attention_of(device, backend, dtype)
    generator = torch.Generator().manual_seed(3)
    sizes = (HEADS, groups, groups)
    inputs = [torch.randn(K, B, heads, HEAD_SIZE, generator=generator).to(dtype) for heads in sizes]
    grad = torch.randn(K, B, HEADS * HEAD_SIZE, generator=generator).to(dtype)
    mask = mask_of_documents() if masked else None

    exact = [tensor.double().requires_grad_() for tensor in inputs]
    forbidden = torch.ones(K, K, dtype=torch.bool).triu(1) if mask is None else mask
    wanted = expected(*exact, forbidden)
    wanted.backward(grad.double())

    computed = [tensor.to(device).requires_grad_() for tensor in inputs]
    found = attention(*computed, None if mask is None else mask.to(device))
    found.backward(grad.to(device))

    assert found.dtype == dtype and relative_error(found.detach().cpu(), wanted.detach()) < TOLERANCE[dtype]
    for tensor, reference in zip(computed, exact, strict=True):
        assert tensor.grad is not None and reference.grad is not None
        assert tensor.grad.isfinite().all()
        assert relative_error(tensor.grad.cpu(), reference.grad) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", ["flash", "fused"])
def test_kernels_without_masks_are_refused(device: str, backend: str) -> None:
    name = "masks" if device == "cuda" else "cpu"
    with refused(f"--attention-backend {backend}", name):
        check_backend(AttnBackend[backend], torch.device(device), torch.bfloat16, ours_is_masked=True)

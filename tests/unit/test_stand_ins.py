"""The stand-in of Transformer Engine: what it refuses, and that it computes what PyTorch does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.stand_ins.transformer_engine import signatures
from tests.stand_ins.transformer_engine.pytorch import DotProductAttention, LayerNorm, Linear
from tests.stand_ins.transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb
from tests.stand_ins.transformer_engine.pytorch.cross_entropy import parallel_cross_entropy
from tests.stand_ins.transformer_engine.pytorch.distributed import checkpoint
from tests.stand_ins.transformer_engine.pytorch.optimizers import FusedAdam


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_arguments_that_a_version_does_not_have_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = DotProductAttention(2, 4, attn_mask_type="causal")
    query = random(5, 1, 2, 4)
    attention(query, query, query, num_splits=1)  # since 2.10
    monkeypatch.setattr(signatures, "VERSION", "2.9.0")
    with pytest.raises(TypeError, match=r"transformer_engine 2\.9\.0, .*forward: .*'num_splits'"):
        attention(query, query, query, num_splits=1)
    with pytest.raises(TypeError, match=r"ops.basic.layer_norm.LayerNorm.__init__: .*'stream'"):
        LayerNorm(4, device="cpu", stream=1)


def test_what_it_does_not_compute_is_an_error() -> None:
    with pytest.raises(NotImplementedError, match="ub_overlap_ag=True"):
        Linear(4, 4, device="cpu", ub_overlap_ag=True)
    query = random(5, 1, 2, 4)
    with pytest.raises(AssertionError, match="ignores an attention mask"):
        DotProductAttention(2, 4)(query, query, query, torch.ones(1, 1, 5, 5, dtype=torch.bool))


@pytest.mark.parametrize("mask_type", ["causal", "no_mask"])
def test_attention(mask_type: str) -> None:
    query, key, value = random(5, 2, 4, 8), random(5, 2, 2, 8, seed=2), random(5, 2, 2, 8, seed=3)
    found = DotProductAttention(4, 8, num_gqa_groups=2)(query, key, value, attn_mask_type=mask_type)
    batch_first = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    expected = F.scaled_dot_product_attention(*batch_first, is_causal=mask_type == "causal", enable_gqa=True)
    torch.testing.assert_close(found, expected.permute(2, 0, 1, 3).flatten(2))


def test_rotary_embeddings() -> None:
    """Two channels of each pair are a complex number that is turned by the angle; the others stay."""
    queries, angles = random(5, 2, 3, 6), random(7, 1, 1, 2, seed=2)
    found = apply_rotary_pos_emb(queries, angles.repeat(1, 1, 1, 2), tensor_format="sbhd", fused=True)
    turned = torch.complex(queries[..., :2], queries[..., 2:4]) * torch.polar(torch.ones(()), angles[:5])
    torch.testing.assert_close(found, torch.cat((turned.real, turned.imag, queries[..., 4:]), dim=-1))
    with pytest.raises(AssertionError, match="second and third dims"):
        apply_rotary_pos_emb(queries, random(5, 2, 1, 4), tensor_format="sbhd", fused=True)


def test_cross_entropy() -> None:
    logits, target = random(3, 2, 7), torch.tensor([[0, 6], [3, -100], [2, 2]])
    expected = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(3, 2)
    torch.testing.assert_close(parallel_cross_entropy(logits, target, 0.0, False, None, -100, False), expected)


def test_checkpointing_computes_again() -> None:
    calls = []

    def square(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return tensor.square()

    tensor = random(3).requires_grad_()
    checkpoint(square, tensor, distribute_saved_activations=False, tp_group=None).sum().backward()
    assert len(calls) == 2
    torch.testing.assert_close(tensor.grad, 2 * tensor.detach())


def test_adam() -> None:
    settings = {"lr": 0.1, "weight_decay": 0.2, "eps": 1e-3}
    own, expected = (torch.nn.Parameter(random(6)) for _ in range(2))
    adams = FusedAdam([own], **settings), torch.optim.AdamW([expected], **settings)
    for step in range(3):
        for parameter, adam in zip((own, expected), adams, strict=True):
            parameter.grad = random(6, seed=step)
            adam.step()
    torch.testing.assert_close(own.detach(), expected.detach())
    assert adams[0].param_groups[0]["step"] == 3 and adams[0].state[own].keys() == {"exp_avg", "exp_avg_sq"}

"""FusedAdam against torch's AdamW. That a loaded state continues is tested with whole runs."""

from __future__ import annotations

import math

import torch

from megatron.ltd.training.adam import FusedAdam


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (7,), (2, 2, 2))]


def groups(own: list[torch.nn.Parameter]) -> list[dict[str, object]]:
    return [
        {"params": own[:1], "weight_decay": 0.1, "lr": 3e-2},
        {"params": own[1:], "weight_decay": 0.0, "betas": (0.8, 0.95), "eps": 1e-3},
    ]


def test_equals_torchs_adamw_over_many_steps() -> None:
    """Two parameter groups with settings of their own, and a learning rate that changes at every step."""
    ours, theirs = parameters(), parameters()
    fused, reference = FusedAdam(groups(ours), lr=1e-2), torch.optim.AdamW(groups(theirs), lr=1e-2, foreach=False)
    generator = torch.Generator().manual_seed(1)
    for step in range(200):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in (fused, reference):
            optimizer.param_groups[0]["lr"] = 3e-2 * (1 + math.sin(step))
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(fused.state[mine][name], reference.state[other][name], rtol=1e-5, atol=1e-7)


def test_state_is_laid_out_as_transformer_engines() -> None:
    own = parameters()
    optimizer = FusedAdam(groups(own), lr=1e-2)
    for parameter in own:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.step()
    for parameter in own:
        assert set(optimizer.state[parameter]) == {"exp_avg", "exp_avg_sq"}
        assert all(tensor.shape == parameter.shape for tensor in optimizer.state[parameter].values())
    assert [group["step"] for group in optimizer.param_groups] == [2, 2]
    assert all(type(group["step"]) is int for group in optimizer.param_groups)


def test_parameters_without_a_gradient_are_left_alone() -> None:
    own = parameters()
    optimizer = FusedAdam(groups(own), lr=1e-2)
    before = [parameter.detach().clone() for parameter in own]
    own[0].grad = torch.ones_like(own[0])
    optimizer.step()
    assert not torch.equal(own[0], before[0])
    assert torch.equal(own[1], before[1]) and torch.equal(own[2], before[2])
    assert "step" not in optimizer.param_groups[1]

"""Norm against the formulas of LayerNorm and RMSNorm, and the attribute that marks sequence parallelism."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron.ltd.layers.norm import Norm


def config(normalization: str, **changes: object) -> SimpleNamespace:
    settings = {
        "normalization": normalization, "params_dtype": torch.float32, "sequence_parallel": False,
        "layernorm_zero_centered_gamma": False,
    }  # fmt: skip
    return SimpleNamespace(**(settings | changes))


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
def test_equals_the_formula(normalization: str) -> None:
    norm = Norm(config(normalization), 5, eps=0.1)
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for number, parameter in enumerate(norm.parameters()):
            parameter.copy_(torch.linspace(0.5, 1.5, 5) + number)
    if normalization == "LayerNorm":
        centred = x - x.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight + norm.bias
    else:
        expected = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_parameters_are_named_typed_and_marked() -> None:
    layer_norm = Norm(config("LayerNorm", params_dtype=torch.bfloat16, sequence_parallel=True), 4)
    rms_norm = Norm(config("RMSNorm"), 4)
    assert [name for name, _ in layer_norm.named_parameters()] == ["weight", "bias"]
    assert [name for name, _ in rms_norm.named_parameters()] == ["weight"]
    for norm, dtype, marked in ((layer_norm, torch.bfloat16, True), (rms_norm, torch.float32, False)):
        for parameter in norm.parameters():
            assert parameter.dtype == dtype
            assert vars(parameter)["sequence_parallel"] is marked


@pytest.mark.parametrize("normalization", ["LayerNorm", "RMSNorm"])
def test_weights_stored_minus_1(normalization: str) -> None:
    """The stored weights start at 0, and the output is that of a norm whose weights are larger by 1."""
    plain, centred = (Norm(config(normalization, layernorm_zero_centered_gamma=on), 5) for on in (False, True))
    assert not any(parameter.any() for parameter in centred.parameters())
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(centred(x), plain(x))
    with torch.no_grad():
        plain.weight.copy_(torch.linspace(0.5, 1.5, 5))
        centred.weight.copy_(torch.linspace(-0.5, 0.5, 5))
    torch.testing.assert_close(centred(x), plain(x))

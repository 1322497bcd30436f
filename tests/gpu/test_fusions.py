"""Runs with fused kernels against runs without them; on a GPU they are compiled, or Transformer Engine's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.runs import column, train

SWIGLU = ("--swiglu", "--disable-bias-linear")
MODELS = {"GELU": (("--openai-gelu",), "gelu"), "SwiGLU": (SWIGLU, "swiglu")}
ENGINES = ("--rope-fusion", "--gradient-accumulation-fusion")
OFF = tuple(
    f"--no-{name}-fusion" for name in ("bias-gelu", "bias-swiglu", "bias-dropout", "rope", "gradient-accumulation")
)
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1".split()


@pytest.fixture(autouse=True)
def recompile_limit() -> None:
    """torch compiles a function at most eight times in a process; earlier tests do not count."""
    torch.compiler.reset()


def engines(impl: str) -> tuple[str, ...]:
    """Transformer Engine's fusions, where it computes."""
    return ENGINES if impl == "transformer_engine" else ()


@pytest.mark.parametrize("model", MODELS)
def test_fused_kernels_compute_the_same(device: str, data: Path, tmp_path: Path, impl: str, model: str) -> None:
    """With kept tokens that grow, so that functions are compiled for any number of them."""
    flags, activation = MODELS[model]
    fused = (f"--bias-{activation}-fusion", "--bias-dropout-fusion", *engines(impl))
    on = train(device, data, tmp_path / "on", "--transformer-impl", impl, *flags, *fused)
    off = train(device, data, tmp_path / "off", "--transformer-impl", impl, *flags, *OFF)
    assert len(set(column(on, "kept_tokens"))) > 2
    for name in ("loss", "grad_norm"):
        assert column(on, name)[:4] == pytest.approx(column(off, name)[:4], rel=1e-3)
    assert column(on, "loss") == pytest.approx(column(off, "loss"), rel=2e-2)


def test_recompute_repeats_compiled_dropout(device: str, data: Path, tmp_path: Path, impl: str) -> None:
    flags = (*SWIGLU, "--hidden-dropout", 0.3, "--bias-dropout-fusion", *engines(impl))
    flags = ("--transformer-impl", impl, *flags)
    stored = train(device, data, tmp_path / "stored", *flags)
    again = train(device, data, tmp_path / "again", *flags, *RECOMPUTE)
    for name in ("loss", "grad_norm"):
        assert column(again, name)[:4] == pytest.approx(column(stored, name)[:4], rel=1e-4)


def test_losses_of_fused_cross_entropy(device: str, data: Path, tmp_path: Path, impl: str) -> None:
    kernels = ["native", *(["te"] if impl == "transformer_engine" else [])]
    plain = train(device, data, tmp_path / "plain", "--transformer-impl", impl, "--bf16")
    for name in kernels:
        fused = ("--bf16", "--cross-entropy-loss-fusion", "--cross-entropy-fusion-impl", name)
        found = train(device, data, tmp_path / name, "--transformer-impl", impl, *fused)
        assert column(found, "loss")[:4] == pytest.approx(column(plain, "loss")[:4], rel=1e-3)
        assert column(found, "loss")[-1] == pytest.approx(column(plain, "loss")[-1], rel=5e-2)

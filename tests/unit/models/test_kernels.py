"""What a run says about its kernels without Transformer Engine; with it: ``tests/distributed``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.support import build_core_model, small_model, world
from tests.support_processes import PATIENCE_SECONDS


def test_a_gpu_without_transformer_engine_is_slow() -> None:
    with world() as mesh:
        from megatron.ltd.models.kernels import kernels_text, slow_kernels

        chunks = [build_core_model(small_model(), mesh)]
        assert kernels_text(chunks, mesh.device) == "layers on PyTorch's kernels"
        assert kernels_text(chunks, mesh.device, "triton").startswith("layers on PyTorch's kernels, routing on Triton ")
        (line,) = slow_kernels(chunks, torch.device("cuda", 0))
        assert line.startswith("warning: ") and "Transformer Engine" in line
        assert slow_kernels(chunks, mesh.device) == []


@pytest.mark.parametrize(
    ("precision", "variables", "dtype", "in_tf32"),
    [
        ("highest", {}, torch.float32, False),
        ("high", {}, torch.float32, True),
        ("high", {"NVIDIA_TF32_OVERRIDE": "0"}, torch.float32, False),
        ("high", {}, torch.bfloat16, False),
    ],
)
def test_products_in_tf32_are_said(
    monkeypatch: pytest.MonkeyPatch, precision: str, variables: dict[str, str], dtype: torch.dtype, in_tf32: bool
) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    with world() as mesh:
        from megatron.ltd.models.kernels import kernels_text

        chunks = [build_core_model(small_model(), mesh).to(dtype)]
        assert kernels_text(chunks, torch.device("cuda", 0)).endswith(", fp32 products in TF32") == in_tf32
        assert "TF32" not in kernels_text(chunks, mesh.device)


@pytest.mark.parametrize(("value", "precision"), [("0", "highest"), ("1", "high")])
def test_torch_tells_what_nvidias_images_ask_of_it(value: str, precision: str) -> None:
    """They set this variable to 1; torch reads it once, before any of our code."""
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": value}
    code = "import torch; print(torch.get_float32_matmul_precision())"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert ended.stdout.strip() == precision, ended.stderr

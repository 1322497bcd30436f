"""What a run says about its kernels without Transformer Engine; with it: ``tests/distributed``."""

from __future__ import annotations

import torch

from tests.support import build_core_model, small_model, world


def test_a_gpu_without_transformer_engine_is_slow() -> None:
    with world() as mesh:
        from megatron.ltd.models.kernels import kernels_text, slow_kernels

        chunks = [build_core_model(small_model(), mesh)]
        assert kernels_text(chunks) == "layers on PyTorch's kernels"
        (line,) = slow_kernels(chunks, torch.device("cuda", 0))
        assert line.startswith("warning: ") and "Transformer Engine" in line
        assert slow_kernels(chunks, mesh.device) == []

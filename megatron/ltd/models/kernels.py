"""Whose kernels the layers of a model run on, in words, and warnings where they are slow."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE, TEDotProductAttention, TERowParallelLinear
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import get_te_version

from megatron.ltd.layers.attention import FusedAttention


def kernels_text(chunks: Sequence[torch.nn.Module], device: torch.device) -> str:
    """For ``chunks`` of this process, such as ``layers on Transformer Engine 2.11.0``."""
    rounded = ", fp32 products in TF32" if multiplies_in_tf32(chunks, device) else ""
    if not _are_of_transformer_engine(chunks):
        return f"layers on PyTorch's kernels{rounded}"
    attention = ", attention with a mask on PyTorch's kernels" if _have(chunks, FusedAttention) else ""
    return f"layers on Transformer Engine {get_te_version()}{attention}{rounded}"


def multiplies_in_tf32(chunks: Sequence[torch.nn.Module], device: torch.device) -> bool:
    """Whether CUDA rounds the factors of this model's fp32 products to TF32, which has 10 bits of mantissa.

    Transformer Engine's are always computed so, torch's if it is told to (NVIDIA's images do, by a variable).
    ``NVIDIA_TF32_OVERRIDE=0`` turns it off in the library below both.
    """
    if device.type != "cuda" or _dtype(chunks) != torch.float32 or os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        return False
    return _are_of_transformer_engine(chunks) or torch.get_float32_matmul_precision() != "highest"


def slow_kernels(chunks: Sequence[torch.nn.Module], device: torch.device) -> list[str]:
    """A line for each choice of kernels that costs more than it must."""
    if device.type != "cuda":
        return []
    if not _are_of_transformer_engine(chunks):
        return [
            "warning: layers run on PyTorch's kernels; Transformer Engine's are faster on this device: install the "
            "extra gpu, or see python -m megatron.ltd.doctor"
        ]
    if _dtype(chunks) == torch.float32 and _have(chunks, TEDotProductAttention):
        return [
            "warning: Transformer Engine's attention in fp32 stores all pairs of tokens: add --bf16, or "
            "--attention-backend local"
        ]
    return []


def _dtype(chunks: Sequence[torch.nn.Module]) -> torch.dtype:
    return next(parameter.dtype for chunk in chunks for parameter in chunk.parameters())


def _are_of_transformer_engine(chunks: Sequence[torch.nn.Module]) -> bool:
    return HAVE_TE and _have(chunks, TERowParallelLinear)  # without it that is no class


def _have(chunks: Sequence[torch.nn.Module], kind: type) -> bool:
    layers = (layer for chunk in chunks for layer in chunk.modules() if isinstance(layer, TransformerLayer))
    return any(isinstance(module, kind) for layer in layers for module in layer.modules())

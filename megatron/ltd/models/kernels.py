"""Whose kernels the layers of a model run on, in words, and warnings where they are slow."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE, TEDotProductAttention, TERowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import get_te_version

from megatron.ltd.layers.attention import FusedAttention
from megatron.ltd.models.fusions import products
from megatron.ltd.versions import package_version


def kernels_text(chunks: Sequence[torch.nn.Module], device: torch.device, routing: str = "torch") -> str:
    """For ``chunks`` of this process, such as ``layers on Transformer Engine 2.11.0, fused rope``.

    ``routing``: ``ModelFacts.kernels`` of the method.
    """
    config: TransformerConfig = chunks[0].config
    notes = [f"fp8 {config.fp8}, {config.fp8_recipe} scaling"] if config.fp8 else []
    notes += [f"routing on Triton {package_version('triton')}"] * (routing == "triton")
    notes += [f"fused {name}" for name in _fused(chunks)]
    notes += ["fp32 products in TF32"] * multiplies_in_tf32(chunks, device)
    if not _are_of_transformer_engine(chunks):
        return ", ".join(["layers on PyTorch's kernels", *notes])
    masked = ["attention with a mask on PyTorch's kernels"] * _have(chunks, FusedAttention)
    return ", ".join([f"layers on Transformer Engine {get_te_version()}", *masked, *notes])


def _fused(chunks: Sequence[torch.nn.Module]) -> list[str]:
    """What is fused, by the names of its flags."""
    config: TransformerConfig = chunks[0].config
    names = {
        "bias-swiglu" if config.gated_linear_unit else "bias-gelu": config.bias_activation_fusion,
        "bias-dropout": config.bias_dropout_fusion,
        "rope": config.apply_rope_fusion,
        "cross-entropy-loss": config.cross_entropy_loss_fusion,
        "gradient-accumulation": any(product.fuse_wgrad_accumulation for product in products(chunks)),
    }
    return [name for name, is_on in names.items() if is_on]


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
            "extra gpu (for CUDA 12, gpu-cu12), or use the image of tools/container/gpu.Dockerfile"
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
    return HAVE_TE and _have(chunks, TERowParallelLinear)  # without it that is not a class


def _have(chunks: Sequence[torch.nn.Module], kind: type) -> bool:
    layers = (layer for chunk in chunks for layer in chunk.modules() if isinstance(layer, TransformerLayer))
    return any(isinstance(module, kind) for layer in layers for module in layer.modules())

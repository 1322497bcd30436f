"""Modules and functions for PyTorch, under the names that Transformer Engine gives them."""

from ..unreached import add_modules, unreached

add_modules(__name__)

from . import attention, cpu_offload, cross_entropy, distributed, fp8, module, ops, optimizers  # noqa: E402
from .attention import DotProductAttention  # noqa: E402
from .fp8 import fp8_autocast  # noqa: E402
from .module import LayerNorm, LayerNormLinear, Linear, RMSNorm  # noqa: E402

Fp8Padding, Fp8Unpadding = unreached("Fp8Padding"), unreached("Fp8Unpadding")
GroupedLinear = unreached("GroupedLinear")

__all__ = [
    "DotProductAttention",
    "Fp8Padding",
    "Fp8Unpadding",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "attention",
    "cpu_offload",
    "cross_entropy",
    "distributed",
    "fp8",
    "fp8_autocast",
    "module",
    "ops",
    "optimizers",
]

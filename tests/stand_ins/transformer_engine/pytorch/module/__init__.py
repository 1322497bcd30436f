"""Layers with parameters."""

from . import base
from .linear import LayerNormLinear, Linear
from .norms import LayerNorm, RMSNorm

__all__ = ["LayerNorm", "LayerNormLinear", "Linear", "RMSNorm", "base"]

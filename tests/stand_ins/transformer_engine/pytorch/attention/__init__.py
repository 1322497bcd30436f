"""Attention and rotary embeddings."""

from . import rope
from .dot_product import DotProductAttention

__all__ = ["DotProductAttention", "rope"]

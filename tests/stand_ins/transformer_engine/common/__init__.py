"""Recipes of fp8."""

from . import recipe

__all__ = ["recipe"]

"""Offloading activations to the host's memory, which is never on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from ..signatures import VERSION, recorded


@recorded("pytorch.cpu_offload.get_cpu_offload_context", ignores=("num_layers", "model_layers"))
def get_cpu_offload_context(
    enabled: bool, offload_activations: bool, offload_weights: bool, double_buffering: bool
) -> tuple[contextlib.AbstractContextManager[None], Callable[[Any], Any]]:
    """A block without effect, and the identity."""
    if enabled:
        raise NotImplementedError("the stand-in of Transformer Engine does not offload")
    if VERSION == "2.9.0" and not offload_weights and not offload_activations:  # later ones look at enabled first
        raise ValueError("CPU Offloading is enabled while it is not mentioned what to offload (weights/activations)")
    return contextlib.nullcontext(), lambda tensor: tensor

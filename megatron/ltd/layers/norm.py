"""LayerNorm and RMSNorm on torch's kernels, for machines without Transformer Engine.

Megatron-Core's own torch norm refuses sequence parallelism, because it does not set the attribute of the weights by
which their gradients, each from one shard of the sequence, are summed over the tensor-parallel group. This one sets it.
"""

from __future__ import annotations

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

_NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {"LayerNorm": nn.LayerNorm, "RMSNorm": nn.RMSNorm}


class Norm:
    """A norm over the last dimension, as a ``ModuleSpec`` names it; its parameters are ``weight`` (and ``bias``)."""

    def __new__(  # type: ignore[misc]  # a spec names a class, and the module itself is torch's
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5
    ) -> nn.LayerNorm | nn.RMSNorm:
        norm = _NORMS[config.normalization](hidden_size, eps=eps)
        norm.to(config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm

"""LayerNorm and RMSNorm on torch's kernels, for machines without Transformer Engine.

Megatron-Core's own torch norm refuses sequence parallelism, because it does not set the attribute of the weights by
which their gradients, each from one shard of the sequence, are summed over the tensor-parallel group. This one sets it.
"""

from __future__ import annotations

import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


class ZeroCentredLayerNorm(nn.LayerNorm):
    """LayerNorm whose weight is stored minus 1, and starts at 0."""

    def reset_parameters(self) -> None:
        """Weight and bias 0."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, values: Tensor) -> Tensor:
        """Of any shape that ends in the normalized one."""
        return F.layer_norm(values, self.normalized_shape, self.weight + 1.0, self.bias, self.eps)


class ZeroCentredRMSNorm(nn.RMSNorm):
    """RMSNorm whose weight is stored minus 1, and starts at 0."""

    def reset_parameters(self) -> None:
        """Weight 0."""
        nn.init.zeros_(self.weight)

    def forward(self, values: Tensor) -> Tensor:
        """Of any shape that ends in the normalized one."""
        return F.rms_norm(values, self.normalized_shape, self.weight + 1.0, self.eps)


_NORMS: dict[tuple[str, bool], type[nn.LayerNorm] | type[nn.RMSNorm]] = {
    ("LayerNorm", False): nn.LayerNorm,
    ("LayerNorm", True): ZeroCentredLayerNorm,
    ("RMSNorm", False): nn.RMSNorm,
    ("RMSNorm", True): ZeroCentredRMSNorm,
}
"""By ``normalization`` and ``layernorm_zero_centered_gamma``."""


class Norm:
    """A norm over the last dimension, as a ``ModuleSpec`` names it; its parameters are ``weight`` (and ``bias``)."""

    def __new__(  # type: ignore[misc]  # a spec names a class, and the module itself is torch's
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5
    ) -> nn.LayerNorm | nn.RMSNorm:
        norm = _NORMS[config.normalization, config.layernorm_zero_centered_gamma](hidden_size, eps=eps)
        norm.to(config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm

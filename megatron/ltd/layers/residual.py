"""The end of a sublayer: bias, dropout, scale, and the way past it.

    residual + dropout(x + bias) / p

p is the probability that the layer runs at all, so that a layer which is skipped now and then adds on average what it
adds in evaluation, where it always runs and p is 1. Then this is Megatron-Core's own function.

Where x is of the kept tokens only and the residual of all of them, the residual's kept rows are taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from torch import Tensor

from megatron.ltd.routing.gather_scatter import gather_tokens

XWithBias = tuple[Tensor, Tensor | None]


class ScaledResidual:
    """A drop-in for Megatron-Core's ``get_bias_dropout_add``; its layer sets the attributes before each use."""

    def __init__(self) -> None:
        self.keep_probability = 1.0
        self.kept_BK: Tensor | None = None
        """The tokens that x is of, int64; None: x and the residual are of the same."""

    def __call__(self, training: bool, fused: bool) -> Callable[[XWithBias, Tensor, float], Tensor]:
        add = self._scaled(training) if self.keep_probability != 1.0 else get_bias_dropout_add(training, fused)
        if (kept_BK := self.kept_BK) is None:
            return add
        return lambda x_with_bias, residual, dropout: add(x_with_bias, gather_tokens(residual, kept_BK), dropout)

    def _scaled(self, training: bool) -> Callable[[XWithBias, Tensor, float], Tensor]:
        scale = 1.0 / self.keep_probability

        def scaled(x_with_bias: XWithBias, residual: Tensor, dropout: float) -> Tensor:
            x, bias = x_with_bias
            x = x if bias is None else x + bias
            return residual.add(F.dropout(x, dropout, training), alpha=scale)

        return scaled

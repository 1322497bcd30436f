"""The end of a sublayer: bias, dropout, scale, and the residual connection.

    residual + dropout(x + bias) / p

p is the probability that the layer is computed, so that a layer that is skipped at random adds on average what it adds
in evaluation, in which p is 1. With p = 1 this is Megatron-Core's own function.

If x has the kept tokens only and the residual has all tokens, the kept rows of the residual are gathered.

With Triton's kernels the last sum of a layer can be left to the kernel that writes it back: it is held then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from torch import Tensor

from megatron.ltd.routing.gather_scatter import gather_tokens

XWithBias = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class HeldSum:
    """``residual + (x + bias)``, not computed yet."""

    residual_KBH: Tensor
    x_KBH: Tensor
    bias_H: Tensor | None
    rounds: bool
    """Whether the sum in brackets is rounded."""


class ScaledResidual:
    """A replacement for Megatron-Core's ``get_bias_dropout_add``; the layer sets the attributes before each use."""

    def __init__(self) -> None:
        self.keep_probability = 1.0
        self.kept_BK: Tensor | None = None
        """The positions of x's tokens in the residual, int64; None if both have the same tokens."""
        self.residual_KBH: Tensor | None = None
        """What is added in place of the given residual, which has the same values."""
        self.holds = False
        """Whether a sum may be held."""
        self.held: HeldSum | None = None
        """The sum, if it was."""

    def __call__(self, training: bool, fused: bool) -> Callable[[XWithBias, Tensor, float], Tensor]:
        add = self._scaled(training) if self.keep_probability != 1.0 else get_bias_dropout_add(training, fused)
        if self.holds and self.keep_probability == 1.0:
            return self._holding(add, training, fused)
        if (residual_KBH := self.residual_KBH) is not None:
            return lambda x_with_bias, _, dropout: add(x_with_bias, residual_KBH, dropout)
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

    def _holding(
        self, add: Callable[[XWithBias, Tensor, float], Tensor], training: bool, fused: bool
    ) -> Callable[[XWithBias, Tensor, float], Tensor]:
        """``add``, or x while the sum is held. ``add`` with dropout in one kernel draws it in there, and is not."""

        def hold(x_with_bias: XWithBias, residual: Tensor, dropout: float) -> Tensor:
            x, bias = x_with_bias
            if (fused and dropout > 0.0) or x.dtype != residual.dtype:
                return add(x_with_bias, residual, dropout)
            if dropout > 0.0:
                x, bias = F.dropout(x if bias is None else x + bias, dropout, training), None
            self.held = HeldSum(residual, x, bias, rounds=not fused)
            return x

        return hold

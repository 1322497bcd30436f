"""LayerNorm and RMSNorm."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...signatures import bind, recorded
from .base import WithExtraState


def normalized(
    kind: str, values: Tensor, weight: Tensor, bias: Tensor | None, eps: float, zero_centered: bool
) -> Tensor:
    """The norm of the last dimension. A zero-centred weight is stored minus 1."""
    weight = weight + 1.0 if zero_centered else weight
    if kind == "LayerNorm":
        return F.layer_norm(values, weight.shape, weight, bias, eps)
    return F.rms_norm(values, weight.shape, weight, eps)


class _Norm(WithExtraState):
    kind: str

    def setup(self, operation: str, sequence_parallel: bool | None, *arguments: Any, **keywords: Any) -> None:
        """``operation``: the signature that takes the arguments of the norm itself."""
        super().__init__()
        bound = bind(operation, self, *arguments, **keywords)
        self.eps, self.zero_centered_gamma = bound["eps"], bound["zero_centered_gamma"]
        start, shape = float(not self.zero_centered_gamma), (bound["normalized_shape"],)
        like = {"dtype": bound["dtype"], "device": bound["device"]}
        self.weight = nn.Parameter(torch.full(shape, start, **like))
        self.bias = nn.Parameter(torch.zeros(shape, **like)) if self.kind == "LayerNorm" else None
        if sequence_parallel is not None:
            for parameter in self.parameters():
                parameter.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, values: Tensor) -> Tensor:
        return normalized(self.kind, values, self.weight, self.bias, self.eps, self.zero_centered_gamma)


def _merge(
    normalized_shape: int | None, hidden_size: int | None, params_dtype: Any, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of the norm itself, from those and from their deprecated names."""
    assert (normalized_shape is None) != (hidden_size is None), "the shape is given once"
    assert params_dtype is None or "dtype" not in kwargs, "the type is given once"
    dtype = {} if params_dtype is None else {"dtype": params_dtype}
    return {"normalized_shape": hidden_size if normalized_shape is None else normalized_shape, **kwargs, **dtype}


class LayerNorm(_Norm):
    kind = "LayerNorm"

    @recorded("pytorch.module.layernorm.LayerNorm.__init__")
    def __init__(
        self, normalized_shape, eps, sequence_parallel, params_dtype, zero_centered_gamma, hidden_size, kwargs
    ) -> None:
        merged = _merge(normalized_shape, hidden_size, params_dtype, kwargs)
        own = {"eps": eps, "zero_centered_gamma": zero_centered_gamma}
        self.setup("pytorch.ops.basic.layer_norm.LayerNorm.__init__", sequence_parallel, **merged, **own)


class RMSNorm(_Norm):
    kind = "RMSNorm"

    @recorded("pytorch.module.rmsnorm.RMSNorm.__init__")
    def __init__(
        self, normalized_shape, eps, sequence_parallel, params_dtype, zero_centered_gamma, hidden_size, kwargs
    ) -> None:
        merged = _merge(normalized_shape, hidden_size, params_dtype, kwargs)
        own = {"eps": eps, "zero_centered_gamma": zero_centered_gamma}
        self.setup("pytorch.ops.basic.rmsnorm.RMSNorm.__init__", sequence_parallel, **merged, **own)

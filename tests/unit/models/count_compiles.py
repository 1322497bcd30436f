"""Counts how often torch compiles Megatron-Core's fused functions while the kept tokens grow as for GPT-3 1.3B.

Run as a program of its own: Megatron-Core hands its functions to the compiler when it is imported. Prints JSON, the
number by the function's name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

COMPILED: Counter[str] = Counter()
_compile = torch.compile


def _counting(function: Callable[..., Any]) -> Any:
    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        COMPILED[function.__name__] += 1
        return graph.forward

    return _compile(function, backend=backend)


def main() -> None:
    torch.compile = _counting  # type: ignore[assignment]
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.fusions.fused_bias_gelu import bias_gelu_impl
    from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl

    train, infer = (get_bias_dropout_add(training, True) for training in (True, False))
    bias = torch.zeros(8, requires_grad=True)
    for kept_tokens in (*range(128, 2049, 16), 2048):
        for tokens in (2048, kept_tokens):
            x, residual = (torch.randn(tokens, 2, 8, requires_grad=True) for _ in range(2))
            outputs = bias_gelu_impl(x, bias), train((x, bias), residual, 0.1)
            gated = [bias_swiglu_impl(x, gated_bias, False, False) for gated_bias in (bias, None)]
            torch.autograd.backward([output.sum() for output in (*outputs, *gated)])
        with torch.no_grad():
            infer((residual, bias), residual, 0.1)
            train((residual, bias), residual, 0.1)  # the first pass of what is recomputed
    print(json.dumps(COMPILED))


if __name__ == "__main__":
    main()

"""Triton's kernels in tests: interpreted on CPU tensors, or compiled for a GPU that is not there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from megatron.ltd.methods.base import Composed, Method
from tests.support_dispatch import Operations


def round_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the interpreter round fp32 to the nearest bfloat16, as GPUs do; it cuts bits off."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        exact = torch.from_numpy(numpy.array(values, dtype=numpy.float32))
        return exact.bfloat16().view(torch.int16).numpy().view(numpy.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", converted)


def on_triton(method: Method) -> Method:
    """``method`` with Triton's kernels."""
    if isinstance(method, Composed):
        return replace(method, routing=on_triton(method.routing))
    return replace(method, facts=replace(method.facts, kernels="triton"))  # type: ignore[type-var]


@contextmanager
def launches(operations: Operations | None = None) -> Iterator[Counter[str]]:
    """Counts the kernels that Triton launches in a block, by name, and not the interpreter's own ``operations``."""
    from megatron.ltd.routing import triton_kernels

    counted: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_draw", "_write_sums"):
            patch.setattr(triton_kernels, name, _Counting(getattr(triton_kernels, name), name, counted, operations))
        yield counted


def compile_for_h100() -> None:
    """Compile the kernels for steps of many K, and print what came of it as JSON. It needs no GPU, but Triton to
    compile: a process without ``TRITON_INTERPRET``.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    from megatron.ltd.routing import triton_kernels

    there = {"get_current_target": GPUTarget("cuda", 90, 32), "get_current_device": 0, "get_current_stream": 0}
    answers = {name: (lambda *_, value=value: value) for name, value in there.items()}
    triton.runtime.driver.set_active(SimpleNamespace(**answers))
    kernels: dict[str, Any] = {name: getattr(triton_kernels, name) for name in ("_draw", "_write_sums")}
    for name, kernel in kernels.items():
        setattr(triton_kernels, name, _Compiling(kernel))
    ids = torch.arange(5)
    for kept_tokens in range(128, 2048, 128):
        for layers in ((2, 3, 4), (1,), (5, 6)):
            triton_kernels.draw(1234, ids, layers, 2048, kept_tokens, 1, 1)
        into, part = (torch.zeros(n, 1, 2048, dtype=torch.bfloat16) for n in (2048, kept_tokens + 1))
        for rows in torch.arange(2 * (kept_tokens + 1)).view(2, -1):  # an odd number: the second is not aligned
            triton_kernels.write_sums(into, rows, part, part, None, rounds=False)
    made = {name: list(kernel.device_caches[0][0].values()) for name, kernel in kernels.items()}
    print(json.dumps({name: [each.asm["ptx"] for each in found] for name, found in made.items()}))


class _Compiling:
    """A kernel that is compiled for its arguments in place of a launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        return partial(self.kernel.warmup, grid=grid)


class _Counting:
    """A kernel that counts its launches."""

    def __init__(self, kernel: Any, name: str, counted: Counter[str], operations: Operations | None) -> None:
        self.kernel, self.name, self.counted, self.operations = kernel, name, counted, operations

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            before = None if self.operations is None else self.operations.names.copy()
            self.kernel[grid](*args, **kwargs)
            if self.operations is not None and before is not None:
                self.operations.names = before

        self.counted[self.name] += 1
        return launch

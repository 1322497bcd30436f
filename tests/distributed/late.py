"""Overlapped collectives of Megatron-Core whose results arrive when they are waited for, and not before.

Until ``wait`` is called, the outputs of a gather of weights and of a reduction of gradients are NaN: whoever reads them
too early, by chance right on a fast machine, is found by every comparison of losses and gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.distributed import param_and_grad_buffer as buffers
from torch.distributed import _coalescing_manager

from megatron.ltd.parallel import cpu_backend


class Late:
    """The handle of collectives that have ended, but whose results are withheld."""

    def __init__(self) -> None:
        self.outputs: list[torch.Tensor] = []
        self._results: list[torch.Tensor] = []

    def withhold(self) -> None:
        self._results = [output.clone() for output in self.outputs]
        for output in self.outputs:
            output.fill_(float("nan"))

    def wait(self) -> None:
        for output, result in zip(self.outputs, self._results, strict=True):
            output.copy_(result)
        self.outputs, self._results = [], []


def install() -> None:
    """Deliver late in this process, which computes on a CPU."""
    cpu_backend.install()  # which replaces the same name
    launched: list[torch.Tensor] = []

    def recording(collective: Any) -> Any:
        def launch(output: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            launched.append(output)
            return collective(output, *arguments, **options)

        return launch

    @contextmanager
    def manager(group: Any, async_ops: bool = False) -> Iterator[Late]:
        handle = Late()
        launched.clear()
        with _coalescing_manager(group, async_ops=False):
            yield handle
            handle.outputs = list(launched)
        if async_ops:
            handle.withhold()

    buffers._coalescing_manager = manager
    buffers.dist_all_gather_func = recording(buffers.dist_all_gather_func)
    buffers.dist_reduce_scatter_func = recording(buffers.dist_reduce_scatter_func)

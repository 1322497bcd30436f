"""CUDA graphs on a CPU, for tests: a capture records every operation of torch, and a replay runs them again.

As on a GPU, a replay runs no Python of the layer. It repeats kernels on the very tensors that the capture saw, with the
numbers that it saw, and writes into the tensors that it made: a layer that used another tensor, or whose numbers have
changed, computes something else. A capture leaves no results behind: what it made is filled with NaN. It raises an
error for what CUDA does not capture: reading a value on the host, shapes that depend on values, and tensors made from
Python numbers. Random streams that Megatron-Core's tracker forks are those of the replay, as for registered generators.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron.ltd.models import graph_rules, transformer
from megatron.ltd.parallel import cpu_backend

_NOT_CAPTURED = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "_unique2", "is_nonzero", "equal")
_INDEXING = ("index", "index_put", "index_put_")

captures = replays = 0
"""Of this process since ``on_cpu``."""
_recording: Graph | None = None
_waiting = False
"""Whether a collective is waited for, in which gloo copies: a replay waits for its own."""


class Graph:
    """In place of ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []
        self._made: list[torch.Tensor] = []
        self._forks: list[contextlib.AbstractContextManager[Any]] = []

    def pool(self) -> object:
        return self

    def register_generator_state(self, state: torch.Generator) -> None: ...

    def replay(self) -> None:
        global replays
        assert _recording is None and self._steps, "a graph is replayed after its capture"
        replays += 1
        with torch.no_grad():
            for step in self._steps:
                step()
        assert not self._forks

    def record_fork(self, fork: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        def enter() -> None:
            self._forks.append(fork())
            self._forks[-1].__enter__()

        self._steps.append(enter)

    def record_join(self) -> None:
        def leave() -> None:
            self._forks.pop().__exit__(None, None, None)

        self._steps.append(leave)

    def record(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        if function.namespace == "c10d":
            self._steps.append(lambda: function(*args, **kwargs)[-1].wait())
            return
        returns = function._schema.returns
        aliases = [one.alias_info for one in returns]
        if returns and all(alias is not None and not alias.is_write for alias in aliases):
            return  # a view: of the same memory in every replay
        made = [] if any(aliases) else [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self._made += made

        def again() -> None:
            found = [leaf for leaf in tree_leaves(function(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
            for static, new in zip(made, found, strict=bool(made)):
                assert static.shape == new.shape and static.dtype == new.dtype
                static.copy_(new)

        self._steps.append(again)

    def forget_results(self) -> None:
        for tensor in self._made:
            if tensor.is_floating_point():
                tensor.data.fill_(math.nan)  # autograd, which the backward graph is captured with, does not see it


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.partition("::")[2]
        masks = name in _INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        assert name not in _NOT_CAPTURED and not masks, f"CUDA cannot capture {name}"
        result = function(*args, **(kwargs or {}))
        if _waiting:
            return result
        self._graph.record(function, args, kwargs or {}, result)
        return result


@contextlib.contextmanager
def capture(graph: Graph, pool: object = None, capture_error_mode: str = "global") -> Iterator[None]:
    """In place of ``torch.cuda.graph``."""
    global _recording, captures
    assert _recording is None, "one capture at a time"
    captures += 1
    _recording = graph
    try:
        with _Recorder(graph):
            yield
    finally:
        _recording = None
    graph.forget_results()


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Within the block the CPU has CUDA graphs, also for runs too short for them; ``--device`` must be auto."""
    global captures, replays
    cpu_backend.install()
    captures = replays = 0
    wait = dist.Work.wait

    def unrecorded_wait(work: dist.Work, *arguments: Any) -> Any:
        global _waiting
        _waiting = True
        try:
            return wait(work, *arguments)
        finally:
            _waiting = False

    tracker_class = type(get_cuda_rng_tracker())
    fork = tracker_class.fork

    @contextlib.contextmanager
    def recorded_fork(tracker: Any, name: str = "model-parallel-rng") -> Iterator[None]:
        if _recording is not None:
            _recording.record_fork(lambda: fork(tracker, name))
        with fork(tracker, name):
            yield
        if _recording is not None:
            _recording.record_join()

    with (
        mock.patch.object(dist.Work, "wait", unrecorded_wait),
        mock.patch.object(torch.cuda, "CUDAGraph", Graph),
        mock.patch.object(torch.cuda, "graph", capture),
        mock.patch.object(tracker_class, "fork", recorded_fork),
        mock.patch.object(torch.cuda, "is_available", lambda: False),
        mock.patch.object(transformer, "check_graphs_device", lambda *_: None),
        mock.patch.object(graph_rules, "PASSES_PER_CAPTURED_PASS", 0),
    ):
        yield

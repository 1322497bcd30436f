"""Megatron-Core on a machine without CUDA: replacements for the CUDA calls that it makes.

Megatron-Core calls ``torch.cuda`` for the current device, streams, events and random state, writes ``device="cuda"`` in
a few modules, and compares ``Tensor.type()``. ``install`` replaces all of these for the CPU:

    torch.cuda.<name>              replaced on the module: device, random state, streams, events
    Tensor.cuda, Tensor.type       replaced on the class: no copy, and the CUDA spelling of the type
    megatron.core.<module>.torch   replaced in the modules that spell "cuda": torch, but for its factories
    torch.compile                  replaced while Megatron-Core is imported, which would import torch's compiler
    _coalescing_manager            replaced where Megatron-Core reduces gradients and gathers weights: one at a time

Nothing is put between an operation and its kernel (no ``TorchFunctionMode``), so that there is no cost per operation.
``mesh.initialize`` installs this once, and only if the device of the run is the CPU. What Megatron-Core computes does
not change. ``docs/megatron-core.md`` lists the replaced names.
"""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed import _coalescing_manager

CPU = torch.device("cpu")

_LITERAL_CUDA_MODULES = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.optimizer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.models.common.embeddings.rope_utils",
    "megatron.core.transformer.utils",
    "megatron.core.tensor_parallel.data",
    "megatron.core.distributed.param_and_grad_buffer",
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
    "megatron.core.utils",
)
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "empty_like", "zeros_like", "ones_like", "arange")

_installed = False


class CpuStream:
    """The only stream of a CPU: all submitted work is done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = CPU

    def wait_stream(self, stream: CpuStream) -> None: ...

    def wait_event(self, event: CpuEvent) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: CpuEvent | None = None) -> CpuEvent:
        return event or CpuEvent()


class CpuEvent:
    """An event that is always complete."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, stream: CpuStream | None = None) -> None: ...

    def wait(self, stream: CpuStream | None = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


_THE_STREAM = CpuStream()


def _get_rng_state(device: Any = None, clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, device: Any = None, graph_safe: bool = False) -> None:
    torch.set_rng_state(new_state)


_OF_CUDA: dict[str, Any] = {
    "current_device": lambda: CPU,
    "set_device": lambda device: None,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "get_rng_state": _get_rng_state,
    "set_rng_state": _set_rng_state,
    # torch.manual_seed would also seed, slowly, devices that do not exist
    "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),
    "Stream": CpuStream,
    "Event": CpuEvent,
    "stream": lambda stream: contextlib.nullcontext(),
    "current_stream": lambda device=None: _THE_STREAM,
    "default_stream": lambda device=None: _THE_STREAM,
}
"""By the names in ``torch.cuda``: a separate function for each, because torch's compiler stores them by identity."""


def _tensor_cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return self


_torch_tensor_type = torch.Tensor.type


def _tensor_type(self: torch.Tensor, dtype: Any = None, **kwargs: Any) -> Any:
    """``Tensor.type()`` with CUDA's names, with which Megatron-Core's optimizers compare; casts are torch's own."""
    if dtype is not None:
        return _torch_tensor_type(self, dtype, **kwargs)
    return _torch_tensor_type(self).replace("torch.", "torch.cuda.", 1)


def _on_cpu(factory: Any) -> Any:
    """``factory``, creating tensors on the CPU whatever its ``device`` argument."""

    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs:
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return make


def _torch_for_cpu() -> types.ModuleType:
    """A module equal to ``torch`` except for the tensor factories, with the same cost of a look-up."""
    module = types.ModuleType("torch")
    module.__dict__.update(torch.__dict__)
    for name in _FACTORIES:
        module.__dict__[name] = _on_cpu(getattr(torch, name))
    module.__dict__["__getattr__"] = lambda name: getattr(torch, name)  # names torch resolves lazily
    return module


def _cpu_rng_tracker_class() -> type:
    """Megatron-Core's tracker of random streams, forking the one generator that a CPU has.

    The original compares the CPU's state before and after to catch unintended draws, which on a CPU is every draw.
    """
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    class CpuRngStatesTracker(CudaRNGStatesTracker):
        @contextlib.contextmanager
        def fork(self, name: str = "model-parallel-rng") -> Any:
            outer_state = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer_state)

    return CpuRngStatesTracker


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Within the block ``torch.compile`` returns functions as they are.

    Megatron-Core compiles its fused functions when it is imported, which imports torch's compiler. On a CPU none of
    them is called, and calling one would need a C++ compiler.
    """

    def uncompiled(model: Callable[..., Any] | None = None, **options: Any) -> Any:
        return model if model is not None else lambda function: function

    compiling = torch.compile
    torch.compile = uncompiled
    try:
        yield
    finally:
        torch.compile = compiling


def _one_collective_at_a_time(group: Any = None, device: Any = None, async_ops: bool = False) -> Any:
    """torch's ``_coalescing_manager``, whose collectives have ended at the end of the block also if ``async_ops``.

    With several of them in flight, Gloo (torch 2.13) now and then corrupts the heap of its threads, so that a process
    ends in SIGSEGV or in "malloc(): unaligned tcache chunk detected" inside a gather. That is rare: the command
    ``tests/distributed/gloo_stress.py`` can run for many minutes without it. The handle's ``wait`` returns at once.
    """
    return _coalescing_manager(group, device, async_ops=False)


def install() -> None:
    """Make Megatron-Core run on the CPU in this process. A second call does nothing."""
    global _installed
    if _installed:
        return
    # First, because importing these modules collects torch's functions, which must still be torch's own.
    with _uncompiled():
        literal_cuda_modules = [importlib.import_module(name) for name in _LITERAL_CUDA_MODULES]
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    buffers = importlib.import_module("megatron.core.distributed.param_and_grad_buffer")
    for name, stand_in in _OF_CUDA.items():
        setattr(torch.cuda, name, stand_in)
    torch.Tensor.cuda = _tensor_cuda  # type: ignore[method-assign,assignment]
    torch.Tensor.type = _tensor_type  # type: ignore[method-assign,assignment]

    torch_for_cpu = _torch_for_cpu()
    for module in literal_cuda_modules:
        module.torch = torch_for_cpu  # type: ignore[attr-defined]

    buffers._coalescing_manager = _one_collective_at_a_time  # type: ignore[attr-defined]
    random._get_cuda_rng_state = _get_rng_state  # type: ignore[attr-defined]
    random._set_cuda_rng_state = _set_rng_state  # type: ignore[attr-defined]
    random._CUDA_RNG_STATE_TRACKER = _cpu_rng_tracker_class()()  # type: ignore[attr-defined]
    random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True  # type: ignore[attr-defined]
    _installed = True

"""A layer's computation as CUDA graphs, one of its forward and one of its backward pass, launched as one kernel each.

    kept_KBH, mask, rotary ── copy ──► static inputs ── forward graph ──► static output ──► merge
    gradients of both, and of the weights ◄── backward graph ◄── static gradient ◄── copy ──┘

For models and micro-batches so small that launching kernels takes longer than computing them. A graph repeats kernels
with the addresses and numbers of its capture. Everything that differs between two microbatches is therefore a static
input: the kept tokens, their mask, and their rotary angles. Gather and scatter stay outside, so that inputs have the
kept rows only, and skipped tokens keep their place in memory. The graph is captured again if K or any other shape
changes, or if a weight has moved, and replaces the one before, whose memory becomes free.

    a stage of the plan     warm-up passes, capture | replay, replay, ... replay      the next: again, with its K

In a capture the weights are aliases of the layer's own: the graph reads the same memory, but the capture cannot reach
the hooks of data parallelism. A replay returns the weights' gradients to autograd, whose hooks then run as ever: they
add each gradient to its main gradient, and must take it before the next replay. Dropout draws from Megatron-Core's
random streams, which each capture registers; a warm-up draws nothing that a replay would have drawn. The gradient of
the output is copied as well: sums over tokens are rounded in the order of its memory layout, which can be another.

Why not Megatron-Core's local graphs: they are captured once in a process. After that a layer called with another number
of tokens ends the run, ``delete_cuda_graphs`` does not reach them, and the pool of their buffers is never emptied.

Not here: which runs may have graphs (``models.graph_rules``). Evaluation has none: it is short, and has another length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.parallel_state import get_global_memory_buffer
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel.random import convert_cuda_rng_state
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call


class GraphedLayer:
    """``compute(hidden_SBH, **tensors)`` of a layer, by graphs; the layer's other arguments are None or constants.

    ``compute`` returns the output and None, and may use nothing that changes but its arguments and the weights.
    """

    def __init__(self, layer: torch.nn.Module, compute: Callable[..., tuple[Tensor, None]], warmup_steps: int) -> None:
        self._inside = _Inside(layer, compute)
        self._weights = {f"layer.{name}": weight for name, weight in layer.named_parameters()}
        self._warmup_steps = warmup_steps
        self._captured: _Captured | None = None
        self._key: tuple[Any, ...] = ()

    def __call__(self, hidden_SBH: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """The output, which the next call overwrites; the backward pass of this call must come before that."""
        leaves, form = _flat(hidden_SBH, kwargs)
        weights = list(self._weights.values())
        key = (form, *map(_facts, leaves), *(weight.data_ptr() for weight in weights))
        if self._captured is None or key != self._key:
            self._captured = None  # its memory can serve the new one
            self._captured, self._key = _Captured(self._run, leaves, form, weights, self._warmup_steps), key
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return _Replay.apply(self._captured, *inputs, *weights), None

    def _run(self, leaves: list[Any], form: Any) -> tuple[Tensor, list[Tensor]]:
        """The output on fresh aliases of static inputs and weights, and those aliases, inputs first."""
        inputs = [_alias(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        weights = {name: _alias(weight) for name, weight in self._weights.items()}
        hidden_SBH, kwargs = _arguments(inputs, form)
        output, _ = functional_call(self._inside, weights, (hidden_SBH,), kwargs)
        return output, [*(leaf for leaf in inputs if isinstance(leaf, Tensor)), *weights.values()]


class _Inside(torch.nn.Module):
    """What is captured, as a module that has the layer's weights."""

    def __init__(self, layer: torch.nn.Module, compute: Callable[..., tuple[Tensor, None]]) -> None:
        super().__init__()
        self.layer, self._compute = layer, compute

    def forward(self, hidden_SBH: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        return self._compute(hidden_SBH, **kwargs)


class _Captured:
    """Two graphs that share a pool of memory, and the static tensors that they read and write."""

    def __init__(
        self, run: Callable[..., Any], leaves: list[Any], form: Any, weights: Sequence[Tensor], warmup_steps: int
    ) -> None:
        """Capture ``run`` on copies of ``leaves``. Nothing else of this process may be capturing."""
        static = [_alias(leaf, copied=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.inputs: list[Tensor] = [leaf for leaf in static if isinstance(leaf, Tensor)]
        self.needed = [tensor.requires_grad for tensor in (*self.inputs, *weights)]
        with torch.enable_grad(), _drawing_nothing():
            self._warm_up(run, static, form, warmup_steps)
            self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            for state in get_cuda_rng_tracker().get_states().values():
                if isinstance(state, torch.Generator):
                    self.forward.register_generator_state(state)
                    self.backward.register_generator_state(state)
            # Only of this thread: others may wait for a disk, or for NCCL, while it captures.
            with torch.cuda.graph(self.forward, capture_error_mode="thread_local"):
                self.output, aliases = run(static, form)
            self.grad_output = torch.zeros_like(self.output)
            with torch.cuda.graph(self.backward, pool=self.forward.pool(), capture_error_mode="thread_local"):
                self.gradients = self._gradients(self.output, aliases, self.grad_output)
        self.output = self.output.detach()  # autograd's graph has been used
        # This graph writes to Megatron-Core's buffer of gathered tokens, which may be replaced by a longer one.
        self._written = list(get_global_memory_buffer().buffer.values())
        self.awaits_backward = False

    def _warm_up(self, run: Callable[..., Any], static: list[Any], form: Any, steps: int) -> None:
        """Load, choose and compile kernels, on another stream than the default one, as a capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(steps):
                output, aliases = run(static, form)
                self._gradients(output, aliases, torch.zeros_like(output))
        torch.cuda.current_stream().wait_stream(stream)

    def _gradients(self, output: Tensor, aliases: list[Tensor], grad_output: Tensor) -> list[Tensor | None]:
        """The gradients of inputs and weights; None where there is none."""
        needing = [alias for alias, needed in zip(aliases, self.needed, strict=True) if needed]
        found = iter(torch.autograd.grad(output, needing, grad_output, allow_unused=True))
        return [next(found) if needed else None for needed in self.needed]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: _Captured, *inputs_and_weights: Tensor) -> Tensor:
        assert not captured.awaits_backward, "a graph holds the activations of one microbatch"
        for static, given in zip(captured.inputs, inputs_and_weights, strict=False):
            static.copy_(given)
        captured.forward.replay()
        captured.awaits_backward = True
        ctx.captured = captured
        return captured.output.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        captured = ctx.captured
        captured.grad_output.copy_(grad_output)
        captured.backward.replay()
        captured.awaits_backward = False
        return None, *(None if gradient is None else gradient.detach() for gradient in captured.gradients)


_Form = tuple[tuple[str, int | None], ...]
"""Names of arguments, and the lengths of those that are tuples."""


def _flat(hidden_SBH: Tensor, kwargs: dict[str, Any]) -> tuple[list[Any], _Form]:
    """All arguments in one list, and their form."""
    leaves: list[Any] = [hidden_SBH]
    for value in kwargs.values():
        leaves += value if isinstance(value, tuple) else [value]
    return leaves, tuple((name, len(value) if isinstance(value, tuple) else None) for name, value in kwargs.items())


def _arguments(leaves: list[Any], form: _Form) -> tuple[Tensor, dict[str, Any]]:
    """The arguments of which ``_flat`` made a list."""
    rest = iter(leaves)
    hidden_SBH = next(rest)
    return hidden_SBH, {
        name: next(rest) if length is None else tuple(next(rest) for _ in range(length)) for name, length in form
    }


def _alias(tensor: Tensor, *, copied: bool = False) -> Tensor:
    """A leaf of autograd with the same values, in the same memory unless ``copied``."""
    alias = tensor.detach()
    return (alias.clone() if copied else alias).requires_grad_(tensor.requires_grad)


def _facts(leaf: Any) -> Any:
    """What a capture depends on: the form of a tensor, or the value of anything else."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.requires_grad
    assert leaf is None or isinstance(leaf, (bool, int, float, str)), f"no constant: {leaf!r}"
    return leaf


@contextmanager
def _drawing_nothing() -> Iterator[None]:
    """Random numbers that are drawn inside are drawn again after it."""
    tracker = get_cuda_rng_tracker()
    states, current = tracker.get_states(), torch.cuda.get_rng_state()
    before = {name: convert_cuda_rng_state(state) for name, state in states.items()}
    try:
        yield
    finally:
        for name, state in states.items():
            if isinstance(state, torch.Generator):
                state.set_state(before[name])
        tracker.set_states(states)
        torch.cuda.set_rng_state(current)

"""Which operations share a kernel: what the flags of ``KernelsConfig`` ask for, and what they are on a device.

                       computes, in one kernel               compiled by   default
    bias-GELU          gelu(x + bias), tanh approximation    torch         on CUDA, with --openai-gelu
    bias-SwiGLU        silu(x + bias) (y + bias)             torch         on CUDA
    bias-dropout       residual + dropout(x + bias)          torch         on CUDA
    RoPE               the rotation, in fp32                 -             on CUDA with Transformer Engine
    gradient-          the product of a weight's gradient,   -             on CUDA in Transformer Engine's layers
     accumulation      added to the sum in the sum's type

Beside these --ltd-kernels triton draws all kept tokens of a microbatch in one kernel, and adds the residuals in those
that write kept tokens back (``routing.triton_kernels``).

All but the last compute what they replace, to rounding; the last rounds less. The first three are Megatron-Core's
functions, which it compiles when it is imported; on a CPU they run as they are (``parallel.cpu_backend``), and only if
a flag asks for them. Exact GELU has no fused kernel.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.extensions.transformer_engine import HAVE_TE, TELayerNormColumnParallelLinear, TELinear

from megatron.ltd.errors import UserError
from megatron.ltd.models import specs
from megatron.ltd.models.config import LOSS_FUSION, LayersConfig
from megatron.ltd.parallel.agreement import problem_of_any
from megatron.ltd.parallel.config import ParallelConfig

_NEEDS_ENGINE = 'it is Transformer Engine\'s, for a CUDA device with "transformer-engine[pytorch]>=2.9,<2.12"; drop it'


@dataclass(frozen=True)
class Fusions:
    """What is fused."""

    bias_activation: bool
    bias_dropout: bool
    rope: bool
    gradient_accumulation: bool
    warnings: tuple[str, ...] = ()
    """Lines about what would be fused by default and cannot be."""


def fusions_of(model: LayersConfig, device: torch.device) -> Fusions:
    """What is fused in a model on a device. Every rank calls this.

    Raises ``UserError`` for a flag that asks for what is not available.
    """
    warnings: list[str] = []

    def is_on(name: str, problem: Callable[[], str | None], *, applies: bool = True, warns: bool = False) -> bool:
        """Whether the flag ``name`` is on; ``problem`` says why its kernel is not available, or None."""
        chosen = getattr(model, name)
        if chosen is False or not applies or (chosen is None and device.type != "cuda"):
            return False
        found = problem()
        if found is not None and chosen:
            raise UserError(f"--{name.replace('_', '-')}: {found}")
        if found is not None and warns:
            warnings.append(f"warning: --no-{name.replace('_', '-')} is taken: {found}")
        return found is None

    def needs_compiler() -> str | None:
        return _compile_problem() if device.type == "cuda" else None

    def needs_engine() -> str | None:
        return None if specs.has_transformer_engine(device) else _NEEDS_ENGINE

    def needs_engines_layers() -> str | None:
        return None if specs.uses_transformer_engine(model, device) else _NEEDS_ENGINE

    if getattr(model, "cross_entropy_fusion_impl", None) == "te" and needs_engine() is not None:
        raise UserError(f"--cross-entropy-fusion-impl te: {_NEEDS_ENGINE}")
    gelu = is_on("bias_gelu_fusion", needs_compiler, applies=model.has_fusible_gelu, warns=True)
    swiglu = is_on("bias_swiglu_fusion", needs_compiler, applies=model.swiglu, warns=True)
    rotates = getattr(model, "position_embedding_type", None) == "rope"
    return Fusions(
        bias_activation=gelu or swiglu,
        bias_dropout=is_on("bias_dropout_fusion", needs_compiler, warns=True),
        rope=is_on("rope_fusion", needs_engine, applies=rotates),
        gradient_accumulation=is_on(
            "gradient_accumulation_fusion", needs_engines_layers, applies=model.cuda_graph_impl == "none"
        ),
        warnings=tuple(warnings),
    )


def fused_kernels(model: LayersConfig, device: torch.device) -> dict[str, Any]:
    """The activation and the fusions as settings of Megatron-Core's configuration; see ``fusions_of``."""
    fusions = fusions_of(model, device)
    activation = F.silu if model.swiglu else F.gelu
    if model.openai_gelu and not fusions.bias_activation:  # in place of F.gelu Megatron-Core's kernel computes this
        activation = partial(F.gelu, approximate="tanh")
    return {
        "activation_func": activation,
        "bias_activation_fusion": fusions.bias_activation,
        "bias_dropout_fusion": fusions.bias_dropout,
        "apply_rope_fusion": fusions.rope,
        **{name: getattr(model, name) for name in LOSS_FUSION if hasattr(model, name)},
    }


def check_graphs_device(model: LayersConfig, parallel: ParallelConfig, device: torch.device) -> None:
    """Raise ``UserError`` if ``--cuda-graph-impl`` asks for graphs that ``device`` or the environment cannot have."""
    if model.cuda_graph_impl == "none":
        return
    asked = f"--cuda-graph-impl {model.cuda_graph_impl}"
    if device.type != "cuda":
        raise UserError(f"{asked}: graphs are CUDA's, and this run computes on {device.type}; drop the flag")
    allocator = "PYTORCH_ALLOC_CONF" if "PYTORCH_ALLOC_CONF" in os.environ else "PYTORCH_CUDA_ALLOC_CONF"
    if (
        parallel.tensor_model_parallel_size > 1
        and "expandable_segments:True" in os.environ.get(allocator, "")
        and os.environ.get("NCCL_GRAPH_REGISTER") != "0"
    ):
        raise UserError(
            f"{asked}: with --tensor-model-parallel-size {parallel.tensor_model_parallel_size} NCCL registers memory "
            f"that {allocator}=expandable_segments:True moves; set NCCL_GRAPH_REGISTER=0, or leave {allocator} unset"
        )


def check_routing_kernels(model: LayersConfig, device: torch.device) -> None:
    """Raise ``UserError`` if ``--ltd-kernels`` asks for what is not available on ``device``."""
    if model.ltd_kernels != "triton":
        return
    problem = None
    if importlib.util.find_spec("triton") is None:
        problem = "Triton is not installed; install torch for CUDA, which brings it"
    elif device.type != "cuda" and not _triton_interprets():
        problem = f"Triton compiles for CUDA, and this run computes on {device.type}"
    if problem is not None:
        raise UserError(f"--ltd-kernels triton: {problem}, or use --ltd-kernels torch, which keeps the same tokens")


def _triton_interprets() -> bool:
    """Whether Triton runs its kernels on a CPU, as ``TRITON_INTERPRET=1`` asks it to."""
    import triton

    return bool(triton.knobs.runtime.interpret)


@functools.cache
def _compile_problem() -> str | None:
    """Why torch cannot compile for the CUDA device of some rank, where Megatron-Core's functions would fail, or None.

    Ranks that share a sample must draw the same dropout, so that all of them compile or none.
    """
    problem = None
    try:
        torch.compile(lambda values: values.sin() + 1.0)(torch.ones(2, device="cuda"))
    except Exception as error:  # whatever its compiler, or the one of C that it calls, raises
        what = next(iter(str(error).splitlines()), "")
        problem = f"torch.compile fails ({type(error).__name__}: {what}); install a C compiler, or give the flag"
    return problem_of_any(problem)


def products(chunks: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """The linear layers of Transformer Engine in ``chunks``."""
    if not HAVE_TE:  # then these are no classes
        return []
    kinds = (TELinear, TELayerNormColumnParallelLinear)
    return [module for chunk in chunks for module in chunk.modules() if isinstance(module, kinds)]


def accumulate_in_products(chunks: Iterable[torch.nn.Module]) -> None:
    """Let Transformer Engine's layers add the gradients of their weights to the buffers that the chunks have for them.

    Megatron-Core has one setting for all layers, and refuses it for its own output layer without Apex.
    """
    for product in products(chunks):
        product.fuse_wgrad_accumulation = True  # type: ignore[assignment]

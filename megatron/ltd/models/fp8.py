"""fp8: the products of Transformer Engine's layers on 8-bit numbers.

    x_fp8 = round(x · s_x)     w_fp8 = round(w · s_w)     y = (x_fp8 w_fp8^T) / (s_x s_w), in bfloat16

Weights, attention, norms, residuals, embedding and output layer stay in bfloat16, the optimizer in fp32. Megatron-Core
enters Transformer Engine's block of fp8 around all layers with delayed scaling, and otherwise around each, so that some
can stay in bfloat16. A layer that keeps few tokens finds its scale from those. One that is skipped leaves its scale as
it is, and takes part in the reduction of scales over processes all the same: all processes of a pipeline stage skip the
same layers, and reduce after each microbatch.

Not here: which sizes its kernels take (``fp8_sizes``), and how scales are saved (``checkpoint.fp8_state``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.fp8_utils import get_fp8_recipe
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_te_version

from megatron.ltd.errors import UserError
from megatron.ltd.models import specs
from megatron.ltd.models.config import LayersConfig
from megatron.ltd.models.execution_config import OF_FP8, PrecisionConfig
from megatron.ltd.parallel.agreement import problem_of_any


def fp8_settings(model: LayersConfig, precision: PrecisionConfig, device: torch.device) -> dict[str, Any]:
    """fp8 as settings of Megatron-Core's configuration. Raises ``UserError`` without Transformer Engine's layers."""
    if precision.fp8_format is None:
        return {}
    if not (HAVE_TE and specs.uses_transformer_engine(model, device)):
        raise UserError(
            f"--fp8-format {precision.fp8_format}: only Transformer Engine's layers have fp8, on a CUDA device with "
            '"transformer-engine[pytorch]>=2.9,<2.12"; drop it'
        )
    return {"fp8": precision.fp8_format, **{name: getattr(precision, name) for name in OF_FP8[1:]}}


def check_recipe(config: TransformerConfig) -> None:
    """Raise ``UserError`` if Transformer Engine, or the GPU of some rank, lacks the recipe. Every rank calls this."""
    if not config.fp8:
        return
    problem = problem_of_any(_problem(config))
    if problem is not None:
        raise UserError(f"--fp8-recipe {config.fp8_recipe}: {problem}; use another recipe, or drop --fp8-format")


def _problem(config: TransformerConfig) -> str | None:
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager as Manager

    try:
        get_fp8_recipe(config)
        asked = {"mxfp8": "is_mxfp8_available", "blockwise": "is_fp8_block_scaling_available"}
        available, reason = getattr(Manager, asked.get(config.fp8_recipe or "", "is_fp8_available"))()
    except (AssertionError, AttributeError, ValueError):  # of Megatron-Core, and of versions without the recipe
        return f"Transformer Engine {get_te_version()} does not have it"
    return None if available else reason.strip().rstrip(".")


@contextmanager
def without_fp8(model: MegatronModule) -> Iterator[None]:
    """A block in which the layers of ``model`` compute in bfloat16, and therefore take any number of tokens."""
    config: TransformerConfig = model.config
    fp8, config.fp8 = config.fp8, None
    try:
        yield
    finally:
        config.fp8 = fp8

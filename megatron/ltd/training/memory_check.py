"""Does the run fit into the memory of its devices? Asked before anything is allocated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megatron.ltd.errors import UserError
from megatron.ltd.forecast.layout import Layout
from megatron.ltd.forecast.memory import STATES, stage_memory
from megatron.ltd.format import format_bytes
from megatron.ltd.machine import free_memory_bytes, memory_bytes
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.parameters import ModelSizes
from megatron.ltd.plan.run_plan import RunPlan

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig


def check_memory(config: RunConfig, sizes: ModelSizes, plan: RunPlan, mesh: Mesh) -> None:
    """Refuse a run whose states alone exceed the memory of its device, before any is allocated. Raises ``UserError``.

    Half of the forecast activations are counted too: on a GPU that forecast has not been measured.
    """
    layout = Layout.of(config.parallel, mesh.world_size, mesh.world_size, config.model.num_layers)
    parts = stage_memory(config, sizes, layout, plan)[mesh.pipeline_parallel_rank].parts
    needed = sum(size if name in STATES else size // 2 for name, size in parts.items())
    on_gpu = mesh.device.type == "cuda"
    free, total = torch.cuda.mem_get_info(mesh.device) if on_gpu else (free_memory_bytes(), memory_bytes())
    if needed > total:
        raise UserError(
            f"--hidden-size {config.model.hidden_size}, --num-layers {config.model.num_layers} and --micro-batch-size "
            f"{config.training.micro_batch_size}: a process needs at least {format_bytes(needed)} of memory, and "
            f"{mesh.device} has {format_bytes(total)}, of which {format_bytes(free)} is free; use smaller values, or "
            "more processes (--plan shows the parts)"
        )

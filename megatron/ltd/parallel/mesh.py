"""Processes, their groups and their device.

``initialize`` joins the processes a launcher started (``torchrun`` sets RANK, WORLD_SIZE, LOCAL_RANK and the address),
or makes a world of one without opening a port, lays Megatron-Core's groups over them, and returns them as one object
that is passed on as an argument.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron.ltd.errors import UserError
from megatron.ltd.parallel.config import ParallelConfig


@dataclass(frozen=True)
class Mesh:
    """This process's place: its device, its rank, and Megatron-Core's process groups."""

    device: torch.device
    rank: int
    world_size: int
    data_parallel_rank: int
    data_parallel_size: int
    groups: object
    """``megatron.core.process_groups_config.ProcessGroupCollection``"""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """The process that sees the loss under every layout, and does the printing of it."""
        return self.rank == self.world_size - 1


def choose_device(name: str) -> torch.device:
    """The device ``--device`` stands for. Raises ``UserError`` where CUDA is asked for and absent."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "--device is cuda, but torch sees no CUDA device: install a CUDA build of torch, or use --device cpu"
        )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK is {local_rank}, but this node has {torch.cuda.device_count()} CUDA devices: start at most "
            "one "
            "process a device"
        )
    return torch.device("cuda", local_rank)


def quiet_core_imports() -> None:
    """Silence what Megatron-Core says of absent optional packages and of its own use of torch."""
    for message in (
        "Transformer Engine and Apex are not installed",
        "Apex is not installed",
        "full scope is deprecated",
        "If you are using transformer_engine as the transformer implementation",  # said of every selective recompute
        "When using .* it is recommended to set the environment variable CUDA_DEVICE_MAX_CONNECTIONS",
        "`torch.distributed.reduce_scatter_tensor` is deprecated",
        "`torch.distributed.all_gather_into_tensor` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)


def refuse_broken_transformer_engine() -> None:
    """Transformer Engine is optional, but Megatron-Core imports what is there: one that fails would end in its
    traceback.

    Its metapackage without the CUDA core is such a one. Raises ``UserError``. Call it before anything of Megatron-Core.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # whatever a half-installed package raises
        what = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"the package transformer_engine is installed but cannot be imported ({type(error).__name__}: {what}), and "
            "Megatron-Core would fail on it: uninstall it (pip uninstall transformer-engine), or install it whole "
            '(pip install --no-build-isolation "transformer-engine[pytorch]>=2.9,<2.12")'
        ) from None


def _join_world(device: torch.device, timeout: timedelta) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)


@contextmanager
def initialize(config: ParallelConfig) -> Iterator[Mesh]:
    """Join the world for the duration of a ``with`` block and leave it clean."""
    quiet_core_imports()
    device = choose_device(config.device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config.data_parallel_size(world_size)  # refuse a layout that does not fit before any process waits for another
    refuse_broken_transformer_engine()
    if device.type == "cpu":
        from megatron.ltd.parallel import cpu_backend

        cpu_backend.install()
    else:
        torch.cuda.set_device(device)

    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    timeout = timedelta(minutes=config.distributed_timeout_minutes)
    _join_world(device, timeout)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.tensor_model_parallel_size,
            pipeline_model_parallel_size=config.pipeline_model_parallel_size,
            distributed_timeout_minutes=config.distributed_timeout_minutes,
        )
        yield Mesh(
            device=device,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
            groups=ProcessGroupCollection.use_mpu_process_groups(),
        )
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()

"""Processes, their groups and their device.

``initialize`` joins the processes that a launcher started (``torchrun`` sets RANK, WORLD_SIZE, LOCAL_RANK and the
address), or makes a world of one process without opening a port, creates Megatron-Core's process groups, and returns
them as one object, which is passed on as an argument.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron.ltd.errors import UserError
from megatron.ltd.parallel import agreement
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.versions import installed_versions, source_fingerprint


@dataclass(frozen=True)
class Mesh:
    """This process's device, its ranks, and Megatron-Core's process groups."""

    device: torch.device
    rank: int
    world_size: int
    data_parallel_rank: int
    data_parallel_size: int
    context_parallel_rank: int
    context_parallel_size: int
    pipeline_parallel_rank: int
    pipeline_parallel_size: int
    groups: Any
    """``megatron.core.process_groups_config.ProcessGroupCollection``"""

    @property
    def place(self) -> int:
        """A number for the samples, the part of the sequence and the layers of this process; tensor-parallel processes
        have the same and share the number.
        """
        samples_and_sequence = self.data_parallel_rank * self.context_parallel_size + self.context_parallel_rank
        return samples_and_sequence * self.pipeline_parallel_size + self.pipeline_parallel_rank

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def choose_device(name: str) -> torch.device:
    """The device of ``--device``. Raises ``UserError`` if CUDA is required and not available.

    A process that sees one device takes it, whatever its LOCAL_RANK: Slurm shows each task its own
    (``--gpus-per-task=1``). Processes that would share a device are found when all compare theirs.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device; install a CUDA build of torch, or use --device cpu")
    local_rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if count == 1:
        return torch.device("cuda", 0)
    if local_rank >= count:
        raise UserError(
            f"LOCAL_RANK is {local_rank}, but this process sees {count} CUDA devices: start at most one process per "
            "device"
        )
    return torch.device("cuda", local_rank)


def lone_tasks(world_size: int) -> list[str]:
    """A warning if Slurm started several tasks that do not know of each other; none otherwise."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if world_size > 1 or "RANK" in os.environ or not tasks.isdecimal() or int(tasks) == 1:
        return []
    return [
        f"warning: Slurm started {tasks} tasks and RANK is not set, so that each trains a whole run of its own: start "
        "one run with examples/launch/slurm.sbatch, or set what its README lists under one task per GPU"
    ]


def quiet_core_imports() -> None:
    """Silence Megatron-Core's warnings about missing optional packages and about its own use of torch."""
    for message in (
        "Transformer Engine and Apex are not installed",
        "Apex is not installed",
        "full scope is deprecated",
        "If you are using transformer_engine as the transformer implementation",  # for every selective recompute
        "When using .* it is recommended to set the environment variable CUDA_DEVICE_MAX_CONNECTIONS",
        "The .grad attribute of a Tensor that is not a leaf Tensor",  # of the distributed optimizer's own shards
        "`torch.distributed.reduce_scatter_tensor` is deprecated",
        "`torch.distributed.all_gather_into_tensor` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)


def refuse_broken_transformer_engine() -> None:
    """Raise ``UserError`` if Transformer Engine is installed but cannot be imported. Call it before Megatron-Core.

    Transformer Engine is optional, but Megatron-Core imports it if it is installed, and would fail with a traceback;
    its metapackage without the CUDA part is an example.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:  # whatever a half-installed package raises
        what = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"the package transformer_engine is installed but cannot be imported ({type(error).__name__}: {what}), so "
            "that Megatron-Core would fail: uninstall it (pip uninstall transformer-engine), or install all of it "
            '(pip install --no-build-isolation "transformer-engine[pytorch]>=2.9,<2.12")'
        ) from None


@dataclass(frozen=True)
class _World:
    """The processes of a run, before they join a process group."""

    store: dist.Store
    rank: int
    size: int

    @classmethod
    def find(cls, timeout: timedelta) -> _World:
        """The processes that a launcher started, or this process alone, without opening a port."""
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            return cls(*agreement.join(timeout))
        return cls(dist.HashStore(), 0, 1)

    def agree(self, config: ParallelConfig, flags: Mapping[str, Any], timeout: timedelta) -> torch.device:
        """This process's device, once every process has one and all were started in the same way."""
        facts: dict[str, Any] = {"WORLD_SIZE": self.size, **installed_versions()}
        facts |= {"the fingerprint of megatron-ltd's sources": source_fingerprint()}
        device, problem, own_device = None, None, None
        try:
            device = choose_device(config.device)
            config.data_parallel_size(self.size)
            refuse_broken_transformer_engine()
            facts["the device"] = device.type
            if device.type == "cuda":
                facts["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
                own_device = str(torch.cuda.get_device_properties(device).uuid)
        except UserError as error:
            if self.size == 1:
                raise
            problem = str(error)
        if self.size > 1:
            stated = agreement.Stated({**facts, **flags}, own_device, problem)
            agreement.agree_over_store(self.store, self.rank, self.size, stated, timeout)
        assert device is not None
        return device

    def join(self, device: torch.device, timeout: timedelta) -> None:
        """Start the process group. All processes must have devices of one type, or they would wait for each other."""
        store = dist.PrefixStore("default_pg", self.store)
        store.set_timeout(timeout)
        listen_on_loopback(self.size)
        on_cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_cuda else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=timeout,
            device_id=device if on_cuda else None,  # otherwise NCCL guesses it from the rank
        )


def listen_on_loopback(world_size: int) -> None:
    """Let Gloo listen where other machines do not reach it, if all processes are on this one, as torchrun says."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None and os.environ.get("LOCAL_WORLD_SIZE", "1") == str(world_size):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


@contextmanager
def initialize(config: ParallelConfig, agree_on: Mapping[str, Any] | None = None) -> Iterator[Mesh]:
    """Join the processes of the run for the duration of a ``with`` block.

    Processes that differ in versions, sources, device or the flags ``agree_on`` (by spelling) exit before any of them
    waits for another. Raises ``UserError`` on all of them, and ``RunStopped`` if some do not start.
    """
    quiet_core_imports()
    timeout = timedelta(minutes=config.distributed_timeout_minutes)
    world = _World.find(timeout)
    device = world.agree(config, agree_on or {}, timeout)
    if device.type == "cpu":
        from megatron.ltd.parallel import cpu_backend

        cpu_backend.install()
    else:
        if config.tensor_model_parallel_size > 1 or config.context_parallel_size > 1:
            # One queue of the GPU: communication starts before the products that it should overlap with.
            os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        torch.cuda.set_device(device)

    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    world.join(device, timeout)
    leave_in_order = True
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.tensor_model_parallel_size,
            pipeline_model_parallel_size=config.pipeline_model_parallel_size,
            context_parallel_size=config.context_parallel_size,
            distributed_timeout_minutes=config.distributed_timeout_minutes,
        )
        yield Mesh(
            device=device,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
            context_parallel_rank=parallel_state.get_context_parallel_rank(),
            context_parallel_size=parallel_state.get_context_parallel_world_size(),
            pipeline_parallel_rank=parallel_state.get_pipeline_model_parallel_rank(),
            pipeline_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
            groups=ProcessGroupCollection.use_mpu_process_groups(),
        )
    except Exception:
        leave_in_order = device.type == "cpu" or world.size == 1  # NCCL would wait for processes that may be dead
        raise
    finally:
        if leave_in_order:
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()

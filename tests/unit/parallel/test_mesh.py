"""How a process with a GPU joins the others, up to the call that needs the GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron.ltd.errors import UserError
from megatron.ltd.parallel import mesh
from megatron.ltd.parallel.config import ParallelConfig


class Joined(Exception):
    """Raised where the process group would start."""


@pytest.mark.parametrize(
    ("layout", "given", "queues"),
    [
        ({}, None, None),
        ({"tensor_model_parallel_size": 2}, None, "1"),
        ({"context_parallel_size": 2}, None, "1"),
        ({"tensor_model_parallel_size": 2}, "32", "32"),
    ],
)
def test_nccl_has_its_device_and_kernels_start_in_order(
    monkeypatch: pytest.MonkeyPatch, layout: dict[str, int], given: str | None, queues: str | None
) -> None:
    """The device is set, and the environment, before the group starts; a user's own number of queues stays."""
    device, seen = torch.device("cuda", 1), []
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", given or "")
    if given is None:
        monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    monkeypatch.setattr(mesh, "choose_device", lambda name: device)
    monkeypatch.setattr(ParallelConfig, "data_parallel_size", lambda *_: 1)  # as if the processes were there
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27))
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="own"))

    def start(backend: str, **how: Any) -> None:
        assert (backend, how["device_id"], seen) == ("nccl", device, [device])
        assert os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == queues
        raise Joined

    monkeypatch.setattr(dist, "init_process_group", start)
    with pytest.raises(Joined), mesh.initialize(ParallelConfig(**layout)):
        pass


@pytest.mark.parametrize(("local_rank", "visible", "index"), [("3", 1, 0), ("3", 8, 3), (None, 8, 0), ("0", 1, 0)])
def test_a_process_takes_the_device_of_its_local_rank_or_the_only_one(
    monkeypatch: pytest.MonkeyPatch, local_rank: str | None, visible: int, index: int
) -> None:
    """One visible device: ``srun --gpus-per-task=1`` shows a task its own, as number 0, and counts LOCAL_RANK on."""
    _with_devices(monkeypatch, visible, local_rank)
    assert mesh.choose_device("auto") == torch.device("cuda", index)


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_devices(monkeypatch, 2, "2")
    with pytest.raises(UserError, match="LOCAL_RANK is 2, but this process sees 2 CUDA devices: start at most one"):
        mesh.choose_device("auto")


def _with_devices(monkeypatch: pytest.MonkeyPatch, visible: int, local_rank: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)


@pytest.mark.parametrize(
    ("variables", "world_size", "warned"),
    [
        ({}, 1, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, 1, False),
        ({"SLURM_STEP_NUM_TASKS": "8"}, 1, True),
        ({"SLURM_STEP_NUM_TASKS": "8", "RANK": "0"}, 1, False),
        ({"SLURM_STEP_NUM_TASKS": "8", "RANK": "0"}, 8, False),
    ],
)
def test_tasks_of_slurm_that_do_not_know_of_each_other_are_reported(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], world_size: int, warned: bool
) -> None:
    for name in ("SLURM_STEP_NUM_TASKS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    lines = mesh.lone_tasks(world_size)
    assert len(lines) == warned and all(line.startswith("warning: Slurm started 8 tasks") for line in lines)

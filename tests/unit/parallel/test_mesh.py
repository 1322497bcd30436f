"""How a process with a GPU joins the others, up to the call that needs the GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist

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

    def start(backend: str, **how: Any) -> None:
        assert (backend, how["device_id"], seen) == ("nccl", device, [device])
        assert os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == queues
        raise Joined

    monkeypatch.setattr(dist, "init_process_group", start)
    with pytest.raises(Joined), mesh.initialize(ParallelConfig(**layout)):
        pass

"""Errors that are caused by the end of another process, and the line that reports them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from megatron.ltd.errors import LostContact
from megatron.ltd.parallel.contact import keeping_contact, lost_contact
from megatron.ltd.parallel.mesh import Mesh
from tests.support import world
from tests.support_errors import assert_names

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"
LOST = [
    (
        RuntimeError(GLOO + "pair.cc:553] Connection closed by peer [127.0.0.1]:17645. This is typically ..."),
        "Connection closed by peer [127.0.0.1]:17645",
    ),
    (
        RuntimeError(GLOO + "pair.cc:537] Read error [10.0.0.7]:23259: Connection reset by peer. This is ...\nmore"),
        "Read error [10.0.0.7]:23259: Connection reset by peer",
    ),
    (
        RuntimeError(GLOO + "unbound_buffer.cc:78] Timed out waiting 12000ms for recv operation to complete"),
        "Timed out waiting 12000ms for recv operation to complete",
    ),
    (dist.DistNetworkError("failed to recv, got 0 bytes"), "failed to recv, got 0 bytes"),
    (
        dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3, remote process exited or there was ..."),
        "NCCL error in: ProcessGroupNCCL.cpp:3, remote process exited or there was ...",
    ),
]
OWN = [
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    dist.DistBackendError("NCCL error: invalid usage. Duplicate GPU detected : rank 1 and rank 0 both on CUDA device"),
    ValueError("Connection closed by peer"),
]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with world() as mesh:
        yield dataclasses.replace(mesh, rank=3, world_size=4)


@pytest.mark.parametrize(("error", "reason"), LOST, ids=range(len(LOST)))
def test_errors_of_lost_contact(error: Exception, reason: str, mesh: Mesh) -> None:
    assert lost_contact(error) == reason
    with pytest.raises(LostContact) as caught, keeping_contact(mesh, lambda: "continue with --load x"):
        raise error
    assert_names(str(caught.value), "rank 3", f"({reason})", "continue with --load x")


@pytest.mark.parametrize("error", OWN, ids=range(len(OWN)))
def test_errors_of_this_process_are_not_changed(error: Exception, mesh: Mesh) -> None:
    assert lost_contact(error) is None
    with pytest.raises(type(error)) as caught, keeping_contact(mesh, lambda: ""):
        raise error
    assert caught.value is error


def test_a_single_process_cannot_lose_contact(mesh: Mesh) -> None:
    with pytest.raises(RuntimeError), keeping_contact(dataclasses.replace(mesh, world_size=1), lambda: ""):
        raise LOST[0][0]

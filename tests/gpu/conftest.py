"""The tests of this folder run on the CPU at a tiny size, to find mistakes without a GPU, and on a GPU at full size.

``pytest -m gpu`` runs them on the GPU alone. A run on the CPU replaces parts of ``torch.cuda`` for the rest of its
process, so that the tests on a GPU need a process without one.

What is compared in fp32 is multiplied in fp32: without TF32, which Transformer Engine takes for every product and torch
where NVIDIA's images tell it to. CUDA's libraries read the variable when they are first used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron.ltd.parallel import cpu_backend
from tests.distributed.engine import VERSIONS, Engine
from tests.gpu.runs import IMPLEMENTATIONS, write_data

os.environ["NVIDIA_TF32_OVERRIDE"] = "0"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], scope="module")
def device(request: pytest.FixtureRequest) -> str:
    """The device, as ``--device`` names it."""
    if request.param == "cuda" and cpu_backend._installed:
        pytest.skip("a CPU run came before in this process: run pytest -m gpu by itself")
    return request.param


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(device: str, request: pytest.FixtureRequest) -> str:
    """What can be ``--transformer-impl`` on the device."""
    if request.param == "transformer_engine" and device == "cpu":
        pytest.skip("Transformer Engine computes on CUDA")
    return request.param


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Processes on a CPU that find the stand-in of Transformer Engine."""
    with Engine(VERSIONS[-1]) as engine:
        yield engine


@pytest.fixture
def triton(device: str, request: pytest.FixtureRequest) -> None:
    """Triton, interpreted on a CPU. Skips the test without it."""
    if device == "cpu":
        request.getfixturevalue("triton_on_cpu")
    else:
        pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix of a dataset of text that is easily learned, tokenized as bytes."""
    return write_data(tmp_path_factory.mktemp("data"))

"""The data and the pool of processes that every test of this folder shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.layouts import RANDOM_LTD, bert_command, run_flags
from tests.distributed.pool import Pool
from tests.distributed.runs import Runs
from tests.support import small_dataset, small_sentences


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Jobs on the CPU."""
    with Pool("cpu") as pool:
        yield pool


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prefix of small documents, bytes as tokens."""
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def runs(pool: Pool, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of the product on the CPU, and what they are compared with."""
    return Runs(pool, "cpu", run_flags(dataset), tmp_path_factory.mktemp("runs"), *RANDOM_LTD)


@pytest.fixture(scope="session")
def bypass_runs(pool: Pool, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The same without a method; a test gives its flags."""
    return Runs(pool, "cpu", run_flags(dataset), tmp_path_factory.mktemp("bypass-runs"))


@pytest.fixture(scope="session")
def bert_runs(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of a BERT; a test gives the flags of its method."""
    command = bert_command(*small_sentences(tmp_path_factory.mktemp("sentences")))
    return Runs(pool, "cpu", command, tmp_path_factory.mktemp("bert-runs"))


@pytest.fixture(scope="session")
def gpu_runs(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The same on GPUs and NCCL, one GPU a rank; initial weights are drawn on the CPU, the same for every layout."""
    with Pool("cuda") as pool:
        yield Runs(
            pool,
            "cuda",
            run_flags(dataset),
            tmp_path_factory.mktemp("gpu-runs"),
            *RANDOM_LTD,
            "--use-cpu-initialization",
        )

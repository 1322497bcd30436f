"""Fixtures of the distributed tests: their data, and the pool that starts the ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.engine import TE, VERSIONS, Engine
from tests.distributed.layouts import RANDOM_LTD, bert_command, run_flags
from tests.distributed.pool import Pool
from tests.distributed.runs import Runs
from tests.support import small_dataset, small_sentences

_SCORING = "megatron.ltd.evaluation.lm_eval"
LM_EVAL = (f"{_SCORING}.results", f"{_SCORING}.task_loading", "lm_eval.evaluator")


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """A pool of jobs on the CPU, several of which score with lm-eval."""
    with Pool("cpu", also_import=LM_EVAL) as pool:
        yield pool


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prefix of a dataset of short documents, tokenized as bytes."""
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def runs(pool: Pool, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """GPT runs with random-LTD on the CPU."""
    return Runs(pool, "cpu", run_flags(dataset), tmp_path_factory.mktemp("runs"), *RANDOM_LTD)


@pytest.fixture(scope="session")
def bypass_runs(pool: Pool, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The same without a method; each test adds the flags of its own."""
    return Runs(pool, "cpu", run_flags(dataset), tmp_path_factory.mktemp("bypass-runs"))


@pytest.fixture(scope="session")
def bert_runs(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """BERT runs on the CPU; each test adds the flags of its method."""
    command = bert_command(*small_sentences(tmp_path_factory.mktemp("sentences")))
    return Runs(pool, "cpu", command, tmp_path_factory.mktemp("bert-runs"))


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Ranks that find the stand-in of Transformer Engine."""
    with Engine(VERSIONS[-1]) as engine:
        yield engine


@pytest.fixture(scope="session")
def engine_runs(engine: Engine, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The counterpart of ``runs``."""
    return Runs(engine, "cpu", run_flags(dataset), tmp_path_factory.mktemp("engine"), *TE, *RANDOM_LTD)


@pytest.fixture(scope="session")
def engine_bypass_runs(engine: Engine, dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The counterpart of ``bypass_runs``."""
    return Runs(engine, "cpu", run_flags(dataset), tmp_path_factory.mktemp("engine-bypass"), *TE)


@pytest.fixture(scope="session")
def gpu_runs(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """GPT runs with random-LTD on GPUs with NCCL, one GPU per rank. Initial weights are drawn on the CPU, so that they
    are the same for every layout.
    """
    with Pool("cuda") as pool:
        yield Runs(
            pool,
            "cuda",
            run_flags(dataset),
            tmp_path_factory.mktemp("gpu-runs"),
            *RANDOM_LTD,
            "--use-cpu-initialization",
        )

"""Data and flags for whole runs of a tiny model: 4 layers, hidden 32, S 32, byte-level vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.methods.cases import CASES, MethodCase
from tests.support import small_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prefix of small documents, bytes as tokens."""
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def flags(dataset: str) -> list[str]:
    """The flags of a run of 12 steps, two microbatches each, with dropout; a later flag wins over an earlier one."""
    return [
        *("--data-path", dataset, "--split", "8,2", "--tokenizer-type", "ByteTokenizer"),
        *"--make-vocab-size-divisible-by 8 --num-layers 4 --hidden-size 32 --num-attention-heads 4".split(),
        *"--seq-length 32 --micro-batch-size 2 --global-batch-size 4 --train-iters 12 --seed 5".split(),
        *"--lr 3e-3 --lr-decay-style cosine --min-lr 1e-4 --lr-warmup-fraction 0.2".split(),
        *"--attention-dropout 0.1 --hidden-dropout 0.1 --eval-interval 6 --eval-iters 2 --log-interval 1000".split(),
    ]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> MethodCase:
    """Every registered method in turn."""
    return CASES[request.param]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test's runs write."""
    return tmp_path / "runs"

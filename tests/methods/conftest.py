"""Data and flags for whole runs of a tiny model: 4 layers, hidden size 32, S = 32.

The fixture ``flags`` is for a byte-level GPT; tests marked ``cases.on_every_model`` get the flags of each model in
turn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron.ltd.methods import METHODS
from megatron.ltd.methods.base import Method, ModelFacts
from megatron.ltd.parallel.mesh import Mesh
from tests.methods.cases import CASES, MethodCase
from tests.support import Finished, pretrain, small_dataset, small_sentences, world
from tests.support_vit import vit_flags


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prefix of a dataset of short documents, tokenized as bytes."""
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Prefix of a dataset of documents of several sentences, and its vocabulary file."""
    return small_sentences(tmp_path_factory.mktemp("sentences"))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a vision transformer on small images; see ``vit_flags``."""
    return vit_flags(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def flags(request: pytest.FixtureRequest) -> list[str]:
    """Flags of a run of 12 steps with two microbatches each and dropout. If a flag is given twice, the later one
    counts.
    """
    model = getattr(request, "param", "GPT")
    if model == "ViT":
        return ["finetune_vit_ltd.py", *request.getfixturevalue("images")]
    if model == "BERT":
        prefix, vocabulary = request.getfixturevalue("sentences")
        command = ["pretrain_bert_ltd.py", "--data-path", prefix, "--vocab-file", vocabulary]
        command += ["--tokenizer-type", "BertWordPieceLowerCase"]
    else:
        command = ["--data-path", request.getfixturevalue("dataset"), "--tokenizer-type", "ByteTokenizer"]
    return [
        *command,
        *"--split 8,2 --make-vocab-size-divisible-by 8 --num-layers 4 --hidden-size 32 --num-attention-heads 4".split(),
        *"--seq-length 32 --micro-batch-size 2 --global-batch-size 4 --train-iters 12 --seed 5".split(),
        *"--lr 3e-3 --lr-decay-style cosine --min-lr 1e-4 --lr-warmup-fraction 0.2".split(),
        *"--attention-dropout 0.1 --hidden-dropout 0.1 --eval-interval 6 --eval-iters 2 --log-interval 1000".split(),
    ]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """``pretrain`` of the given flags to a folder of its own, once for all tests that ask for the same run."""

    @functools.cache
    def train(*command: str) -> Finished:
        return pretrain(command, tmp_path_factory.mktemp("trained") / "run")

    return train


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> MethodCase:
    """The case of every registered method in turn."""
    return CASES[request.param]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder for a test's runs."""
    return tmp_path / "runs"


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """This process as a world of one."""
    with world() as mesh:
        yield mesh


@pytest.fixture(params=CASES)
def method(request: pytest.FixtureRequest) -> Method:
    """Every registered method, dropping at step 0, built from its flags for 4 layers and S = 32."""
    from megatron.ltd.arguments import parse_run_config

    flags = "--num-layers 4 --seq-length 32 --train-iters 1 --lr 1e-3 --data-path x --tokenizer-type ByteTokenizer"
    case = CASES[request.param]
    configs = parse_run_config([*flags.split(), *case.dropping]).methods
    return METHODS[case.method].build(configs[case.method], ModelFacts(4, 32, seed=7))

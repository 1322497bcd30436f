"""Finetuning from a Hugging Face folder on several ranks: each loads its share, and the run equals that of one process.

The vocabulary is padded from 257 to 264. Evaluations cover all of the held-out text, which is not a multiple of a
batch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.distributed.layouts import LAYOUTS
from tests.distributed.runs import Runs, assert_same, whole
from tests.reference.gpt2_folder import write_gpt2
from tests.reference.plain_gpt import PlainConfig

pytestmark = pytest.mark.distributed

SHAPE = PlainConfig(
    num_layers=6, hidden_size=32, heads=4, groups=4, head_size=8, mlp_size=128, vocab_size=257, learned_positions=32
)
FLAGS = ("--finetune", "--openai-gelu", "--eval-at-start", "--full-validation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    write_gpt2(folder, SHAPE)
    return folder


@pytest.mark.parametrize("name", ["tp2 sp", "pp2 interleaved dp2 sharded overlaps"])
def test_equals_one_process(runs: Runs, folder: Path, name: str) -> None:
    layout, flags = LAYOUTS[name], (*FLAGS, "--load", str(folder))
    expected = runs.reference(layout.strata, *flags)
    assert_same(runs.run(layout, *flags), expected)
    loaded = whole(expected.initial_weights)["embedding.word_embeddings.weight"]
    assert np.allclose(loaded[257:], loaded[:257].mean(axis=0), atol=1e-6)

"""BERT with a classifier on several ranks: kept tokens, losses and every gradient equal those of one process."""

from __future__ import annotations

import json
import random

import pytest

from tests.distributed.layouts import LAYOUTS, RANDOM_LTD, SIX_LAYERS
from tests.distributed.pool import Pool
from tests.distributed.runs import Runs, assert_same
from tests.support import small_sentences

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def tuned(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs on 16 of 37 sentence pairs per step, with 10 held-out pairs, whose last global batch is incomplete."""
    folder, draw = tmp_path_factory.mktemp("pairs"), random.Random(1)
    for name, size in (("train", 37), ("valid", 10)):
        rows = [
            {"text": "the model " * draw.randint(1, 4), "other": "every token " * draw.randint(1, 9), "label": n % 3}
            for n in range(size)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--tokenizer-type", "BertWordPieceLowerCase", "--vocab-file", small_sentences(folder)[1])
    data = ("--train-data-path", str(folder / "train.jsonl"), "--valid-data-path", str(folder / "valid.jsonl"))
    command = ("finetune_bert_ltd.py", *data, "--text-pair-column", "other", *words, *SIX_LAYERS)
    return Runs(pool, "cpu", command, folder, *RANDOM_LTD)


@pytest.mark.parametrize("name", ["tp2 sp", "pp2 interleaved dp2 sharded overlaps"])
def test_equals_one_process(tuned: Runs, name: str) -> None:
    layout = LAYOUTS[name]
    assert_same(tuned.run(layout), tuned.reference(layout.strata))

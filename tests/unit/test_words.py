"""Words that users read for the ids in files: every id that a run stores has a name of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.checkpoint.run_format import from_format_1
from megatron.ltd.methods import METHODS
from megatron.ltd.words import in_words, method_title, name_of, value_of

RECORDS = Path(__file__).parents[1] / "reference" / "run_records_format_1.jsonl"


@pytest.mark.parametrize(
    ("setting", "value", "name", "shown"),
    [
        ("num_layers", 4, "--num-layers", "4"),
        ("add_bias_linear", False, "--disable-bias-linear", "given"),
        ("add_bias_linear", True, "--disable-bias-linear", "not given"),
        ("tied_embeddings", None, "--untie-embeddings-and-output-weights", "not given"),
        ("swiglu", True, "--swiglu", "given"),
        ("ltd_block_size", None, "--ltd-block-size", "not given"),
        ("rampup_batch_size", [2, 2, 8], "--rampup-batch-size", "2 2 8"),
        ("bert_binary_head", False, "--bert-no-binary-head", "given"),
        ("img_h", 32, "--img-h", "32"),
        ("text_pair_column", None, "--text-pair-column", "not given"),
        ("of_tomorrow", True, "of_tomorrow", "given"),
    ],
)
def test_a_flags_field_is_shown_as_it_is_typed(setting: str, value: Any, name: str, shown: str) -> None:
    assert (name_of(setting), value_of(setting, value)) == (name, shown)
    assert in_words({setting: value}) == {name: shown}


def test_methods_and_models_have_titles() -> None:
    for name, entry in METHODS.items():
        assert entry.title in value_of("method", name) and entry.flag in value_of("method", name)
        assert method_title(name) == entry.title
    both = value_of("method", "random_ltd+layer_drop")
    assert all(words in both for words in ("--random-ltd", "--layer-drop", " + "))
    assert method_title("token_bypass+layer_drop") == "TokenBypass + layer dropping"
    assert method_title("random-LTD + layer dropping") == "random-LTD + layer dropping"  # from an older log
    assert value_of("method", "dense") == method_title("dense") == "dense"
    assert value_of("model", "vit") == "ViT"


def test_every_stored_id_has_words() -> None:
    """The ids of stored runs of all workloads have the right pattern, and messages name them in other words."""
    records = [from_format_1(json.loads(line)["record"]) for line in RECORDS.read_text().splitlines()]
    ids = {setting for record in records for part in ("identity", "order", "schedule") for setting in record[part]}
    assert len(ids) > 50 and all(re.fullmatch("[a-z][a-z0-9_]*", setting) for setting in ids)
    assert [setting for setting in ids if name_of(setting) == setting] == []

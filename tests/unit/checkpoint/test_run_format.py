"""``run.json`` of an older format is read as if it had the current one.

The records were written by real runs of commit b85dd0f, at least one of each workload:
``tests/reference/run_records_format_1.jsonl``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.checkpoint.run_format import FORMAT_VERSION
from megatron.ltd.methods import METHODS
from megatron.ltd.methods.base import ModelFacts, build_method
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.encoder_config import BertModelConfig, ViTConfig
from megatron.ltd.plan.clock import SCHEDULE_IDS
from tests.support_errors import refused

RECORDS: dict[str, dict[str, Any]] = {
    line["name"]: line["record"]
    for line in map(
        json.loads, (Path(__file__).parents[2] / "reference" / "run_records_format_1.jsonl").read_text().splitlines()
    )
}
IDENTITIES = {
    "gpt": (ModelConfig, 384, {"model": "gpt", "tokenizer_fingerprint": "b9ee620f4c05"}),
    "bert": (BertModelConfig, 128, {"model": "bert", "tokenizer_fingerprint": "a91e6aeac35e"}),
    "vit": (ViTConfig, None, {"model": "vit"}),
}
"""By the beginning of a record's name: the class of the model, the padded vocabulary, and what else is stored."""


def read(name: str, folder: Path) -> dict[str, Any]:
    """Write the record as a checkpoint holds it, and return what this version reads."""
    (folder / "run.json").write_text(json.dumps(RECORDS[name]))
    return checkpoint_files.read_run(folder)


@pytest.mark.parametrize("name", RECORDS)
def test_parts_that_are_not_compared_are_unchanged(name: str, tmp_path: Path) -> None:
    record, old = read(name, tmp_path), RECORDS[name]
    assert record["format_version"] == FORMAT_VERSION
    assert record.keys() == old.keys() | {"format_version"}
    assert all(record[part] == old[part] for part in ("progress", "config", "learned"))


@pytest.mark.parametrize("name", RECORDS)
def test_the_identity_is_that_of_the_same_flags_in_this_version(name: str, tmp_path: Path) -> None:
    record = read(name, tmp_path)
    config_class, vocab_size, others = IDENTITIES[name.partition("_")[0]]
    model: Any = config_class(**record["config"]["model"])
    identity = (model.identity() if vocab_size is None else model.identity(vocab_size)) | others
    later = identity.keys() - record["identity"].keys()
    assert {identity.pop(setting) for setting in later} <= {None}, "a flag of this version that is not used"
    assert record["identity"] == identity


ORDERS = {
    "gpt": {"seed": 1234, "seq_length": 16, "train_data_fingerprint": "75492c052caa"},
    "bert": {
        "seed": 5, "seq_length": 32, "train_data_fingerprint": "f1adfebe315f", "mask_prob": 0.15, "short_seq_prob": 0.1,
    },
    "bert_classifier": {
        "seed": 5, "seq_length": 32, "train_data_fingerprint": "03862efd26a4", "class_count": 2,
        "class_names_fingerprint": "c91200", "text_column": "text", "label_column": "label", "text_pair_column": None,
    },
    "vit": {
        "seed": 5, "train_data_fingerprint": "22ce220c0c6d", "class_count": 3, "class_names_fingerprint": "c4276d",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_the_order(name: str, tmp_path: Path) -> None:
    assert read(name, tmp_path)["order"] == ORDERS[name]


RATES = {
    "gpt_two_methods": {"lr_warmup_length": 141, "lr_decay_length": 613, "lr_wsd_decay_length": 323},
    "bert": {"lr_warmup_length": 0, "lr_decay_length": 2304, "lr_wsd_decay_length": None},
    "vit": {"lr_warmup_length": 1228, "lr_decay_length": 6144, "lr_wsd_decay_length": None},
}


@pytest.mark.parametrize("name", RATES)
def test_the_schedule(name: str, tmp_path: Path) -> None:
    record = read(name, tmp_path)
    schedule, optimizer = record["schedule"], record["config"]["optimizer"]
    flags = ("lr_warmup_init", "lr", "min_lr", "lr_decay_style", "lr_wsd_decay_style")
    rate = RATES[name] | {flag: optimizer[flag] for flag in flags}
    assert {setting: schedule[setting] for setting in SCHEDULE_IDS.values()} == rate
    assert schedule["rampup_batch_size"] == record["config"]["training"]["rampup_batch_size"]
    assert schedule["global_batch_size"] == 4 and schedule["lr_clock"] == "layer-tokens"


@pytest.mark.parametrize("name", RECORDS)
def test_method_settings_are_those_of_the_same_flags_in_this_version(name: str, tmp_path: Path) -> None:
    """Settings that only this version has come from later flags, and must be None."""
    record = read(name, tmp_path)
    flags = {
        method: {flag: tuple(value) if isinstance(value, list) else value for flag, value in values.items()}
        for method, values in record["config"]["methods"].items()
    }
    model = record["config"]["model"]
    facts = ModelFacts(model["num_layers"], model.get("seq_length", 32), seed=5, special_ids=(1, 2, 3, 4))
    configs = {method: entry.config_class(**flags[method]) for method, entry in METHODS.items()}
    settings = build_method(METHODS, configs, facts).settings
    assert settings["method"] == {"gpt": "random_ltd", "gpt_two_methods": "random_ltd+layer_drop",
                                  "bert": "token_bypass"}.get(name, "dense")  # fmt: skip
    others = {*SCHEDULE_IDS.values(), "global_batch_size", "rampup_batch_size", "lr_clock"}
    stored = {setting: value for setting, value in record["schedule"].items() if setting not in others}
    assert settings == stored | {setting: None for setting in settings.keys() - stored.keys()}


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("order", "the classes (of --train-data-path)", 3),
        ("order", "the classes (of --train-data-path)", "three (0)"),
        ("order", "the columns (of --train-data-path)", "a"),
        ("schedule", "the method", 1),
        ("schedule", "the method", ["dense"]),
        ("identity", "the model", None),
    ],
)
def test_invalid_settings_are_refused(part: str, name: str, value: Any, tmp_path: Path) -> None:
    record = json.loads(json.dumps(RECORDS["gpt"]))
    record[part][name] = value
    (tmp_path / "run.json").write_text(json.dumps(record))
    with refused(tmp_path / "run.json", "format_version 1"):
        checkpoint_files.read_run(tmp_path)


@pytest.mark.parametrize("version", [None, "2", 2.0, [2], True])
def test_a_version_that_is_not_a_number_is_refused(version: Any, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RECORDS["gpt"] | {"format_version": version}))
    with refused(tmp_path / "run.json", "format_version"):
        checkpoint_files.read_run(tmp_path)

"""The format of ``run.json``, of the first line of a log and of plan files, and a reader of the first format. No torch.

format_version 2    settings by id, see ``words``
missing             format 1: settings by the spelling of a flag, or by a sentence
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL = "model"
"""The id of the workload of a checkpoint's weights, in its identity."""
FORMAT_VERSION = 2

_SWITCHES_OFF = {  # the flag turns its field off
    "--disable-bias-linear": "add_bias_linear",
    "--untie-embeddings-and-output-weights": "tied_embeddings",
    "--bert-no-binary-head": "bert_binary_head",
}
_SENTENCES = {
    "the model": "model",
    "the model's vocabulary (--vocab-size, --make-vocab-size-divisible-by)": "padded_vocab_size",
    "the fingerprint of the tokenizer (--tokenizer-type and its files)": "tokenizer_fingerprint",
    "the training data (--data-path with --split, or --train-data-path)": "train_data_fingerprint",
    "the training images (--data-path, or --train-data-path)": "train_data_fingerprint",
    "the training data (--train-data-path)": "train_data_fingerprint",
    "the method": "method",
    "the warm-up on the learning rate's clock (--lr-warmup-*)": "lr_warmup_length",
    "the decay on the learning rate's clock (--lr-decay-*, or the length of the run)": "lr_decay_length",
    "the final decay on the learning rate's clock (--lr-wsd-decay-*)": "lr_wsd_decay_length",
}
_VALUES = {
    "model": {"GPT": "gpt", "BERT": "bert", "ViT": "vit"},
    "method": {
        "random-LTD (--random-ltd)": "random_ltd",
        "TokenBypass (--token-bypass)": "token_bypass",
        "layer dropping (--layer-drop)": "layer_drop",
    },
}


def from_format_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """A ``run.json`` of format 1, in the current format."""
    parts = {
        part: dict(new for name, value in record[part].items() for new in _translate(name, value, record["config"]))
        for part in ("identity", "order", "schedule")
    }
    return {**record, **parts, "format_version": FORMAT_VERSION}


def _translate(name: str, value: Any, config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The ids of one setting, and their values."""
    if name in _SWITCHES_OFF:
        return [(_SWITCHES_OFF[name], not value)]
    if name.startswith("the classes ("):  # such as "3 (0fa2b9)"
        count, names = value.split()
        return [("class_count", int(count)), ("class_names_fingerprint", names.strip("()"))]
    if name.startswith("the columns ("):
        return [(column, config["data"][column]) for column in ("text_column", "label_column", "text_pair_column")]
    setting = _SENTENCES.get(name) or name.removeprefix("--").replace("-", "_")
    if setting in _VALUES:
        value = "+".join(_VALUES[setting].get(part, part) for part in value.split(" + "))
    return [(setting, value)]

"""The words that a screen shows for the ids and values that files hold.

    num_layers, 4                      --num-layers, 4                           the flag's own field: its spelling
    add_bias_linear, false             --disable-bias-linear, given
    method, random_ltd                 the method, random-LTD (--random-ltd)
    padded_vocab_size, 512             the model's vocabulary (--vocab-size, ...), 512

``run.json``, the first line of ``metrics.jsonl`` and the file of ``--plan-json`` hold ids, which are the names of
flags' fields where a flag says the value, and otherwise those listed here. An id never changes; words may.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from megatron.ltd.checkpoint.run_format import MODEL
from megatron.ltd.config import flag_classes
from megatron.ltd.flags import flag_fields, flag_name, shown
from megatron.ltd.methods import METHODS
from megatron.ltd.methods.base import METHOD
from megatron.ltd.workloads import WORKLOADS

_DERIVED = {
    MODEL: "the model",
    "padded_vocab_size": "the model's vocabulary (--vocab-size, --make-vocab-size-divisible-by)",
    "tokenizer_fingerprint": "the fingerprint of the tokenizer (--tokenizer-type and its files)",
    "train_data_fingerprint": "the fingerprint of the training data (--data-path and --split, or --train-data-path)",
    "train_images": "the training images",
    "valid_images": "the validation images",
    "class_count": "the number of classes of the training data",
    "class_names_fingerprint": "the fingerprint of the names of the classes of the training data",
    METHOD: "the method",
    "lr_warmup_length": "the warm-up on the learning rate's clock (--lr-warmup-*)",
    "lr_decay_length": "the decay on the learning rate's clock (--lr-decay-*, or the length of the run)",
    "lr_wsd_decay_length": "the final decay on the learning rate's clock (--lr-wsd-decay-*)",
}
"""By id, what no single flag says."""


@cache
def _flags() -> dict[str, tuple[str, Any]]:
    """By field, the spelling and the default of every flag of every command that trains."""
    classes = dict.fromkeys(found for workload in WORKLOADS.values() for found in flag_classes(workload))
    return {
        field.name: (flag_name(config_class, field.name), field.default)
        for config_class in classes
        for field in flag_fields(config_class)
    }


def name_of(setting: str) -> str:
    """What a message calls the setting with this id; an id that is not known stays as it is."""
    field, _, name = setting.partition("/")  # with the name of one of several validation sets
    return _DERIVED.get(setting) or " ".join(filter(None, (_flags().get(field, (field, None))[0], name)))


def value_of(setting: str, value: Any) -> str:
    """How a message shows the value of the setting with this id; None is one that is not there."""
    _, default = _flags().get(setting, (setting, None))
    if setting == METHOD and value is not None:
        return " + ".join(f"{METHODS[name].title} ({METHODS[name].flag})" if name in METHODS else name
                          for name in str(value).split("+"))  # fmt: skip
    if setting == MODEL and isinstance(value, str) and value in WORKLOADS:
        return WORKLOADS[value].name
    if isinstance(default, bool):
        return shown(value is not None and value != default)
    return shown(value)


def method_title(value: str) -> str:
    """What a run's methods are called: ``"random_ltd+layer_drop"`` -> ``"random-LTD + layer dropping"``."""
    names = (name.strip() for name in str(value).split("+"))  # older logs hold the words
    return " + ".join(METHODS[name].title if name in METHODS else name for name in names)


def by_default(settings: Mapping[str, Any], given: Collection[str]) -> str | None:
    """A line about the settings of a method whose flags, by field, were not ``given``; None if there are none."""
    listed = [
        f"{name_of(setting)} {value_of(setting, value)}"
        for setting, value in settings.items()
        if setting not in given and setting != METHOD and value not in (None, [])
    ]
    return f"by default {', '.join(listed)}" if listed else None


def in_words(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings by id as a message shows them."""
    return {name_of(setting): value_of(setting, value) for setting, value in settings.items()}

"""What a continued run must agree on with its checkpoint, and what it may change. No torch.

identity   the model's shape and the tokenizer        always the same, also with --finetune
order      seed, sample length, training data         the same unless --finetune: they decide which sample comes when
                                                      and which of its tokens are kept
schedule   the learning rate's                        the same, or taken from the flags when told so (``clock``)
the rest   batch sizes, weight decay, method, ...     free to change, and said aloud
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.ltd.config import PARTS, RunConfig
from megatron.ltd.data.indexed import IndexedInfo
from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag_name
from megatron.ltd.methods import METHODS
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.tokenizers.base import Tokenizer

_FREE_PARTS = ("model", "data", "training", "optimizer", "precision")
_UNSAID = {  # change nothing of what is computed, or are covered by identity and order
    "transformer_impl",
    *("seed", "seq_length", "data_path", "train_data_path", "valid_data_path", "data_cache_path"),
    *("num_workers", "num_dataset_builder_threads", "mmap_bin_files"),
    *("exit_interval", "exit_duration_in_mins", "check_for_nan_in_loss_and_grad", "check_for_spiky_loss"),
    *("spiky_loss_factor", "eval_interval", "eval_iters", "override_opt_param_scheduler"),
}


def weights_identity(model: ModelConfig, tokenizer: Tokenizer, padded_vocab_size: int) -> dict[str, Any]:
    """What two runs must agree on to share weights, by flag: the model's shape, and the tokenizer by content."""
    fingerprint = {"the fingerprint of the tokenizer (--tokenizer-type and its files)": tokenizer.fingerprint[:12]}
    return fingerprint | model.identity(padded_vocab_size)


def data_order(config: RunConfig, sources: Mapping[str, Sequence[IndexedInfo]]) -> dict[str, Any]:
    """What decides the order of samples and the draw of kept tokens, by flag. Data count by content, not by path."""
    spelling = "--data-path" if "--data-path" in sources else "--train-data-path"
    blend = config.data.blends()[spelling]
    content = [
        [info.fingerprint for info in sources[spelling]],
        blend.weights,
        config.data.data_path and config.data.split,
    ]
    return {
        "--seed": config.training.seed,
        "--seq-length": config.model.seq_length,
        "the training data (--data-path with --split, or --train-data-path)": hashlib.sha256(
            json.dumps(content).encode()
        ).hexdigest()[:12],
    }


def check_identity(checkpoint: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model or tokenizer, naming the first flag that differs and both values."""
    _check_equal(
        checkpoint,
        stored,
        identity,
        "use the checkpoint's value (--use-checkpoint-args takes them all), or start a run of its own",
    )


def check_order(checkpoint: Path, stored: Mapping[str, Any], order: Mapping[str, Any]) -> None:
    """Refuse to continue over other data or with other draws, naming the first flag that differs and both values."""
    _check_equal(
        checkpoint,
        stored,
        order,
        "use the checkpoint's, or add --finetune to take its weights and count from step 0",
    )


def _check_equal(checkpoint: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], fix: str) -> None:
    for spelling, value in wanted.items():
        if stored.get(spelling) != value:
            raise UserError(f"{spelling} is {value} here and {stored.get(spelling)} in checkpoint {checkpoint}: {fix}")


def changed_settings(stored: Mapping[str, Any], config: RunConfig) -> str | None:
    """One line naming every flag that this run sets otherwise than the checkpoint's run did, or None."""
    changes = [
        f"{spelling} {now} (was {before})"
        for spelling, now, before in _settings(stored, config)
        if json.dumps(now) != json.dumps(before)
    ]
    return f"continues with other flags than before: {', '.join(changes)}" if changes else None


def _settings(stored: Mapping[str, Any], config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Flag, its value in this run and in the stored one, for every flag that both have."""
    now = config.to_dict()
    rooms = [(PARTS[name], now[name], stored.get(name, {})) for name in _FREE_PARTS]
    rooms += [
        (entry.config_class, now["methods"][name], stored.get("methods", {}).get(name, {}))
        for name, entry in METHODS.items()
    ]
    for config_class, values, before in rooms:
        for name in values:
            if name in before and name not in _UNSAID:
                yield flag_name(config_class, name), values[name], before[name]

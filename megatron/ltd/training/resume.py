"""What a continued run must agree on with its checkpoint, and what it may change. No torch.

identity   the model's shape and the tokenizer        always the same, also with --finetune
order      seed, sample length, training data         the same unless --finetune: they decide which sample comes when
                                                      and which of its tokens are kept
schedule   method, batch, learning rate               the same, or all of it taken from the flags when told so
the rest   weight decay, dropout, precision, ...      free to change, and said aloud

Micro-batch size and parallel layout are nobody's business: a run is the same under all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.ltd.config import RunConfig
from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag_name, shown
from megatron.ltd.tasks.base import MODEL

_FREE_PARTS = ("model", "data", "training", "optimizer", "precision")
_UNSAID = {  # change nothing of what is computed, or are covered by identity and order
    "transformer_impl",
    *("seed", "seq_length", "data_path", "train_data_path", "valid_data_path", "data_cache_path"),
    *("num_workers", "num_dataset_builder_threads", "mmap_bin_files"),
    *("exit_interval", "exit_duration_in_mins", "check_for_nan_in_loss_and_grad", "check_for_spiky_loss"),
    *("spiky_loss_factor", "eval_interval", "eval_iters", "full_validation", "eval_at_start"),
    "override_opt_param_scheduler",
    *("global_batch_size", "rampup_batch_size", "min_lr"),  # the schedule's, as is what begins with lr
}


def check_identity(checkpoint: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model or tokenizer, naming the first flag that differs and both values."""
    if stored.get(MODEL) != identity.get(MODEL):
        raise UserError(
            f"{MODEL} is {identity.get(MODEL)} here and {stored.get(MODEL)} in checkpoint {checkpoint}: name another "
            "run's folder with --load, or use the script that wrote this one"
        )
    _check_equal(
        checkpoint,
        stored,
        identity,
        "use the checkpoint's value (--use-checkpoint-args takes them all), or start a run of its own",
    )


def check_order(checkpoint: Path, stored: Mapping[str, Any], order: Mapping[str, Any]) -> None:
    """Refuse to continue over other data or with other draws, naming the first flag that differs and both values."""
    if stored.keys() != order.keys():
        raise UserError(
            f"checkpoint {checkpoint} is of a run that trained otherwise, on data of another kind: add --finetune to "
            "take its weights and count from step 0"
        )
    _check_equal(
        checkpoint,
        stored,
        order,
        "use the checkpoint's, or add --finetune to take its weights and count from step 0",
    )


def settle_schedule(
    checkpoint: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], asked_by: str | None
) -> str | None:
    """Keep the schedule that the run was started with, or take the one ``wanted`` whole where a flag asks for it.

    Both are ``RunClock.settings``; ``asked_by`` is that flag, or None. Returns a line that names everything taken
    otherwise than before, or None. Raises ``UserError`` naming the first setting that differs, and both values.
    """
    changes = [
        (spelling, shown(wanted.get(spelling)), shown(stored.get(spelling)))
        for spelling in dict.fromkeys([*wanted, *stored])
        if shown(wanted.get(spelling)) != shown(stored.get(spelling))
    ]
    if not changes:
        return None
    if asked_by is None:
        spelling, now, before = changes[0]
        raise UserError(
            f"{spelling} is {now} here and {before} in checkpoint {checkpoint}, whose schedule the run would leave: "
            "use the flags that it was started with, or add --override-opt-param-scheduler to take method, batch and "
            "learning rate from these"
        )
    listed = ", ".join(f"{spelling} {now} (was {before})" for spelling, now, before in changes)
    return f"takes method, batch and learning rate from these flags ({asked_by}): {listed}"


def _check_equal(checkpoint: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], fix: str) -> None:
    for spelling, value in wanted.items():
        if stored.get(spelling) != value:
            raise UserError(f"{spelling} is {value} here and {stored.get(spelling)} in checkpoint {checkpoint}: {fix}")


def changed_settings(stored: Mapping[str, Any], config: RunConfig) -> str | None:
    """One line naming every free flag that this run sets otherwise than the checkpoint's run did, or None."""
    now = config.to_dict()
    changes = [
        f"{flag_name(type(getattr(config, part)), name)} {now[part][name]} (was {before})"
        for part in _FREE_PARTS
        for name, before in stored.get(part, {}).items()
        if name in now[part] and _is_free(name) and json.dumps(now[part][name]) != json.dumps(before)
    ]
    return f"continues with other flags than before: {', '.join(changes)}" if changes else None


def _is_free(name: str) -> bool:
    return name not in _UNSAID and not name.startswith("lr")

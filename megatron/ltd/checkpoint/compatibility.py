"""What a continued run must agree on with its checkpoint, and what it may change. No torch.

identity   the model's shape and the tokenizer        always the same, also with --finetune
order      seed, sample length, training data         the same unless --finetune: they decide which sample comes when
                                                      and which of its tokens are kept
schedule   method, batch, learning rate               the same, or all of it taken from the flags when told so
numbers    weight decay, dropout, precision, ...      free to change, and reported

What a flag belongs to is its own affair (``flags.Affects``). What it does not change may differ without a word: a run
is the same under all parallel layouts. Settings are compared by id; ``words`` says what a message calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.ltd.checkpoint.run_format import MODEL
from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag_fields

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig
from megatron.ltd.words import name_of, value_of


def check_identity(checkpoint: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model or tokenizer, naming the first setting that differs and both values."""
    if stored.get(MODEL) != identity.get(MODEL):
        raise _differs(
            MODEL, checkpoint, stored, identity,
            "name another run's folder with --load, or use the script that wrote this one",
        )  # fmt: skip
    check_equal(
        checkpoint,
        stored,
        identity,
        "use the checkpoint's value (--use-checkpoint-args takes them all), or start a run of its own",
    )


def check_order(checkpoint: Path, stored: Mapping[str, Any], order: Mapping[str, Any]) -> None:
    """Refuse to continue over other data or with other draws, naming the first setting that differs and both values."""
    if stored.keys() != order.keys():
        raise UserError(
            f"checkpoint {checkpoint} is of a run that trained otherwise, on data of another kind: add --finetune to "
            "take its weights and count from step 0"
        )
    check_equal(
        checkpoint,
        stored,
        order,
        "use the checkpoint's, or add --finetune to take its weights and count from step 0",
    )


def check_equal(checkpoint: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], fix: str) -> None:
    """Refuse the first setting of ``wanted`` that ``checkpoint`` does not have, or has another value of."""
    for setting, value in wanted.items():
        if stored.get(setting) != value:
            raise _differs(setting, checkpoint, stored, wanted, fix)


def settle_schedule(
    checkpoint: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], asked_by: str | None
) -> str | None:
    """Keep the schedule that the run was started with, or take the one ``wanted`` whole where a flag asks for it.

    Both are ``RunClock.settings``; ``asked_by`` is that flag, or None. A setting that one of them lacks is one of no
    use. Returns a line that names everything taken otherwise than before, or None. Raises ``UserError`` naming the
    first setting that differs, and both values.
    """
    changes = [
        setting
        for setting in dict.fromkeys([*wanted, *stored])
        if _plain(wanted.get(setting)) != _plain(stored.get(setting))
    ]
    if not changes:
        return None
    if asked_by is None:
        raise _differs(
            changes[0], checkpoint, stored, wanted,
            "use the flags that the run was started with, or add --override-opt-param-scheduler to take method, batch "
            "and learning rate from these",
        )  # fmt: skip
    listed = ", ".join(_change(setting, stored.get(setting), wanted.get(setting)) for setting in changes)
    return f"takes method, batch and learning rate from these flags ({asked_by}): {listed}"


def changed_settings(stored: Mapping[str, Any], config: RunConfig) -> str | None:
    """One line naming every flag that this run sets otherwise than the checkpoint's run did and is free to; or None.

    These are the flags that affect the numbers; one that an older checkpoint does not know is not named.
    """
    changes = [
        _change(field.name, stored[part][field.name], getattr(flags, field.name))
        for part, flags in config.parts.items()
        for field in flag_fields(flags)
        if field.metadata["affects"] == "numbers"
        and field.name in stored.get(part, {})
        and _plain(stored[part][field.name]) != _plain(getattr(flags, field.name))
    ]
    return f"continues with other flags than before: {', '.join(changes)}" if changes else None


def _plain(value: Any) -> Any:
    """A value to compare: lists have been through JSON, and what is not given may be missing."""
    if isinstance(value, (list, tuple)):
        return [*value] or None
    return None if value is False else value


def _change(setting: str, before: Any, now: Any) -> str:
    return f"{name_of(setting)} {value_of(setting, now)} (was {value_of(setting, before)})"


def _differs(
    setting: str, checkpoint: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], fix: str
) -> UserError:
    here, there = (value_of(setting, settings.get(setting)) for settings in (wanted, stored))
    return UserError(f"{name_of(setting)} is {here} here and {there} in checkpoint {checkpoint}: {fix}")

"""Which settings of a continued run must equal those of its checkpoint, and which may change. No torch.

identity   the model's shape and the tokenizer        always equal, also with --finetune
order      seed, sample length, training data         equal unless --finetune or --override-data: they decide the
                                                      order of samples and which tokens are kept
schedule   method, batch, learning rate               equal, or all taken from the flags if the user says so
numbers    weight decay, dropout, precision, ...      may change, and are reported

Each flag states what it affects (``flags.Affects``). Other flags may differ without a report: a run is the same under
all parallel layouts. Settings are compared by id; ``words`` has their names in messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from megatron.ltd.checkpoint.differences import because, flag_changes, flags_that_keep, plain
from megatron.ltd.checkpoint.run_format import MODEL
from megatron.ltd.errors import UserError

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig
from megatron.ltd.words import name_of, value_of

_CLASSES = ("class_count", "class_names_fingerprint")
"""Settings of the order that the model depends on."""
Changes = Mapping[str, tuple[Any, Any]]
"""Flags that differ, see ``differences.flag_changes``: they are named with a setting that is made of them."""


def check_identity(
    checkpoint: Path, stored: Mapping[str, Any], identity: Mapping[str, Any], changes: Changes = MappingProxyType({})
) -> None:
    """Raise ``UserError`` for a checkpoint of another model or tokenizer, with the first difference and both values."""
    if stored.get(MODEL) != identity.get(MODEL):
        raise _differs(
            MODEL, checkpoint, stored, identity,
            "use another folder with --load, or the script that wrote this one",
        )  # fmt: skip
    check_equal(
        checkpoint,
        stored,
        identity,
        "use the checkpoint's value (--use-checkpoint-args takes them all), or start another run",
        changes,
    )


def check_order(
    checkpoint: Path, stored: Mapping[str, Any], order: Mapping[str, Any], changes: Changes = MappingProxyType({})
) -> None:
    """Raise ``UserError`` for other data or another seed, with the first difference and both values."""
    _check_kind(checkpoint, stored, order)
    check_equal(
        checkpoint,
        stored,
        order,
        "use the checkpoint's value, add --override-data to continue with other data, or --finetune to load its "
        "weights and start at step 0",
        changes,
    )


def replaced_order(
    checkpoint: Path, stored: Mapping[str, Any], order: Mapping[str, Any], changes: Changes = MappingProxyType({})
) -> str | None:
    """A line about the data of a run that continues with others (``--override-data``); None if they are the same.

    ``changes`` are flags of the order. Raises ``UserError`` for data that the checkpoint's model is not made for.
    """
    _check_kind(checkpoint, stored, order)
    classes = {setting: order[setting] for setting in _CLASSES if setting in order}
    check_equal(checkpoint, stored, classes, "use data with the same classes, or start another run")
    settings = {name: (value, stored[name]) for name, value in order.items() if stored[name] != value}
    if not settings:
        return None
    listed = ", ".join(_change(name, before, now) for name, (now, before) in {**changes, **settings}.items())
    return f"continues with other training data (--override-data), from their first sample on: {listed}"


def _check_kind(checkpoint: Path, stored: Mapping[str, Any], order: Mapping[str, Any]) -> None:
    """Raise ``UserError`` for a checkpoint of a workload that reads another kind of data."""
    if stored.keys() != order.keys():
        raise UserError(
            f"checkpoint {checkpoint} is from another kind of training and data: add --finetune to load its weights "
            "and start at step 0"
        )


def check_equal(
    checkpoint: Path,
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    fix: str,
    changes: Changes = MappingProxyType({}),
) -> None:
    """Raise ``UserError`` for the first setting of ``wanted`` that is missing or different in ``checkpoint``."""
    for setting, value in wanted.items():
        if stored.get(setting) != value:
            raise _differs(setting, checkpoint, stored, wanted, fix, changes)


def check_schedule(
    checkpoint: Path,
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    asked_by: str | None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    flags: Changes = MappingProxyType({}),
) -> str | None:
    """Keep the schedule that the run was started with, or take all of ``wanted`` if a flag says so.

    Both are ``RunClock.settings``; ``asked_by`` is that flag, or None. A setting that one of them lacks has no effect.
    ``settings`` are those of the checkpoint's run, and ``flags`` differ from them.

    Returns a line about all changes, or None. Raises ``UserError`` with the first difference and both values.
    """
    changes = [
        setting
        for setting in dict.fromkeys([*wanted, *stored])
        if plain(wanted.get(setting)) != plain(stored.get(setting))
    ]
    if not changes:
        return None
    if asked_by is None:
        keep = flags_that_keep(changes, stored, settings)
        raise _differs(
            changes[0], checkpoint, stored, wanted,
            f"{f'add {keep} to keep them' if keep else 'use the flags with which the run was started'}, or add "
            "--override-opt-param-scheduler to use method, batch and learning rate of these flags",
            flags,
        )  # fmt: skip
    listed = ", ".join(_change(setting, stored.get(setting), wanted.get(setting)) for setting in changes)
    return f"method, batch and learning rate follow these flags ({asked_by}): {listed}"


def check_lengths(
    checkpoint: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], flags: Changes = MappingProxyType({})
) -> str | None:
    """Keep the schedule of a run whose samples get another length, as ``check_schedule`` does without a flag.

    Lengths in steps, from the same flags as before, are measured in the new samples: the learning rate of a step stays
    what it was. Returns a line about them, or None. Raises ``UserError`` with the first difference and both values.
    """
    lengths = (
        [] if flags else [name for name in wanted if name.endswith("_length") and wanted[name] != stored.get(name)]
    )
    check_schedule(checkpoint, {**stored, **{name: wanted[name] for name in lengths}}, wanted, None, flags=flags)
    listed = ", ".join(_change(name, stored.get(name), wanted[name]) for name in lengths)
    return f"lengths in steps are measured in the new samples: {listed}" if lengths else None


def changed_settings(stored: Mapping[str, Any], config: RunConfig) -> str | None:
    """One line about all flags that affect the numbers and differ from those of the checkpoint's run, or None.

    A flag that an older checkpoint does not have is left out.
    """
    changes = [_change(name, before, now) for name, (now, before) in flag_changes(stored, config, ["numbers"]).items()]
    return f"continues with other flags than before: {', '.join(changes)}" if changes else None


def unused_scales(stored: Mapping[str, Any], config: RunConfig) -> str | None:
    """A line about scales of fp8 that the checkpoint has and ``config`` does not take; None if there are none."""
    before, now = stored.get("precision") or {}, config.precision
    if before.get("fp8_format") is None or before.get("fp8_recipe") != "delayed":
        return None
    if now.fp8_format is None:
        return f"the checkpoint's scales of fp8 are left out: products of layers are in {now.dtype} from here on"
    if now.fp8_recipe == "delayed" and now.fp8_amax_history_len == before.get("fp8_amax_history_len"):
        return None
    return "the checkpoint's scales of fp8 are left out: they are of another --fp8-recipe or --fp8-amax-history-len"


def _change(setting: str, before: Any, now: Any) -> str:
    return f"{name_of(setting)} {value_of(setting, now)} (was {value_of(setting, before)})"


def _differs(
    setting: str,
    checkpoint: Path,
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    fix: str,
    changes: Changes = MappingProxyType({}),
) -> UserError:
    here, there = (value_of(setting, settings.get(setting)) for settings in (wanted, stored))
    return UserError(
        f"{name_of(setting)} is {here} here and {there} in checkpoint {checkpoint}{because(setting, changes)}: {fix}"
    )

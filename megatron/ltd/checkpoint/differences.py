"""What a message says about a setting that differs from a checkpoint's: the flags behind it, and those that keep it.

    the decay on the clock is 1360 here and 976 in checkpoint X (--train-iters 8, then 6)         ``because``
    --ltd-growth-steps 160 --lr-decay-iters 240                                                   ``flags_that_keep``

Many settings are made of flags that were never typed: a decay of the length of the run, positions of the length of a
sample, a fingerprint of the split. ``compatibility`` decides what may differ. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from megatron.ltd.flags import flag_fields
from megatron.ltd.methods.base import METHOD

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig
from megatron.ltd.words import name_of, value_of

_LENGTHS = ("iters", "samples", "tokens")


def plain(value: Any) -> Any:
    """A value to compare: tuples are lists in JSON, and a flag that is not given may be missing."""
    if isinstance(value, (list, tuple)):
        return [*value] or None
    return None if value is False else value


def flag_changes(stored: Mapping[str, Any], config: RunConfig, affects: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """By field, now and before, the flags that affect this and differ from the ``stored`` settings of a run.

    A flag that an older checkpoint does not have is left out.
    """
    return {
        field.name: (getattr(flags, field.name), stored[part][field.name])
        for part, flags in config.parts.items()
        for field in flag_fields(flags)
        if field.metadata["affects"] in affects
        and field.name in (stored.get(part) or {})
        and plain(stored[part][field.name]) != plain(getattr(flags, field.name))
    }


def because(setting: str, changes: Mapping[str, tuple[Any, Any]]) -> str:
    """The flags behind a setting that differs, in brackets; nothing if it is itself one of ``changes``, or none is."""
    if setting in changes or not changes:
        return ""
    listed = (
        f"{name_of(name)} {value_of(name, now)}, then {value_of(name, before)}"
        for name, (now, before) in changes.items()
    )
    return f" ({'; '.join(listed)})"


def flags_that_keep(changed: Iterable[str], schedule: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    """The flags that give the ``changed`` settings their values in ``schedule``; None if no flags alone do.

    ``schedule`` is ``RunClock.settings`` of a run, and ``stored`` its settings.
    """
    found = []
    for setting in changed:
        value = plain(schedule.get(setting))
        if setting.endswith("_length"):
            keeps = _length(setting.removesuffix("_length"), value, schedule, stored)
        elif setting == METHOD or value is None or isinstance(value, (bool, list)):
            keeps = None
        else:
            keeps = f"{name_of(setting)} {value_of(setting, value)}"
        if keeps is None or not keeps.startswith("--"):
            return None
        found.append(keeps)
    return " ".join(found)


def _length(name: str, value: int, schedule: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    """The flag of a length of the learning rate, such as ``lr_decay``: as it was given, or from the run's length."""
    optimizer, training = (stored.get(part) or {} for part in ("optimizer", "training"))
    spelled = f"--{name.replace('_', '-')}"
    for unit in (*_LENGTHS, "fraction"):
        given = optimizer.get(f"{name}_{unit}")
        if given is not None:
            return f"{spelled}-{unit} {given}"
    for unit in ("iters", "samples"):
        if name == "lr_decay" and training.get(f"train_{unit}") is not None:
            return f"{spelled}-{unit} {training[f'train_{unit}']}"
    model = stored.get("model") or {}
    clock, layers, length = schedule.get("lr_clock"), model.get("num_layers"), model.get("seq_length")
    if name != "lr_decay" or not layers or not length:
        return None
    tokens, rest = {"layer-tokens": divmod(value, layers), "tokens": (value, 0), "samples": (value * length, 0)}.get(
        str(clock), (0, 1)
    )
    return None if rest else f"{spelled}-tokens {tokens}"

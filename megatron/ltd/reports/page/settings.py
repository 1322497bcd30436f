"""The flags of a finished run, from its log: those that differ from their default, and the others.

The log holds the settings as nested plain values. Their names tell the workload that they belong to, so that
logs of older versions can be read; a setting that this version does not have is shown under its own name.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from megatron.ltd.config import Entry, flag_classes
from megatron.ltd.flags import flag_fields, flag_name, shown
from megatron.ltd.flags.fields import as_typed
from megatron.ltd.workloads import WORKLOADS

_COMMANDS = {"gpt": "pretrain-gpt", "bert": "pretrain-bert", "bert_classifier": "finetune-bert", "vit": "finetune-vit"}
"""By id of the workload."""


@dataclass(frozen=True)
class Setting:
    """One flag of a run; ``affects`` is None, and there is no default, if this version does not have it."""

    flag: str
    value: Any = None
    default: Any = None
    affects: str | None = None

    @property
    def is_changed(self) -> bool:
        """Whether the value differs from the default of this version."""
        return self.affects is None or self.value != self.default

    @property
    def words(self) -> list[str]:
        """What to type for it, none if nothing has to be typed."""
        if self.affects is None or not self.is_changed or self.value is None:
            return []
        if isinstance(self.value, bool):
            is_off = as_typed(self.default, self.value) == "off"
            return [self.flag.replace("--", "--no-", 1) if is_off else self.flag]
        values = self.value if isinstance(self.value, list) else [self.value]
        return [self.flag, *map(str, values)]

    @property
    def row(self) -> list[str]:
        """The flag, its value, and its default if that is another."""
        default = "unknown to this version" if self.affects is None else self.spelled(self.default)
        return [self.flag, self.spelled(self.value), *([default] if self.is_changed else [])]

    def spelled(self, value: Any) -> str:
        """A value as it is typed; for a switch, whether it is given."""
        return shown(value if self.affects is None else as_typed(self.default, value))


def settings(config: Mapping[str, Any]) -> list[Setting]:
    """Every setting in the config of a run line, in the order of ``--help``."""
    known = _flags(_workload(config))
    return [replace(known.get(name, Setting(name)), value=value) for name, value in _values(config)]


def command(config: Mapping[str, Any]) -> str:
    """The command that starts a run with this config, a flag a line. Flags unknown to this version are not in it."""
    flags = [shlex.join(setting.words) for setting in settings(config) if setting.words]
    return " \\\n    ".join([f"megatron-ltd {_COMMANDS[_workload(config).id]}", *flags])


def _values(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    parts = [part for name, part in config.items() if name != "methods"] + [*config.get("methods", {}).values()]
    return [setting for part in parts if isinstance(part, Mapping) for setting in part.items()]


def _flags(workload: Entry) -> dict[str, Setting]:
    """The flags of a workload at their defaults as JSON has them, by field."""
    return {
        field.name: Setting(
            flag_name(config_class, field.name),
            default=[*field.default] if isinstance(field.default, tuple) else field.default,
            affects=field.metadata["affects"],
        )
        for config_class in flag_classes(workload)
        for field in flag_fields(config_class)
    }


def _workload(config: Mapping[str, Any]) -> Entry:
    """The workload whose flags match the names of these settings best."""
    names = {name for name, _ in _values(config)}
    return min(WORKLOADS.values(), key=lambda workload: len(_flags(workload).keys() ^ names))

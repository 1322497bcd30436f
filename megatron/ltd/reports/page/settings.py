"""The flags of a finished run, from its log: those that differ from their default, and the others.

The log holds the settings as nested plain values. Their names tell the workload that they belong to, so that
logs of older versions can be read; a setting that this version does not have is shown under its own name.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron.ltd.config import PARTS
from megatron.ltd.flags import Affects, flag_fields, flag_name, shown
from megatron.ltd.flags.fields import as_typed
from megatron.ltd.methods import METHODS
from megatron.ltd.workloads import WORKLOADS

_COMMANDS = {
    "gpt": "megatron-ltd pretrain-gpt",
    "bert": "megatron-ltd pretrain-bert",
    "bert_classifier": "megatron-ltd finetune-bert",
    "vit": "megatron-ltd finetune-vit",
}
"""By id of the workload."""


@dataclass(frozen=True)
class Setting:
    """One flag of a run."""

    flag: str
    value: Any
    default: Any
    affects: Affects | None
    """What it affects; None if this version does not have the flag."""

    @property
    def is_known(self) -> bool:
        """Whether this version has the flag."""
        return self.affects is not None

    @property
    def is_changed(self) -> bool:
        """Whether the value differs from the default of this version."""
        return not self.is_known or self.value != self.default

    def spelled(self, value: Any) -> str:
        """A value as it is typed; for a switch, whether it is given."""
        return shown(as_typed(self.default, value) if self.is_known else value)

    @property
    def words(self) -> list[str]:
        """What to type for it, none if nothing has to be typed."""
        if not (self.is_known and self.is_changed) or self.value is None:
            return []
        if isinstance(self.value, bool):
            is_off = as_typed(self.default, self.value) == "off"
            return [self.flag.replace("--", "--no-", 1) if is_off else self.flag]
        values = self.value if isinstance(self.value, list) else [self.value]
        return [self.flag, *map(str, values)]


def command(config: Mapping[str, Any]) -> str:
    """The command that starts a run with this config, a flag a line. Flags unknown to this version are not in it."""
    name = min(WORKLOADS, key=lambda name: _num_mismatches(WORKLOADS[name].parts, config))
    flags = [shlex.join(setting.words) for setting in settings(config) if setting.words]
    return " \\\n    ".join([_COMMANDS[name], *flags])


def settings(config: Mapping[str, Any]) -> list[Setting]:
    """Every setting in the config of a run line, in the order of ``--help``."""
    return list(_settings(config))


def _settings(config: Mapping[str, Any]) -> Iterator[Setting]:
    classes = {**_workload_parts(config), **PARTS}
    for part, values in config.items():
        if part == "methods":
            for name, method_values in values.items():
                entry = METHODS.get(name)
                yield from _of_part(entry.config_class if entry else None, method_values)
        elif isinstance(values, Mapping):
            yield from _of_part(classes.get(part), values)


def _of_part(config_class: type | None, values: Mapping[str, Any]) -> Iterator[Setting]:
    fields = {} if config_class is None else {field.name: field for field in flag_fields(config_class)}
    for name, value in values.items():
        field = fields.get(name)
        if config_class is None or field is None:
            yield Setting(name, value, None, None)
        else:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            yield Setting(flag_name(config_class, name), value, default, field.metadata["affects"])


def _workload_parts(config: Mapping[str, Any]) -> Mapping[str, type]:
    """The flag classes of the workload whose settings match these names best."""

    return min((entry.parts for entry in WORKLOADS.values()), key=lambda parts: _num_mismatches(parts, config))


def _num_mismatches(parts: Mapping[str, type], config: Mapping[str, Any]) -> int:
    """How many settings only one of both has."""
    return sum(
        len({field.name for field in dataclasses.fields(part_class)} ^ (config.get(part) or {}).keys())
        for part, part_class in parts.items()
    )

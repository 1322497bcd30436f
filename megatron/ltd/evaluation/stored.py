"""What a checkpoint's run.json says of its run, as the objects that the flags were. No torch.

The caller may name the tokenizer's files anew: the checkpoint holds the path that they had when the model was trained,
and the fingerprint that they must have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.config import TokenizerConfig, TokenizerFiles
from megatron.ltd.training import checkpoint_files
from megatron.ltd.training.resume import check_equal

Config = TypeVar("Config")


def stored_part(config_class: type[Config], stored: Mapping[str, Any], part: str) -> Config:
    """A part of the run's flags as the checkpoint holds them."""
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored["config"][part].items()
    }
    known = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(
            f"the checkpoint's {checkpoint_files.RUN} holds the {part} setting {unknown[0]}, which this version does "
            "not know: use the version that wrote it, or a newer one"
        )
    return config_class(**values)


def check_tokenizer(checkpoint: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse ids that mean something else than in training. The model's shape is the checkpoint's own: it is equal."""
    check_equal(checkpoint, stored, identity, "name the files of the tokenizer that the model was trained with")


def with_typed(stored: TokenizerConfig, typed: TokenizerFiles) -> TokenizerConfig:
    """``stored`` with the files that the user named instead."""
    named = {name: value for name, value in dataclasses.asdict(typed).items() if value is not None}
    return dataclasses.replace(stored, **named)

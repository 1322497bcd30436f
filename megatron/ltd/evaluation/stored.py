"""What a checkpoint's run.json says of its run, as the objects that the flags were. No torch.

The caller may name the tokenizer's files anew: the checkpoint holds the path that they had when the model was trained,
and the fingerprint that they must have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from megatron.ltd.checkpoint.compatibility import check_equal
from megatron.ltd.checkpoint.files import RUN
from megatron.ltd.flags import from_record
from megatron.ltd.tokenizers.config import TokenizerConfig, TokenizerFiles

Config = TypeVar("Config")


def stored_part(config_class: type[Config], stored: Mapping[str, Any], part: str) -> Config:
    """A part of the run's flags as the checkpoint holds them. Raises ``UserError`` where that is no such part."""
    return from_record(stored["config"].get(part) or {}, config_class, f"the checkpoint's {RUN}", part)


def check_tokenizer(checkpoint: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse ids that mean something else than in training. The model's shape is the checkpoint's own: it is equal."""
    check_equal(checkpoint, stored, identity, "name the files of the tokenizer that the model was trained with")


def with_typed(stored: TokenizerConfig, typed: TokenizerFiles) -> TokenizerConfig:
    """``stored`` with the files that the user named instead."""
    named = {name: value for name, value in dataclasses.asdict(typed).items() if value is not None}
    return dataclasses.replace(stored, **named)

"""The flags of a run from the run.json of its checkpoint. No torch.

The caller may give other paths of the tokenizer's files: the checkpoint stores the paths that they had in training, and
the fingerprint that they must have.
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
    """A part of the flags of the run. Raises ``UserError`` if the checkpoint holds something else."""
    return from_record(stored["config"].get(part) or {}, config_class, f"the checkpoint's {RUN}", part)


def check_tokenizer(checkpoint: Path, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse a tokenizer whose ids differ from those of training. The shape of the model is the checkpoint's own."""
    check_equal(checkpoint, stored, identity, "give the files of the tokenizer that the model was trained with")


def with_typed(stored: TokenizerConfig, typed: TokenizerFiles) -> TokenizerConfig:
    """``stored``, with the files that the user gave instead."""
    named = {name: value for name, value in dataclasses.asdict(typed).items() if value is not None}
    return dataclasses.replace(stored, **named)

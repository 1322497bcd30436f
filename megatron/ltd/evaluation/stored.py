"""A GPT as the run.json of its checkpoint describes it: its flags and its tokenizer.

The caller may give other paths of the tokenizer's files: the checkpoint stores the paths that they had in training, and
the fingerprint that they must have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron.ltd.checkpoint.compatibility import check_equal
from megatron.ltd.checkpoint.files import RUN, read_run_to_use
from megatron.ltd.checkpoint.run_format import MODEL
from megatron.ltd.errors import UserError
from megatron.ltd.flags import from_record
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerConfig, TokenizerFiles, model_vocab_size, unpadded_vocab_size
from megatron.ltd.words import value_of
from megatron.ltd.workloads import GPT
from megatron.ltd.workloads.gpt import weights_identity

Config = TypeVar("Config")


@dataclass(frozen=True)
class StoredModel:
    """The model of a checkpoint, and its tokenizer."""

    checkpoint: Path
    record: Mapping[str, Any]
    """The run.json."""
    model: ModelConfig
    files: TokenizerConfig
    tokenizer: Tokenizer
    padded_vocab_size: int
    """Rows of its embedding."""

    @classmethod
    def open(cls, load: Path, checkpoint: Path, typed: TokenizerFiles, use: str) -> StoredModel:
        """The model of ``checkpoint``, which is in ``load``; ``use`` is what needs it, for messages.

        Raises ``UserError`` for a model that is no GPT, and for a tokenizer that is missing.
        """
        record = read_run_to_use(checkpoint)
        kind = record["identity"].get(MODEL, GPT.id)
        if kind != GPT.id:
            raise UserError(
                f"--load {load}: is a {value_of(MODEL, kind)}, and {use} supports GPT models only; give the --save "
                "folder of a GPT run"
            )
        model = stored_part(ModelConfig, record, "model")
        files = with_typed(stored_part(TokenizerConfig, record, "tokenizer"), typed)
        tokenizer = _tokenizer(files, typed, checkpoint)
        parallel = stored_part(ParallelConfig, record, "parallel")  # the vocabulary was padded for its layout
        padded = model_vocab_size(files, tokenizer.vocab_size, parallel.tensor_model_parallel_size)
        return cls(checkpoint, record, model, files, tokenizer, padded)

    def check_tokenizer(self) -> None:
        """Refuse a tokenizer whose ids differ from those of training; the shape is the checkpoint's own."""
        identity = weights_identity(self.model, self.tokenizer, self.padded_vocab_size)
        fix = "give the files of the tokenizer that the model was trained with"
        check_equal(self.checkpoint, self.record["identity"], identity, fix)

    @property
    def vocab_size(self) -> int:
        """Ids of the model, without padding."""
        return unpadded_vocab_size(self.files, self.tokenizer.vocab_size)


def stored_part(config_class: type[Config], stored: Mapping[str, Any], part: str) -> Config:
    """A part of the flags of the run. Raises ``UserError`` if the checkpoint holds something else."""
    return from_record(stored["config"].get(part) or {}, config_class, f"the checkpoint's {RUN}", part)


def with_typed(stored: TokenizerConfig, typed: TokenizerFiles) -> TokenizerConfig:
    """``stored``, with the files that the user gave instead."""
    named = {name: value for name, value in dataclasses.asdict(typed).items() if value is not None}
    return dataclasses.replace(stored, **named)


def _tokenizer(config: TokenizerConfig, typed: TokenizerFiles, checkpoint: Path) -> Tokenizer:
    """The tokenizer of ``config``. An error tells if the paths are those of the checkpoint."""
    try:
        return build_tokenizer(config)
    except UserError as error:
        if typed != TokenizerFiles():
            raise
        raise UserError(
            f"the checkpoint {checkpoint} names files of its tokenizer that are not there: {error}"
        ) from None

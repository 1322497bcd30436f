"""Which Hugging Face models can be loaded, and what a folder says of its own as our settings. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.hugging_face import gpt2
from megatron.ltd.hugging_face.config_file import CONFIG, MERGES, VOCABULARY, ConfigFile, refuse_pickled
from megatron.ltd.models.config import ModelConfig


def read_config(folder: Path) -> ConfigFile:
    """The config.json of a model that can be loaded. Raises ``UserError`` for any other."""
    refuse_pickled(folder)
    file = ConfigFile.read(folder)
    if file.model_type != gpt2.MODEL_TYPE:
        raise UserError(
            f"--load {folder} holds a model of type {file.model_type} ({CONFIG}): of Hugging Face models only "
            f"{gpt2.MODEL_TYPE} can be loaded; name the folder of one"
        )
    return file


def described_flags(folder: Path) -> dict[str, dict[str, Any]]:
    """For ``--use-checkpoint-args``: the model's settings, and the tokenizer's where its files lie in the folder.

    By part and field name, as a checkpoint stores them. Raises ``UserError``.
    """
    tokenizer: dict[str, Any] = {}
    vocabulary, merges = folder / VOCABULARY, folder / MERGES
    if vocabulary.is_file() and merges.is_file():
        tokenizer = {
            "tokenizer_type": "GPT2BPETokenizer", "vocab_file": str(vocabulary), "merge_file": str(merges),
        }  # fmt: skip
    file = read_config(folder)
    described_model(file)  # what no model can have is the folder's mistake, not the command line's
    return {"model": gpt2.model_flags(file), "tokenizer": tokenizer}


def described_model(file: ConfigFile) -> ModelConfig:
    """The model of a config.json. Raises ``UserError`` where that describes none."""
    flags = gpt2.model_flags(file)
    try:
        return ModelConfig(**flags)
    except UserError as error:
        raise UserError(f"--load {file.folder}: {CONFIG} describes no model ({error}): take the folder anew") from None

"""The supported Hugging Face models, and the settings of a folder as our flags. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.hugging_face.architecture import Architecture
from megatron.ltd.hugging_face.config_file import (
    CONFIG,
    MERGES,
    SENTENCEPIECE,
    TOKENIZER,
    VOCABULARY,
    ConfigFile,
    refuse_pickled,
)
from megatron.ltd.hugging_face.gpt2 import GPT2
from megatron.ltd.hugging_face.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.small_files import bytes_of_files

_FEWEST_BYTES = 2
"""Smallest size of a stored value."""
_SMALL_BYTES, _MOST_BYTES, _MOST_LAYERS = 1 << 26, 1 << 44, 1 << 16
ARCHITECTURES: Mapping[str, Architecture] = {found.model_type: found for found in (GPT2, LLAMA, QWEN2, QWEN3, MISTRAL)}
"""By ``model_type``. The first that fits a model of ours is what it is exported as."""


def read_config(folder: Path) -> tuple[Architecture, ConfigFile]:
    """The architecture and the config.json of a model that can be loaded. Raises ``UserError`` for any other."""
    refuse_pickled(folder)
    file = ConfigFile.read(folder)
    architecture = ARCHITECTURES.get(file.model_type)
    if architecture is None:
        raise UserError(
            f"--load {folder}: is a model of type {file.model_type} ({CONFIG}); of Hugging Face models only "
            f"{', '.join(ARCHITECTURES)} are supported"
        )
    return architecture, file


def described_flags(folder: Path) -> dict[str, dict[str, Any]]:
    """For ``--use-checkpoint-args``: the settings of the model, and of the tokenizer if its files are in the folder.

    By part and field name, as a checkpoint stores them. Raises ``UserError``.
    """
    architecture, file = read_config(folder)
    described_model(architecture, file)  # an impossible model is an error of the folder, not of the command line
    return {"model": architecture.model_flags(file), "tokenizer": described_tokenizer(folder)}


def described_tokenizer(folder: Path) -> dict[str, Any]:
    """The settings of the tokenizer, by field name, if its files are in the folder under their usual names."""
    vocabulary, merges, model = folder / VOCABULARY, folder / MERGES, folder / SENTENCEPIECE
    if vocabulary.is_file() and merges.is_file():
        return {"tokenizer_type": "GPT2BPETokenizer", "vocab_file": str(vocabulary), "merge_file": str(merges)}
    if model.is_file():
        return {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": str(model)}
    if (folder / TOKENIZER).is_file():
        return {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(folder)}
    return {}


def described_model(architecture: Architecture, file: ConfigFile) -> ModelConfig:
    """The model of a config.json. Raises ``UserError`` if it is impossible, or larger than the weights."""
    flags = architecture.model_flags(file)
    try:
        model = ModelConfig(**flags)
    except UserError as error:
        raise UserError(
            f"--load {file.folder}: {CONFIG} is not a possible model ({error}); download the folder again"
        ) from None
    _check_size(model, file)
    return model


def _check_size(model: ModelConfig, file: ConfigFile) -> None:
    """Compare the largest matrices with the files, before the model is built.

    Small models and missing files pass, because reading them gives a better message.
    """
    if model.num_layers > _MOST_LAYERS:
        raise UserError(
            f"--load {file.folder}: the model of {CONFIG} has {model.num_layers:,} layers, more than the limit of "
            f"{_MOST_LAYERS:,}; download the folder again"
        )
    num_values = model.num_layers * 2 * model.hidden_size * model.mlp_size
    num_values += (file.size("vocab_size") + model.learned_positions) * model.hidden_size
    num_bytes = bytes_of_files(file.folder, "*.safetensors") or _MOST_BYTES
    if num_values * _FEWEST_BYTES > max(num_bytes, _SMALL_BYTES):
        raise UserError(
            f"--load {file.folder}: the model of {CONFIG} has at least {num_values:,} values, but its weights have "
            f"{num_bytes:,} bytes; use both files of one model"
        )


def architecture_of(model: ModelConfig) -> Architecture:
    """The architecture of our model. Raises ``UserError`` with the flags that do not fit any."""
    missed = {
        name: [need for need, is_met in found.needs(model).items() if not is_met]
        for name, found in ARCHITECTURES.items()
    }
    nearest = min(missed, key=lambda name: len(missed[name]))
    if not missed[nearest]:
        return ARCHITECTURES[nearest]
    nearest = min(missed.keys() - {GPT2.model_type}, key=lambda name: (len(missed[name]), list(missed).index(name)))
    shown = (GPT2.model_type, nearest)
    ways = "; ".join(f"{ARCHITECTURES[name].title} needs {', '.join(missed[name])}" for name in shown)
    raise UserError(
        f"Hugging Face has no class for a model with these flags ({ways}): only a model with the flags of one of them "
        "can be exported"
    )

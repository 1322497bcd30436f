"""Which Hugging Face models ours can be, and what a folder says of its own as our settings. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.hugging_face.architecture import Architecture
from megatron.ltd.hugging_face.config_file import CONFIG, MERGES, SENTENCEPIECE, VOCABULARY, ConfigFile, refuse_pickled
from megatron.ltd.hugging_face.gpt2 import GPT2
from megatron.ltd.hugging_face.llama import LLAMA
from megatron.ltd.models.config import ModelConfig

_FEWEST_BYTES = 2
"""That a value is stored in."""
_SMALL_BYTES, _MOST_BYTES, _MOST_LAYERS = 1 << 26, 1 << 44, 1 << 16
ARCHITECTURES: Mapping[str, Architecture] = {found.model_type: found for found in (GPT2, LLAMA)}


def read_config(folder: Path) -> tuple[Architecture, ConfigFile]:
    """The architecture and the config.json of a model that can be loaded. Raises ``UserError`` for any other."""
    refuse_pickled(folder)
    file = ConfigFile.read(folder)
    architecture = ARCHITECTURES.get(file.model_type)
    if architecture is None:
        raise UserError(
            f"--load {folder} holds a model of type {file.model_type} ({CONFIG}): of Hugging Face models only "
            f"{' and '.join(ARCHITECTURES)} can be loaded; name the folder of one"
        )
    return architecture, file


def described_flags(folder: Path) -> dict[str, dict[str, Any]]:
    """For ``--use-checkpoint-args``: the model's settings, and the tokenizer's where its files lie in the folder.

    By part and field name, as a checkpoint stores them. Raises ``UserError``.
    """
    architecture, file = read_config(folder)
    described_model(architecture, file)  # what no model can have is the folder's mistake, not the command line's
    return {"model": architecture.model_flags(file), "tokenizer": described_tokenizer(folder)}


def described_tokenizer(folder: Path) -> dict[str, Any]:
    """The tokenizer's settings, by field name, where its files lie in the folder as the programs that made it do."""
    vocabulary, merges, model = folder / VOCABULARY, folder / MERGES, folder / SENTENCEPIECE
    if vocabulary.is_file() and merges.is_file():
        return {"tokenizer_type": "GPT2BPETokenizer", "vocab_file": str(vocabulary), "merge_file": str(merges)}
    if model.is_file():
        return {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": str(model)}
    return {}


def described_model(architecture: Architecture, file: ConfigFile) -> ModelConfig:
    """The model of a config.json. Raises ``UserError`` if that describes none, or one larger than the weights."""
    flags = architecture.model_flags(file)
    try:
        model = ModelConfig(**flags)
    except UserError as error:
        raise UserError(f"--load {file.folder}: {CONFIG} describes no model ({error}): take the folder anew") from None
    _check_size(model, file)
    return model


def _check_size(model: ModelConfig, file: ConfigFile) -> None:
    """Compare the largest matrices with the files, before anything as large as the model is made.

    What is small is let through, as are files that are missing: reading them says more of what is wrong.
    """
    if model.num_layers > _MOST_LAYERS:
        raise UserError(
            f"--load {file.folder}: the model of {CONFIG} has {model.num_layers:,} layers, more than any model: take "
            "the folder anew"
        )
    num_values = model.num_layers * 2 * model.hidden_size * model.mlp_size
    num_values += (file.size("vocab_size") + model.learned_positions) * model.hidden_size
    num_bytes = sum(path.stat().st_size for path in file.folder.glob("*.safetensors")) or _MOST_BYTES
    if num_values * _FEWEST_BYTES > max(num_bytes, _SMALL_BYTES):
        raise UserError(
            f"--load {file.folder}: the model of {CONFIG} has {num_values:,} values and more, and its weights have "
            f"{num_bytes:,} bytes: take both files of one model"
        )


def architecture_of(model: ModelConfig) -> Architecture:
    """The architecture that a model of ours is. Raises ``UserError`` naming the flags that stand in the way.

    Of several architectures the one whose needs are missed least is taken for the one that was meant.
    """
    missed = {
        found.model_type: [need for need, is_met in found.needs(model).items() if not is_met]
        for found in ARCHITECTURES.values()
    }
    nearest = min(missed, key=lambda model_type: len(missed[model_type]))
    if not missed[nearest]:
        return ARCHITECTURES[nearest]
    ways = "; ".join(f"{ARCHITECTURES[name].title} needs {', '.join(needs)}" for name, needs in missed.items())
    raise UserError(
        f"Hugging Face has no class for a model of these flags ({ways}): train one with what either needs to export it"
    )

"""Converts a checkpoint to a folder that Hugging Face's libraries load.

    run.json -> flags -> architecture, tokenizer -> counterparts
    checkpoint -> tensor -> theirs -> model*.safetensors               one at a time
    config.json, generation_config.json, tokenizer, README.md          then the folder is renamed

Logits of the real ids are those of the checkpoint; rows that pad the vocabulary are left out, so that a softmax does
not include them. The folder appears when it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.checkpoint.files import place_of, run_folder
from megatron.ltd.checkpoint.load import find_checkpoint
from megatron.ltd.checkpoint.run_format import MODEL
from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.evaluation.stored import check_tokenizer, stored_part, with_typed
from megatron.ltd.export.checkpoint_tensors import CheckpointTensors
from megatron.ltd.export.config import ExportConfig, check_new
from megatron.ltd.export.model_card import model_card, read_steps
from megatron.ltd.hugging_face import tokenizer_files
from megatron.ltd.hugging_face.architecture import Architecture
from megatron.ltd.hugging_face.config_file import CONFIG
from megatron.ltd.hugging_face.model import architecture_of
from megatron.ltd.hugging_face.shards import WrittenWeights, write_weights
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.small_files import whole_folder
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerConfig, TokenizerFiles, model_vocab_size, unpadded_vocab_size
from megatron.ltd.words import value_of
from megatron.ltd.workloads import GPT
from megatron.ltd.workloads.gpt import weights_identity

_EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class _Source:
    """The model to export, as its checkpoint describes it."""

    checkpoint: Path
    record: Mapping[str, Any]
    model: ModelConfig
    architecture: Architecture
    files: TokenizerConfig
    tokenizer: Tokenizer
    vocab_size: int
    """Ids of the model, without padding."""

    @property
    def max_tokens(self) -> int:
        """The longest context."""
        return self.model.learned_positions or self.model.seq_length


@dataclass(frozen=True)
class Exported:
    """The folder that was written, and lines for the user about the checkpoint."""

    folder: Path
    title: str
    checkpoint: Path
    weights: WrittenWeights
    dtype: str
    notes: tuple[str, ...]

    def summary(self) -> str:
        """One line, after the notes."""
        files = f"{len(self.weights.files)} file{'s' if len(self.weights.files) > 1 else ''}"
        line = (
            f"{self.folder}: {self.title} of {self.weights.num_parameters:,} parameters in {self.dtype}, "
            f"{self.weights.num_bytes / 1e6:,.1f} MB of weights in {files}, from {self.checkpoint}"
        )
        return "\n".join([*self.notes, line])


def export_checkpoint(config: ExportConfig, typed: TokenizerFiles) -> Exported:
    """Write the newest complete checkpoint of ``--load`` to ``--output``. The files in ``typed`` replace stored paths.

    Raises ``UserError`` for a target that exists or cannot be written, a checkpoint that is not a GPT or that Hugging
    Face has no class for, and a tokenizer that is missing, different, or has no counterpart.
    """
    target, load = Path(config.output), Path(place_of(config.load, config.ckpt_step))
    check_new(f"--output {target}", target)
    checkpoint, notes = find_checkpoint(load, None)
    if checkpoint is None:
        raise UserError(f"--load {load}: has no checkpoint; use the --save folder of a run that has saved one")
    source = _describe(load, checkpoint, config, typed)
    history = read_steps(Path(config.log_dir or run_folder(load)), source.record["progress"]["iteration"])
    tensors = CheckpointTensors(checkpoint)
    dtype = tensors.dtype(_EMBEDDING) if config.dtype is None else getattr(torch, config.dtype)
    dtype_name = str(dtype).removeprefix("torch.")
    counterparts = source.architecture.counterparts(source.model, source.vocab_size)
    with writes_to(f"--output {target}"), whole_folder(target) as folder:
        read = {name: partial(tensors.read, name, counterpart.shape) for name, counterpart in counterparts.items()}
        written = write_weights(
            folder, source.architecture, counterparts, lambda name: read[name](), dtype, config.max_shard_bytes
        )
        _write_json(folder / CONFIG, _config(source, dtype_name))
        eod = source.tokenizer.eod
        _write_json(folder / "generation_config.json", {"bos_token_id": eod, "eos_token_id": eod})
        if config.tokenizer:
            tokenizer_files.write_tokenizer(folder, source.files, source.tokenizer, source.max_tokens)
        card = model_card(
            source.architecture, source.model, source.record, history,
            name=target.name, num_parameters=written.num_parameters, with_tokenizer=config.tokenizer,
        )  # fmt: skip
        (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
    return Exported(target, source.architecture.title, checkpoint, written, dtype_name, tuple(notes))


def _describe(load: Path, checkpoint: Path, config: ExportConfig, typed: TokenizerFiles) -> _Source:
    """Check everything before anything is written. Raises ``UserError``."""
    record = checkpoint_files.read_run_to_use(checkpoint)
    kind = record["identity"].get(MODEL, GPT.id)
    if kind != GPT.id:
        raise UserError(f"--load {load}: is a {value_of(MODEL, kind)}; export supports GPT models only")
    model = stored_part(ModelConfig, record, "model")
    try:
        architecture = architecture_of(model)
    except UserError as error:
        raise UserError(f"--load {load}: cannot be exported: {error}") from None
    files = with_typed(stored_part(TokenizerConfig, record, "tokenizer"), typed)
    tokenizer = build_tokenizer(files)
    parallel = stored_part(ParallelConfig, record, "parallel")
    padded = model_vocab_size(files, tokenizer.vocab_size, parallel.tensor_model_parallel_size)
    check_tokenizer(checkpoint, record["identity"], weights_identity(model, tokenizer, padded))
    if config.tokenizer:
        tokenizer_files.check_tokenizer(tokenizer)
    vocab_size = unpadded_vocab_size(files, tokenizer.vocab_size)
    return _Source(checkpoint, record, model, architecture, files, tokenizer, vocab_size)


def _config(source: _Source, dtype: str) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": [source.architecture.class_name],
        "model_type": source.architecture.model_type,
        **source.architecture.config_entries(source.model),
        "vocab_size": source.vocab_size,
        "bos_token_id": source.tokenizer.eod,  # a document follows the end of the previous one
        "eos_token_id": source.tokenizer.eod,
        "torch_dtype": dtype,  # the name in transformers 4, which 5 still reads
        "use_cache": True,
    }


def _write_json(path: Path, entries: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")

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

from megatron.ltd.checkpoint.files import place_of, run_folder
from megatron.ltd.checkpoint.load import find_checkpoint
from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.evaluation.stored import StoredModel
from megatron.ltd.export.checkpoint_tensors import CheckpointTensors
from megatron.ltd.export.config import ExportConfig, check_new
from megatron.ltd.export.model_card import model_card, read_steps
from megatron.ltd.hugging_face import tokenizer_files
from megatron.ltd.hugging_face.architecture import Architecture
from megatron.ltd.hugging_face.config_file import CONFIG
from megatron.ltd.hugging_face.model import architecture_of
from megatron.ltd.hugging_face.shards import WrittenWeights, write_weights
from megatron.ltd.small_files import whole_folder
from megatron.ltd.tokenizers.config import TokenizerFiles

_EMBEDDING = "embedding.word_embeddings.weight"


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
    source, architecture = _describe(load, checkpoint, config, typed)
    model = source.model
    history = read_steps(Path(config.log_dir or run_folder(load)), source.record["progress"]["iteration"])
    tensors = CheckpointTensors(checkpoint)
    dtype = tensors.dtype(_EMBEDDING) if config.dtype is None else getattr(torch, config.dtype)
    dtype_name = str(dtype).removeprefix("torch.")
    counterparts = architecture.counterparts(model, source.vocab_size)
    with writes_to(f"--output {target}"), whole_folder(target) as folder:
        read = {name: partial(tensors.read, name, counterpart.shape) for name, counterpart in counterparts.items()}
        written = write_weights(
            folder, architecture, counterparts, lambda name: read[name](), dtype, config.max_shard_bytes
        )
        _write_json(folder / CONFIG, _config(source, architecture, dtype_name))
        eod = source.tokenizer.eod
        _write_json(folder / "generation_config.json", {"bos_token_id": eod, "eos_token_id": eod})
        if config.tokenizer:
            max_tokens = model.learned_positions or model.seq_length
            tokenizer_files.write_tokenizer(folder, source.files, source.tokenizer, max_tokens)
        card = model_card(
            architecture, model, source.record, history,
            name=target.name, num_parameters=written.num_parameters, with_tokenizer=config.tokenizer,
        )  # fmt: skip
        (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
    return Exported(target, architecture.title, checkpoint, written, dtype_name, tuple(notes))


def _describe(
    load: Path, checkpoint: Path, config: ExportConfig, typed: TokenizerFiles
) -> tuple[StoredModel, Architecture]:
    """Check everything before anything is written. Raises ``UserError``."""
    source = StoredModel.open(load, checkpoint, typed, "export")
    try:
        architecture = architecture_of(source.model)
    except UserError as error:
        raise UserError(f"--load {load}: cannot be exported: {error}") from None
    source.check_tokenizer()
    if config.tokenizer:
        tokenizer_files.check_tokenizer(source.tokenizer)
    return source, architecture


def _config(source: StoredModel, architecture: Architecture, dtype: str) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        **architecture.config_entries(source.model),
        "vocab_size": source.vocab_size,
        "bos_token_id": source.tokenizer.eod,  # a document follows the end of the previous one
        "eos_token_id": source.tokenizer.eod,
        "torch_dtype": dtype,  # the name in transformers 4, which 5 still reads
        "use_cache": True,
    }


def _write_json(path: Path, entries: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")

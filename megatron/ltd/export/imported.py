"""Writes a model that another program made as a checkpoint of iteration 0 with weights only, which any layout loads.

The checkpoint can be used with ``--load --finetune``, in evaluation and in export. Without ``--finetune`` there is no
run to continue.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.checkpoint.load import Progress
from megatron.ltd.checkpoint.run_format import MODEL
from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.export.torch_dist import write_weights
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.execution_config import PrecisionConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.config import TokenizerConfig
from megatron.ltd.workloads import GPT
from megatron.ltd.workloads.gpt import weights_identity


@dataclass(frozen=True)
class Imported:
    """The checkpoint that was written."""

    checkpoint: Path
    title: str
    num_parameters: int
    dtype: str
    vocab_size: int
    padded_vocab_size: int

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.checkpoint}: {self.title} of {self.num_parameters:,} parameters in {self.dtype}, vocabulary "
            f"{self.vocab_size} padded to {self.padded_vocab_size}"
        )


def check_ids(source: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise ``UserError`` for a tokenizer with more ids than a model with ``vocab_size`` rows in its embedding."""
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"--load {source}: the tokenizer has {tokenizer.vocab_size} ids, but the model has {vocab_size}; give the "
            "files of the model's own tokenizer"
        )


def write_imported(
    save: Path,
    model: ModelConfig,
    tokenizer: tuple[Tokenizer, TokenizerConfig],
    dtype: str,
    padded_vocab_size: int,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
) -> Path:
    """Write the tensors of ``shapes``, by their names with the number of the layer, and the settings of the model.

    ``read`` returns one of them, and is called once for each. Returns the checkpoint. Raises ``UserError``.
    """
    record = _record(model, *tokenizer, dtype, padded_vocab_size)
    with writes_to(f"--save {save}"):
        partial = checkpoint_files.start_partial(save, 0)
        try:
            common = {"checkpoint_version": 3.0, "iteration": 0}
            write_weights(partial, shapes, getattr(torch, dtype), model.num_layers, read, common)
            checkpoint_files.write_run(partial, record)
            names = checkpoint_files.file_names(partial)
            checkpoint_files.write_manifest(partial, checkpoint_files.written_checksums(partial, names))
            return checkpoint_files.publish(partial, 0)
        except BaseException:  # what stays would be in the way of the next try
            shutil.rmtree(checkpoint_files.checkpoint_path(save, 0), ignore_errors=True)
            for tracker in save.glob(f"{checkpoint_files.TRACKER}*"):
                tracker.unlink(missing_ok=True)
            raise
        finally:
            checkpoint_files.remove_partial(partial)


def _record(
    model: ModelConfig, tokenizer: Tokenizer, files: TokenizerConfig, dtype: str, padded: int
) -> dict[str, Any]:
    """The run.json of a run at iteration 0, without order and schedule."""
    precision = PrecisionConfig(bf16=dtype == "bfloat16", fp16=dtype == "float16")
    parts: dict[str, Any] = {"model": model, "tokenizer": files, "precision": precision, "parallel": ParallelConfig()}
    return {
        "progress": dataclasses.asdict(Progress()),
        "schedule": {},
        "identity": {MODEL: GPT.id, **weights_identity(model, tokenizer, padded)},
        "order": {},
        "config": {name: dataclasses.asdict(part) for name, part in parts.items()},
        "learned": False,
    }

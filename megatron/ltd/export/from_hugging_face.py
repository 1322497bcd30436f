"""Converts a Hugging Face folder to a checkpoint of iteration 0 with weights only, which any layout loads.

    config.json, tokenizer -> flags, identity -> run.json
    model*.safetensors -> tensor -> ours, padded -> torch_dist          one at a time

The checkpoint can be used with ``--load --finetune``, in evaluation and in export. Without ``--finetune`` there is no
run to continue.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.checkpoint.load import Progress
from megatron.ltd.checkpoint.run_format import MODEL
from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.stored import with_typed
from megatron.ltd.export.config import ImportConfig, check_free
from megatron.ltd.export.torch_dist import write_weights
from megatron.ltd.hugging_face.config_file import is_hugging_face
from megatron.ltd.hugging_face.model import described_tokenizer
from megatron.ltd.hugging_face.weights import ImportedModel
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.execution_config import PrecisionConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerConfig, TokenizerFiles, padded_vocab_size
from megatron.ltd.workloads import GPT
from megatron.ltd.workloads.gpt import weights_identity

_DTYPES = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


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


def import_model(config: ImportConfig, typed: TokenizerFiles) -> Imported:
    """Write the model in ``--load`` as the checkpoint of iteration 0 in ``--save``.

    The files in ``typed`` replace those of the tokenizer in the folder. Raises ``UserError`` for a folder that is not a
    supported and complete model, a tokenizer that is missing or has more ids than the model, and a target that is not
    empty.
    """
    load, save = Path(str(config.load)), Path(str(config.save))
    check_free(f"--save {save}", save)
    if not is_hugging_face(load):
        raise UserError(f"--load {load}: is not a Hugging Face model; use a folder with config.json and safetensors")
    imported = ImportedModel.open(load)
    tokenizer, files = _tokenizer(imported, config, typed)
    dtypes = {_DTYPES[found] for found in imported.dtypes}
    dtype = config.dtype or (dtypes.pop() if len(dtypes) == 1 else "float32")
    padded = padded_vocab_size(imported.vocab_size, config.make_vocab_size_divisible_by, 1)
    shapes = {
        name: (padded, *counterpart.shape[1:]) if counterpart.is_vocabulary else counterpart.shape
        for name, counterpart in imported.counterparts.items()
    }
    record = _record(imported.model, files, tokenizer, dtype, padded)
    try:
        partial = checkpoint_files.start_partial(save, 0)
        try:
            write_weights(
                partial, shapes, getattr(torch, dtype), imported.model.num_layers,
                lambda name: imported.read(name, padded), {"checkpoint_version": 3.0, "iteration": 0},
            )  # fmt: skip
            checkpoint_files.write_run(partial, record)
            names = checkpoint_files.file_names(partial)
            checkpoint_files.write_manifest(partial, checkpoint_files.written_checksums(partial, names))
            checkpoint = checkpoint_files.publish(partial, 0)
        finally:
            checkpoint_files.remove_partial(partial)
    except OSError as error:
        raise UserError(
            f"--save {save}: cannot be written ({error.strerror}); free disk space, or use another folder"
        ) from None
    num_parameters = sum(torch.Size(found.shape).numel() for found in imported.counterparts.values())
    return Imported(checkpoint, imported.architecture.title, num_parameters, dtype, imported.vocab_size, padded)


def _tokenizer(
    imported: ImportedModel, config: ImportConfig, typed: TokenizerFiles
) -> tuple[Tokenizer, TokenizerConfig]:
    """The tokenizer of the model, from its folder or from ``typed``, and its settings. Raises ``UserError``."""
    described = described_tokenizer(imported.folder) if typed.tokenizer_type is None else {}
    if not described and typed.tokenizer_type is None:
        raise UserError(
            f"--load {imported.folder}: has no vocab.json and merges.txt, and no tokenizer.model (tokenizer.json is "
            "not read); give the tokenizer of the model with --tokenizer-type and its files"
        )
    files = with_typed(TokenizerConfig(**described), typed)
    tokenizer = build_tokenizer(files)
    if tokenizer.vocab_size > imported.vocab_size:
        raise UserError(
            f"--load {imported.folder}: the tokenizer has {tokenizer.vocab_size} ids, but the model has "
            f"{imported.vocab_size}; give the files of the model's own tokenizer"
        )
    return tokenizer, dataclasses.replace(
        files,
        vocab_size=imported.vocab_size if imported.vocab_size > tokenizer.vocab_size else None,
        make_vocab_size_divisible_by=config.make_vocab_size_divisible_by,
    )


def _record(
    model: ModelConfig, files: TokenizerConfig, tokenizer: Tokenizer, dtype: str, padded: int
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

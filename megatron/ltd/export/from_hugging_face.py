"""Converts a Hugging Face folder to a checkpoint (``imported``).

config.json, tokenizer -> flags, identity -> run.json
model*.safetensors -> tensor -> ours, padded -> torch_dist          one at a time
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.stored import with_typed
from megatron.ltd.export.config import ImportConfig, check_free
from megatron.ltd.export.imported import Imported, check_ids, write_imported
from megatron.ltd.hugging_face.config_file import is_hugging_face
from megatron.ltd.hugging_face.model import described_tokenizer
from megatron.ltd.hugging_face.weights import ImportedModel
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerConfig, TokenizerFiles, padded_vocab_size

_DTYPES = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def import_model(config: ImportConfig, typed: TokenizerFiles) -> Imported:
    """Write the model in ``--load`` as the checkpoint of iteration 0 in ``--save``.

    The files in ``typed`` replace those of the tokenizer in the folder. Raises ``UserError`` for a folder that is not a
    supported and complete model, a tokenizer that is missing or has more ids than the model, and a target that is not
    empty.
    """
    load, save = Path(config.load), Path(config.save)
    check_free(f"--save {save}", save)
    if not is_hugging_face(load):
        raise UserError(
            f"--load {load}: is neither a Hugging Face model nor a checkpoint of Megatron-LM in the format torch_dist; "
            "use a folder with config.json and safetensors, or with iter_* of Megatron-LM's --save"
        )
    imported = ImportedModel.open(load)
    tokenizer = _tokenizer(imported, config, typed)
    dtypes = {_DTYPES[found] for found in imported.dtypes}
    dtype = config.dtype or (dtypes.pop() if len(dtypes) == 1 else "float32")
    padded = padded_vocab_size(imported.vocab_size, config.make_vocab_size_divisible_by, 1)
    shapes = {
        name: (padded, *counterpart.shape[1:]) if counterpart.is_vocabulary else counterpart.shape
        for name, counterpart in imported.counterparts.items()
    }
    checkpoint = write_imported(
        save, imported.model, tokenizer, dtype, padded, shapes, lambda name: imported.read(name, padded)
    )
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
    check_ids(imported.folder, tokenizer, imported.vocab_size)
    return tokenizer, dataclasses.replace(
        files,
        vocab_size=imported.vocab_size if imported.vocab_size > tokenizer.vocab_size else None,
        make_vocab_size_divisible_by=config.make_vocab_size_divisible_by,
    )

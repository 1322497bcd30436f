"""Converts a checkpoint of Megatron-LM to one of this program (``imported``), for evaluation and export.

    args in common.pt -> flags, identity -> run.json
    .metadata, *.distcp -> tensor, as it is -> torch_dist               one at a time

``checkpoint.from_megatron_lm`` says which models these are, and what of the files is read.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron.ltd.checkpoint.from_megatron_lm import MegatronLM
from megatron.ltd.checkpoint.read import check_parts, described_weights, refusal
from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.stored import with_typed
from megatron.ltd.export.checkpoint_tensors import CheckpointTensors
from megatron.ltd.export.config import DTYPES, ImportConfig
from megatron.ltd.export.imported import Imported, check_ids, write_imported
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerConfig, TokenizerFiles, padded_vocab_size
from megatron.ltd.workloads.sizes import gpt_sizes

_LAYERS = "decoder.layers."


def import_megatron_lm(checkpoint: Path, config: ImportConfig, typed: TokenizerFiles) -> Imported:
    """Write the model of ``checkpoint`` as the checkpoint of iteration 0 in ``--save``, with its own padding.

    Raises ``UserError`` for a model that is not one of ours, and a tokenizer that is missing or has more ids.
    """
    source = MegatronLM.open(checkpoint)
    model, rows = source.model(), source.vocab_size
    tokenizer = _tokenizer(source, typed)
    metadata = described_weights(checkpoint)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes = set()
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata), name
        dtypes.add(str(entry.properties.dtype).removeprefix("torch."))
        if name.startswith(_LAYERS):
            inner = name.removeprefix(_LAYERS)
            shapes |= {f"{_LAYERS}{layer}.{inner}": tuple(entry.size[1:]) for layer in range(model.num_layers)}
        else:
            shapes[name] = tuple(entry.size)
    num_parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    expected = gpt_sizes(model, rows).num_parameters
    if num_parameters != expected:
        what = f"its tensors have {num_parameters:,} weights, and the model of its args {expected:,}"
        raise refusal(checkpoint, what, "use a checkpoint of a model that this program has")
    dtype = config.dtype or (dtypes.pop() if len(dtypes) == 1 else "float32")
    if dtype not in DTYPES:
        raise refusal(checkpoint, f"its weights are stored as {dtype}", f"give --dtype, one of {', '.join(DTYPES)}")
    check_parts(checkpoint, metadata)
    tensors = CheckpointTensors(checkpoint, metadata)
    save = Path(config.save)
    written = write_imported(save, model, tokenizer, dtype, rows, shapes, lambda name: tensors.read(name, shapes[name]))
    return Imported(written, "GPT of Megatron-LM", num_parameters, dtype, tokenizer[0].vocab_size, rows)


def _tokenizer(source: MegatronLM, typed: TokenizerFiles) -> tuple[Tokenizer, TokenizerConfig]:
    """The tokenizer that ``typed`` or the flags of the run name, and settings that give the rows of the embedding."""
    stored = source.tokenizer_flags()
    if typed.tokenizer_type is None and "tokenizer_type" not in stored:
        raise UserError(
            f"--load {source.checkpoint}: its tokenizer, {source.args.get('tokenizer_type')}, is not one of this "
            "program; give the model's with --tokenizer-type and its files"
        )
    divisor = stored.pop("make_vocab_size_divisible_by")
    files = with_typed(TokenizerConfig(**({} if typed.tokenizer_type else stored)), typed)
    tokenizer, rows = build_tokenizer(files), source.vocab_size
    check_ids(source.checkpoint, tokenizer, rows)
    is_padded = padded_vocab_size(tokenizer.vocab_size, divisor, 1) == rows
    return tokenizer, dataclasses.replace(
        files, vocab_size=None if is_padded else rows, make_vocab_size_divisible_by=divisor if is_padded else 1
    )

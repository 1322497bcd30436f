"""Loads a trained model for evaluation: weights only, no optimizer and no data.

    run.json -> flags of the model and the tokenizer -> build -> weights

The checkpoint describes the model. The caller may give other paths of the tokenizer's files: the checkpoint stores the
paths that they had in training, and the fingerprint that they must have. A Hugging Face folder can be loaded instead of
a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron.core.models.gpt import GPTModel

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.checkpoint.load import Progress, find_checkpoint, load_weights
from megatron.ltd.checkpoint.run_format import MODEL
from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.causal_lm import CausalLM
from megatron.ltd.evaluation.stored import check_tokenizer, stored_part, with_typed
from megatron.ltd.hugging_face.config_file import is_hugging_face
from megatron.ltd.hugging_face.model import described_flags
from megatron.ltd.hugging_face.weights import ImportedModel
from megatron.ltd.layers import route
from megatron.ltd.models.config import LOSS_FUSION, ModelConfig
from megatron.ltd.models.execution_config import KernelsConfig, PrecisionConfig, RecomputeConfig
from megatron.ltd.models.gpt import build_chunks
from megatron.ltd.models.transformer import transformer_config
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.layout import check_model
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import (
    TokenizerConfig,
    TokenizerFiles,
    model_vocab_size,
    padded_vocab_size,
    unpadded_vocab_size,
)
from megatron.ltd.words import value_of
from megatron.ltd.workloads import GPT
from megatron.ltd.workloads.gpt import weights_identity


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on the mesh's device, which keeps every token, with its tokenizer and its history."""

    model: GPTModel
    tokenizer: Tokenizer
    config: ModelConfig
    checkpoint: Path
    iteration: int
    notes: tuple[str, ...]
    """One line for each damaged checkpoint that was skipped."""
    causal_lm: CausalLM
    """The model for evaluation."""
    consumed_tokens: int = 0
    """Tokens that it was trained on; 0 if the folder does not record them."""
    consumed_layer_tokens: int = 0


def load_model(folder: Path, tokenizer_files: TokenizerFiles, parallel: ParallelConfig, mesh: Mesh) -> LoadedModel:
    """The model of the newest complete checkpoint in ``folder``, or of a Hugging Face folder. Every rank calls this.

    It is sharded for ``parallel``, whatever layout trained it. Paths in ``tokenizer_files`` replace those of the
    checkpoint. Raises ``UserError`` if the folder holds no checkpoint, the tokenizer is not the one that the model was
    trained with, or the layout does not fit the model.
    """
    if is_hugging_face(folder):
        return _load_imported(folder, tokenizer_files, parallel, mesh)
    checkpoint, notes = find_checkpoint(folder, mesh)
    if checkpoint is None:
        raise UserError(f"--load {folder}: holds no checkpoint; give the --save folder of a run that has saved one")
    stored = checkpoint_files.read_run_to_use(checkpoint)
    kind = stored["identity"].get(MODEL, GPT.id)
    if kind != GPT.id:
        raise UserError(
            f"--load {folder}: is a {value_of(MODEL, kind)}, and evaluation supports GPT models only; give the --save "
            "folder of a GPT run"
        )
    model_config = stored_part(ModelConfig, stored, "model")
    tokenizer_config = with_typed(stored_part(TokenizerConfig, stored, "tokenizer"), tokenizer_files)
    tokenizer = _tokenizer(tokenizer_config, tokenizer_files, checkpoint)
    trained_on = stored_part(ParallelConfig, stored, "parallel")  # the padding of the vocabulary depends on its layout
    vocab_size = model_vocab_size(tokenizer_config, tokenizer.vocab_size, trained_on.tensor_model_parallel_size)
    check_tokenizer(checkpoint, stored["identity"], weights_identity(model_config, tokenizer, vocab_size))

    model = _build(model_config, vocab_size, parallel, stored_part(PrecisionConfig, stored, "precision"), mesh)
    load_weights(checkpoint, model)
    progress = Progress.read(stored["progress"], model_config.seq_length)
    return LoadedModel(
        model,
        tokenizer,
        model_config,
        checkpoint,
        progress.iteration,
        tuple(notes),
        CausalLM(
            model,
            model_config,
            unpadded_vocab_size(tokenizer_config, tokenizer.vocab_size),
            mesh,
            num_text_ids=tokenizer.vocab_size,
        ),
        progress.consumed_tokens,
        progress.consumed_layer_tokens,
    )


def _load_imported(folder: Path, tokenizer_files: TokenizerFiles, parallel: ParallelConfig, mesh: Mesh) -> LoadedModel:
    """A Hugging Face model, in its stored type, with the tokenizer of its folder or that of the flags."""
    imported = ImportedModel.open(folder)
    described = TokenizerConfig(**described_flags(folder)["tokenizer"])
    tokenizer = build_tokenizer(with_typed(described, tokenizer_files))
    if tokenizer.vocab_size > imported.vocab_size:
        raise UserError(
            f"--load {folder}: the model has {imported.vocab_size} token ids and the tokenizer {tokenizer.vocab_size}; "
            "give the files of the model's own tokenizer"
        )
    dtypes = {tensor.dtype for tensor in imported.stored.values()}
    precision = PrecisionConfig(bf16=dtypes == {"BF16"}, fp16=dtypes == {"F16"})
    model = _build(imported.model, imported.vocab_size, parallel, precision, mesh)
    imported.copy_into([model])
    causal_lm = CausalLM(model, imported.model, imported.vocab_size, mesh, num_text_ids=tokenizer.vocab_size)
    return LoadedModel(model, tokenizer, imported.model, folder, 0, (), causal_lm)


def _build(
    model: ModelConfig, vocab_size: int, parallel: ParallelConfig, precision: PrecisionConfig, mesh: Mesh
) -> GPTModel:
    """The shard of this process, with weights to be loaded. The vocabulary is padded further for the layout."""
    check_model(parallel, model)
    impl = "local" if model.transformer_impl == "local" else "auto"  # a run on GPUs may be evaluated on a CPU
    kernels = KernelsConfig(transformer_impl=impl, attention_backend="local")  # our attention module has a cache
    changes: dict[str, Any] = {name: getattr(ModelConfig, name) for name in LOSS_FUSION} | vars(kernels)
    model = replace(model, **changes)
    precision = precision.without_fp8()  # texts have any number of tokens
    core_config = transformer_config(model, parallel, precision, RecomputeConfig(), mesh)
    route.install()
    vocab_size = padded_vocab_size(vocab_size, 1, parallel.tensor_model_parallel_size)
    (built,) = build_chunks(model, core_config, vocab_size, mesh, seed=0)
    return built.to(core_config.params_dtype).eval()


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

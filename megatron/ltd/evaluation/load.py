"""Loads a trained model for evaluation: weights only, no optimizer and no data.

    run.json -> flags of the model and the tokenizer -> build -> weights

The checkpoint describes the model (``stored``). A Hugging Face folder can be loaded instead of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron.core.models.gpt import GPTModel

from megatron.ltd.checkpoint.load import Progress, find_checkpoint, load_weights
from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.causal_lm import CausalLM
from megatron.ltd.evaluation.stored import StoredModel, stored_part, with_typed
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
from megatron.ltd.tokenizers.config import TokenizerConfig, TokenizerFiles, padded_vocab_size


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
    stored = StoredModel.open(folder, checkpoint, tokenizer_files, "evaluation")
    stored.check_tokenizer()
    config, tokenizer = stored.model, stored.tokenizer
    precision = stored_part(PrecisionConfig, stored.record, "precision")
    model = _build(config, stored.padded_vocab_size, parallel, precision, mesh)
    load_weights(checkpoint, model)
    progress = Progress.read(stored.record["progress"], config.seq_length)
    return LoadedModel(
        model,
        tokenizer,
        config,
        checkpoint,
        progress.iteration,
        tuple(notes),
        CausalLM(model, config, stored.vocab_size, mesh, num_text_ids=tokenizer.vocab_size),
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
    precision = PrecisionConfig(bf16=imported.dtypes == {"BF16"}, fp16=imported.dtypes == {"F16"})
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

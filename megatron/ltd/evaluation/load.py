"""A trained model out of its checkpoint, ready to be asked: weights only, no optimizer, no data.

    run.json -> flags of the model and the tokenizer -> build -> weights

The checkpoint says what the model is. The caller may name the tokenizer's files anew: the checkpoint holds the path
that they had when the model was trained, and the fingerprint that they must have. A folder as Hugging Face writes it
can take a checkpoint's place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron.core.models.gpt import GPTModel

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.checkpoint.load import find_checkpoint, load_weights
from megatron.ltd.checkpoint.run_format import MODEL
from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.causal_lm import CausalLM
from megatron.ltd.evaluation.stored import check_tokenizer, stored_part, with_typed
from megatron.ltd.hugging_face.config_file import is_hugging_face
from megatron.ltd.hugging_face.model import described_flags
from megatron.ltd.hugging_face.weights import ImportedModel
from megatron.ltd.layers import route
from megatron.ltd.models.config import ModelConfig, PrecisionConfig, RecomputeConfig
from megatron.ltd.models.gpt import build_chunks
from megatron.ltd.models.transformer import transformer_config
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.layout import check_model
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.tasks import GPT
from megatron.ltd.tasks.gpt import weights_identity
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


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on the mesh's device, every token kept, and what belongs to it."""

    model: GPTModel
    tokenizer: Tokenizer
    config: ModelConfig
    checkpoint: Path
    iteration: int
    notes: tuple[str, ...]
    """A line about each damaged checkpoint that was passed over."""
    causal_lm: CausalLM
    """The model as evaluation asks it."""
    consumed_tokens: int = 0
    """That it was trained on; 0 where its folder does not say."""
    consumed_layer_tokens: int = 0


def load_model(folder: Path, tokenizer_files: TokenizerFiles, parallel: ParallelConfig, mesh: Mesh) -> LoadedModel:
    """The model of the newest whole checkpoint in ``folder``, or of a Hugging Face folder. Every rank calls this.

    It is cut for ``parallel``, whatever layout trained it. What ``tokenizer_files`` names takes the place of the
    checkpoint's own paths. Raises ``UserError`` where the folder holds no checkpoint, the tokenizer is not the one that
    the model was trained with, or the layout cannot hold the model.
    """
    if is_hugging_face(folder):
        return _load_imported(folder, tokenizer_files, parallel, mesh)
    checkpoint, notes = find_checkpoint(folder, mesh)
    if checkpoint is None:
        raise UserError(f"--load {folder} holds no checkpoint: name the --save folder of a run that has saved one")
    stored = checkpoint_files.read_run_to_use(checkpoint)
    kind = stored["identity"].get(MODEL, GPT.id)
    if kind != GPT.id:
        raise UserError(
            f"--load {folder} holds a {value_of(MODEL, kind)}, and only a GPT speaks: name the --save folder of a "
            "GPT's run"
        )
    model_config = stored_part(ModelConfig, stored, "model")
    tokenizer_config = with_typed(stored_part(TokenizerConfig, stored, "tokenizer"), tokenizer_files)
    tokenizer = _tokenizer(tokenizer_config, tokenizer_files, checkpoint)
    trained_on = stored_part(ParallelConfig, stored, "parallel")  # its layout decided how far the vocabulary is padded
    vocab_size = model_vocab_size(tokenizer_config, tokenizer.vocab_size, trained_on.tensor_model_parallel_size)
    check_tokenizer(checkpoint, stored["identity"], weights_identity(model_config, tokenizer, vocab_size))

    model = _build(model_config, vocab_size, parallel, stored_part(PrecisionConfig, stored, "precision"), mesh)
    load_weights(checkpoint, model)
    progress = stored["progress"]
    return LoadedModel(
        model,
        tokenizer,
        model_config,
        checkpoint,
        progress["iteration"],
        tuple(notes),
        CausalLM(
            model,
            model_config,
            unpadded_vocab_size(tokenizer_config, tokenizer.vocab_size),
            mesh,
            num_text_ids=tokenizer.vocab_size,
        ),
        progress["consumed_samples"] * model_config.seq_length,
        progress["consumed_layer_tokens"],
    )


def _load_imported(folder: Path, tokenizer_files: TokenizerFiles, parallel: ParallelConfig, mesh: Mesh) -> LoadedModel:
    """A Hugging Face model, in the type that it is stored in; its tokenizer's files lie there, or are typed."""
    imported = ImportedModel.open(folder)
    described = TokenizerConfig(**described_flags(folder)["tokenizer"])
    tokenizer = build_tokenizer(with_typed(described, tokenizer_files))
    if tokenizer.vocab_size > imported.vocab_size:
        raise UserError(
            f"the tokenizer makes {tokenizer.vocab_size} ids and the model in --load {folder} knows "
            f"{imported.vocab_size}: name the files of the model's own tokenizer"
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
    """This process's share of the model, with weights to be loaded. The vocabulary is padded on for the layout."""
    check_model(parallel, model)
    core_config = transformer_config(model, parallel, precision, RecomputeConfig(), mesh)
    route.install()
    vocab_size = padded_vocab_size(vocab_size, 1, parallel.tensor_model_parallel_size)
    # explicit_mask: our attention module, which knows caches, under Transformer Engine too
    (built,) = build_chunks(model, core_config, vocab_size, mesh, seed=0, explicit_mask=True)
    return built.to(core_config.params_dtype).eval()


def _tokenizer(config: TokenizerConfig, typed: TokenizerFiles, checkpoint: Path) -> Tokenizer:
    """The tokenizer of ``config``; a complaint says so where the paths are those of the training."""
    try:
        return build_tokenizer(config)
    except UserError as error:
        if typed != TokenizerFiles():
            raise
        raise UserError(f"the tokenizer's files are not where checkpoint {checkpoint} had them: {error}") from None

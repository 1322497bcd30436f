"""Pretraining and finetuning a GPT: packed documents, the next token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.ltd.accounting import ModelShape, num_parameters
from megatron.ltd.config import RunConfig
from megatron.ltd.data.batch import Batch, build_batch
from megatron.ltd.data.config import IndexedDataConfig
from megatron.ltd.data.datasets import build_datasets, check_sources
from megatron.ltd.data.indexed import IndexedInfo
from megatron.ltd.data.microbatches import Collate, SampleSource
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.gpt import build_chunks
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.sequence import SequenceShard
from megatron.ltd.tasks.base import Task
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import model_vocab_size
from megatron.ltd.training.objective import CausalLM


class GPT(Task):
    """The tokenizer and the data of a run, checked, and what is made of them."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.objective = CausalLM()
        self.tokenizer = build_tokenizer(config.tokenizer)
        self.sources = check_sources(config.data, self.tokenizer, read_tokens=False)
        self.vocab_size = model_vocab_size(
            config.tokenizer, self.tokenizer.vocab_size, config.parallel.tensor_model_parallel_size
        )

    @property
    def identity(self) -> Mapping[str, Any]:
        return weights_identity(self.config.model, self.tokenizer, self.vocab_size)

    @property
    def order(self) -> Mapping[str, Any]:
        """Seed, sample length, and the training data by content."""
        return data_order(self.config, self.sources)

    @property
    def fingerprints(self) -> Mapping[str, Sequence[str]]:
        return {spelling: [info.fingerprint for info in infos] for spelling, infos in self.sources.items()}

    @property
    def shape(self) -> ModelShape:
        return self.config.model.shape(self.vocab_size)

    @property
    def num_parameters(self) -> int:
        model: ModelConfig = self.config.model
        return num_parameters(
            self.shape,
            tied_embeddings=model.tied_embeddings,
            learned_positions=model.learned_positions,
            linear_bias=model.add_bias_linear,
            norm_bias=model.normalization == "LayerNorm",
        )

    @property
    def num_token_ids(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def special_ids(self) -> tuple[int, ...]:
        return ()

    @property
    def every_layer_needs_data(self) -> bool:
        return self.config.data.reset_attention_mask

    def eval_samples(self, global_batch_samples: int) -> int:
        return self.config.training.eval_iters * global_batch_samples

    def build_chunks(self, core_config: TransformerConfig, mesh: Mesh, *, explicit_mask: bool) -> list[GPTModel]:
        """See ``models.gpt.build_chunks``."""
        return build_chunks(
            self.config.model,
            core_config,
            self.vocab_size,
            mesh,
            seed=self.config.training.seed,
            explicit_mask=explicit_mask or self.every_layer_needs_data,
        )

    def build_data(
        self, train_samples: int, valid_samples: int, *, reads: bool
    ) -> tuple[SampleSource | None, SampleSource | None]:
        """See ``data.datasets.build_datasets``."""
        return build_datasets(
            self.config.data,
            seq_length=self.config.model.seq_length,
            seed=self.config.training.seed,
            train_samples=train_samples,
            valid_samples=valid_samples,
            tokenizer=self.tokenizer,
            build_on_this_rank=reads,
        )

    def collate(self, shard: SequenceShard, *, whole_tokens: bool) -> Collate[Batch]:
        """See ``data.batch.build_batch``."""
        return partial(
            build_batch,
            separate_documents_at=self.tokenizer.eod if self.config.data.reset_attention_mask else None,
            sequence_shard=shard,
            whole_tokens=whole_tokens,
        )


def weights_identity(model: ModelConfig, tokenizer: Tokenizer, padded_vocab_size: int) -> dict[str, Any]:
    """What two runs must agree on to share weights, by flag: the model's shape, and the tokenizer by content."""
    fingerprint = {"the fingerprint of the tokenizer (--tokenizer-type and its files)": tokenizer.fingerprint[:12]}
    return fingerprint | model.identity(padded_vocab_size)


def data_order(config: RunConfig, sources: Mapping[str, Sequence[IndexedInfo]]) -> dict[str, Any]:
    """What decides the order of samples and the draw of kept tokens, by flag. Data count by content, not by path."""
    data: IndexedDataConfig = config.data
    spelling = "--data-path" if "--data-path" in sources else "--train-data-path"
    blend = data.blends()[spelling]
    content = [[info.fingerprint for info in sources[spelling]], blend.weights, data.data_path and data.split]
    return {
        "--seed": config.training.seed,
        "--seq-length": config.model.seq_length,
        "the training data (--data-path with --split, or --train-data-path)": hashlib.sha256(
            json.dumps(content).encode()
        ).hexdigest()[:12],
    }

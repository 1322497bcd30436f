"""Pretraining and finetuning a GPT: packed documents, the next token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.ltd.config import RunConfig
from megatron.ltd.data.batch import Batch, build_batch
from megatron.ltd.data.config import ALL, TRAIN, IndexedDataConfig
from megatron.ltd.data.datasets import Padded, build_datasets, num_whole_samples
from megatron.ltd.data.epochs import whole_batches
from megatron.ltd.data.microbatches import Collate, SampleSource
from megatron.ltd.data.sources import check_sources
from megatron.ltd.hugging_face.model import described_tokenizer
from megatron.ltd.hugging_face.weights import ImportedModel
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.gpt import build_chunks
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.parameters import ModelSizes
from megatron.ltd.routing.sequence_shard import SequenceShard
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles, model_vocab_size, padded_vocab_size
from megatron.ltd.training.objective import CausalLM
from megatron.ltd.workloads.base import Workload
from megatron.ltd.workloads.sizes import gpt_sizes

TOKENIZER = "tokenizer_fingerprint"


class Pretraining(Workload):
    """A workload on datasets of tokens: the tokenizer and the data of a run, checked."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.sources = check_sources(config.data, tokenizer)
        self.vocab_size = model_vocab_size(
            config.tokenizer, tokenizer.vocab_size, config.parallel.tensor_model_parallel_size
        )

    @property
    def identity(self) -> Mapping[str, Any]:
        return weights_identity(self.config.model, self.tokenizer, self.vocab_size)

    @property
    def order(self) -> Mapping[str, Any]:
        """Seed, sample length, and a fingerprint of the training data, which are compared by content."""
        data: IndexedDataConfig = self.config.data
        blends = data.blends()
        key = ALL if ALL in blends else TRAIN
        split = data.split if key == ALL else ()
        content = [self.fingerprints[key], blends[key].weights, split] if blends else "mock data"
        return {
            "seed": self.config.training.seed,
            "seq_length": self.config.model.seq_length,
            "train_data_fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12],
        }

    @property
    def fingerprints(self) -> Mapping[str, Sequence[str]]:
        return {key: [info.fingerprint for info in infos] for key, infos in self.sources.items()}

    @property
    def num_token_ids(self) -> int:
        return self.tokenizer.vocab_size

    def eval_samples(self, global_batch_samples: int) -> dict[str, int]:
        """``--eval-iters`` batches of each set."""
        samples = self.config.training.eval_iters * global_batch_samples
        return dict.fromkeys(self.config.data.evaluated(), samples) if samples else {}


class GPT(Pretraining):
    """What is built from packed documents."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config, build_tokenizer(config.tokenizer))
        self.objective = CausalLM()

    @property
    def sizes(self) -> ModelSizes:
        return gpt_sizes(self.config.model, self.vocab_size)

    @property
    def every_layer_needs_data(self) -> bool:
        return self.config.data.reset_attention_mask

    @cached_property
    def _whole_samples(self) -> dict[str, int]:
        data, length = self.config.data, self.config.model.seq_length
        return {key: num_whole_samples(data, self.sources, key, seq_length=length) for key in data.evaluated()}

    def eval_samples(self, global_batch_samples: int) -> dict[str, int]:
        """``--eval-iters`` batches of each set, or enough for all its data."""
        if self.config.data.full_validation:
            return {key: whole_batches(number, global_batch_samples) for key, number in self._whole_samples.items()}
        return super().eval_samples(global_batch_samples)

    def open_imported(self, folder: Path) -> tuple[ImportedModel, Mapping[str, Any], Mapping[str, Any]]:
        """See ``Workload``. The tokenizer is compared if its files are in the folder."""
        imported, config = ImportedModel.open(folder), self.config
        vocab_size = padded_vocab_size(
            imported.vocab_size,
            config.tokenizer.make_vocab_size_divisible_by,
            config.parallel.tensor_model_parallel_size,
        )
        described = imported.model.identity(vocab_size) | {"norm_epsilon": imported.model.norm_epsilon}
        files = described_tokenizer(folder)
        if files:
            described[TOKENIZER] = build_tokenizer(TokenizerFiles(**files)).fingerprint[:12]
        wanted = {**self.identity, "norm_epsilon": config.model.norm_epsilon}
        return imported, described, {name: wanted[name] for name in described}

    def build_chunks(
        self, core_config: TransformerConfig, mesh: Mesh, *, entry_layers: frozenset[int]
    ) -> list[GPTModel]:
        """See ``models.gpt.build_chunks``."""
        return build_chunks(
            self.config.model,
            core_config,
            self.vocab_size,
            mesh,
            seed=self.config.training.seed,
            masked_layers=self.config.model.layer_numbers if self.every_layer_needs_data else entry_layers,
        )

    def build_data(
        self, train_samples: int, eval_samples: Mapping[str, int], *, reads: bool
    ) -> tuple[SampleSource | None, Mapping[str, SampleSource]]:
        """See ``data.datasets.build_datasets``."""
        whole = self.config.data.full_validation
        train, evaluated = build_datasets(
            self.config.data,
            seq_length=self.config.model.seq_length,
            seed=self.config.training.seed,
            train_samples=train_samples,
            eval_samples=dict.fromkeys(eval_samples) if whole else eval_samples,
            tokenizer=self.tokenizer,
            sources=self.sources,
            build_on_this_rank=reads,
        )
        if whole:
            return train, {key: Padded(found, eval_samples[key]) for key, found in evaluated.items()}
        return train, evaluated

    def collate(self, shard: SequenceShard, *, whole_tokens: bool) -> Collate[Batch]:
        """See ``data.batch.build_batch``."""
        return partial(
            build_batch,
            separate_documents_at=self.tokenizer.eod if self.config.data.reset_attention_mask else None,
            sequence_shard=shard,
            whole_tokens=whole_tokens,
        )


def weights_identity(model: ModelConfig, tokenizer: Tokenizer, padded_vocab_size: int) -> dict[str, Any]:
    """Settings, by id, that must be equal in two runs that share weights: the model's shape, and the tokenizer."""
    return {TOKENIZER: tokenizer.fingerprint[:12]} | model.identity(padded_vocab_size)

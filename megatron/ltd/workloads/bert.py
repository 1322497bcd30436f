"""Pretraining a BERT: masked language modelling, and the order of two sentences."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.ltd.config import RunConfig
from megatron.ltd.data.bert_batch import BertBatch, build_bert_batch
from megatron.ltd.data.bert_datasets import build_bert_datasets, check_sentences
from megatron.ltd.data.config import BertDataConfig
from megatron.ltd.data.microbatches import Collate, SampleSource
from megatron.ltd.models.bert import BertModel, build_bert_chunks
from megatron.ltd.models.encoder_config import BertModelConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.parameters import ModelSizes
from megatron.ltd.routing.sequence_shard import SequenceShard
from megatron.ltd.tokenizers.build import build_wordpiece
from megatron.ltd.tokenizers.wordpiece import WordPieceTokenizer
from megatron.ltd.training.objective import MaskedLM
from megatron.ltd.workloads.base import CLASS_COUNT
from megatron.ltd.workloads.gpt import Pretraining
from megatron.ltd.workloads.sizes import bert_sizes


class BERT(Pretraining):
    """What is built from documents that are split into sentences."""

    tokenizer: WordPieceTokenizer
    every_layer_needs_data = True  # attention needs to know which tokens are padding

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config, build_wordpiece(config.tokenizer))
        self.model: BertModelConfig = config.model
        self.data: BertDataConfig = config.data
        if self.model.bert_binary_head:
            check_sentences(self.data, self.sources)
        self.objective = MaskedLM(sentence_order=self.model.bert_binary_head)

    @property
    def order(self) -> Mapping[str, Any]:
        """As for GPT, and the probabilities of masking and of short samples."""
        return {**super().order, "mask_prob": self.data.mask_prob, "short_seq_prob": self.data.short_seq_prob}

    @property
    def sizes(self) -> ModelSizes:
        return bert_sizes(self.model, self.vocab_size)

    @property
    def special_ids(self) -> tuple[int, ...]:
        return self.tokenizer.special_ids

    def new_weights(self, stored: Mapping[str, Any]) -> tuple[str, ...]:
        """The heads, if the checkpoint is that of a classifier, which does not have them."""
        if CLASS_COUNT not in stored["order"]:
            return ()
        heads = ("lm_head.", "binary_head.", "output_layer.bias")
        # A tied output matrix is the embedding, which is loaded, also into the copy of a last stage.
        return heads if self.model.tied_embeddings else (*heads, "output_layer.weight")

    def build_chunks(
        self, core_config: TransformerConfig, mesh: Mesh, *, entry_layers: frozenset[int]
    ) -> list[BertModel]:
        """See ``models.bert.build_bert_chunks``; there is always a mask."""
        return build_bert_chunks(
            BertModel, self.model, core_config, self.vocab_size, mesh, seed=self.config.training.seed
        )

    def build_data(
        self, train_samples: int, eval_samples: Mapping[str, int], *, reads: bool
    ) -> tuple[SampleSource | None, Mapping[str, SampleSource]]:
        """See ``data.bert_datasets.build_bert_datasets``."""
        assert reads, "every stage needs the padding"
        return build_bert_datasets(
            self.data,
            sentence_order=self.model.bert_binary_head,
            seq_length=self.model.seq_length,
            seed=self.config.training.seed,
            train_samples=train_samples,
            eval_samples=eval_samples,
            tokenizer=self.tokenizer,
            sources=self.sources,
        )

    def collate(self, shard: SequenceShard, *, whole_tokens: bool) -> Collate[BertBatch]:
        """See ``data.bert_batch.build_bert_batch``; samples are never sharded (no context parallelism)."""
        return partial(build_bert_batch, whole_tokens=whole_tokens)

"""Pretraining a BERT: masked language modelling, and the order of two sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.ltd.config import RunConfig
from megatron.ltd.data.bert_batch import BertBatch, build_bert_batch
from megatron.ltd.data.bert_datasets import build_bert_datasets, check_sentences
from megatron.ltd.data.config import BertDataConfig
from megatron.ltd.data.datasets import check_sources
from megatron.ltd.data.microbatches import Collate, SampleSource
from megatron.ltd.models.bert import BertModel, build_bert_chunks
from megatron.ltd.models.encoder_config import BertModelConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.parameters import ModelSizes
from megatron.ltd.routing.sequence_shard import SequenceShard
from megatron.ltd.tokenizers.build import build_wordpiece
from megatron.ltd.tokenizers.config import model_vocab_size
from megatron.ltd.training.objective import MaskedLM
from megatron.ltd.workloads.base import CLASS_COUNT, Workload
from megatron.ltd.workloads.gpt import data_order, weights_identity
from megatron.ltd.workloads.sizes import bert_sizes


class BERT(Workload):
    """The tokenizer and the data of a run, checked, and what is built from them."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.model: BertModelConfig = config.model
        self.data: BertDataConfig = config.data
        self.tokenizer = build_wordpiece(config.tokenizer)
        self.sources = check_sources(self.data, self.tokenizer, read_tokens=False)
        if self.model.bert_binary_head:
            check_sentences(self.data, self.sources)
        self.vocab_size = model_vocab_size(
            config.tokenizer, self.tokenizer.vocab_size, config.parallel.tensor_model_parallel_size
        )
        self.objective = MaskedLM(sentence_order=self.model.bert_binary_head)

    @property
    def identity(self) -> Mapping[str, Any]:
        return weights_identity(self.model, self.tokenizer, self.vocab_size)

    @property
    def order(self) -> Mapping[str, Any]:
        """As for GPT, and the probabilities of masking and of short samples."""
        drawn = {"mask_prob": self.data.mask_prob, "short_seq_prob": self.data.short_seq_prob}
        return data_order(self.config, self.sources) | drawn

    @property
    def fingerprints(self) -> Mapping[str, Sequence[str]]:
        return {key: [info.fingerprint for info in infos] for key, infos in self.sources.items()}

    @property
    def sizes(self) -> ModelSizes:
        return bert_sizes(self.model, self.vocab_size)

    @property
    def num_token_ids(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def special_ids(self) -> tuple[int, ...]:
        return self.tokenizer.special_ids

    @property
    def every_layer_needs_data(self) -> bool:
        """True: attention needs to know which tokens are padding."""
        return True

    def new_weights(self, stored: Mapping[str, Any]) -> tuple[str, ...]:
        """The heads, if the checkpoint is that of a classifier, which does not have them."""
        if CLASS_COUNT not in stored["order"]:
            return ()
        heads = ("lm_head.", "binary_head.", "output_layer.bias")
        # A tied output matrix is the embedding, which is loaded, also into the copy of a last stage.
        return heads if self.model.tied_embeddings else (*heads, "output_layer.weight")

    def eval_samples(self, global_batch_samples: int) -> dict[str, int]:
        samples = self.config.training.eval_iters * global_batch_samples
        return dict.fromkeys(self.data.evaluated(), samples) if samples else {}

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
        )

    def collate(self, shard: SequenceShard, *, whole_tokens: bool) -> Collate[BertBatch]:
        """See ``data.bert_batch.build_bert_batch``; samples are never sharded (no context parallelism)."""
        return partial(build_bert_batch, whole_tokens=whole_tokens)

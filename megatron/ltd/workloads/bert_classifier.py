"""Finetuning a BERT on labelled sentences, single ones or pairs: the class of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron.ltd.config import RunConfig
from megatron.ltd.data.config import VALID, LabelledTextConfig
from megatron.ltd.data.epochs import ShuffledEpochs, SinglePass, whole_batches
from megatron.ltd.data.labelled_rows import LabelledRows, SentenceBatch, build_sentence_batch
from megatron.ltd.data.labelled_text import Label, LabelledText, read_labelled
from megatron.ltd.data.microbatches import Collate, SampleSource
from megatron.ltd.errors import UserError
from megatron.ltd.models import bert_classifier
from megatron.ltd.models.bert import build_bert_chunks
from megatron.ltd.models.encoder_config import BertModelConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.parameters import ModelSizes
from megatron.ltd.routing.sequence_shard import SequenceShard
from megatron.ltd.tokenizers.build import build_wordpiece
from megatron.ltd.tokenizers.config import model_vocab_size
from megatron.ltd.training.classification import Classification
from megatron.ltd.workloads.base import CLASS_COUNT, Workload, class_order, same_classes
from megatron.ltd.workloads.gpt import weights_identity
from megatron.ltd.workloads.sizes import classifier_sizes


class BertClassification(Workload):
    """The tokenizer and the sentences of a run, checked. Each evaluation uses the whole validation set."""

    every_layer_needs_data = True  # attention needs the padding

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.model: BertModelConfig = config.model
        self.data: LabelledTextConfig = config.data
        self.tokenizer = build_wordpiece(config.tokenizer)
        self.train = self._read("--train-data-path", str(self.data.train_data_path), None)
        self.classes = self.train.classes
        self.valid: LabelledText | None = None
        if self.data.valid_data_path is not None:
            self.valid = self._read("--valid-data-path", self.data.valid_data_path, self.classes)
        if self.valid is None and config.training.eval_iters:
            raise UserError("--valid-data-path: required; give sentences to evaluate on, or use --eval-iters 0")
        self.vocab_size = model_vocab_size(
            config.tokenizer, self.tokenizer.vocab_size, config.parallel.tensor_model_parallel_size
        )
        self.objective = Classification(len(self.classes), self._call)

    @property
    def identity(self) -> Mapping[str, Any]:
        """As in pretraining."""
        return weights_identity(self.model, self.tokenizer, self.vocab_size)

    @property
    def order(self) -> Mapping[str, Any]:
        """Seed, sample length, classes, and the training sentences by content."""
        return {
            "seed": self.config.training.seed,
            "seq_length": self.model.seq_length,
            **class_order(list(map(repr, self.classes))),
            "train_data_fingerprint": self.train.fingerprint[:12],
            "text_column": self.data.text_column,
            "label_column": self.data.label_column,
            "text_pair_column": self.data.text_pair_column,
        }

    @property
    def fingerprints(self) -> Mapping[str, Sequence[str]]:
        found = {"train_data_path": [self.train.fingerprint]}
        return found if self.valid is None else found | {"valid_data_path": [self.valid.fingerprint]}

    @property
    def sizes(self) -> ModelSizes:
        return classifier_sizes(self.model, self.vocab_size, len(self.classes))

    def new_weights(self, stored: Mapping[str, Any]) -> tuple[str, ...]:
        """The head, unless the checkpoint has the same classes, and the pooler if the checkpoint has none."""
        if CLASS_COUNT in stored["order"]:
            return () if same_classes(stored["order"], self.order) else (bert_classifier.HEAD,)
        heads = (bert_classifier.HEAD, bert_classifier.POOLER)
        return heads[:1] if self.model.bert_binary_head else heads

    def eval_samples(self, global_batch_samples: int) -> dict[str, int]:
        """The whole validation set, unless --eval-iters is 0."""
        if self.valid is None or not self.config.training.eval_iters:
            return {}
        return {VALID: whole_batches(len(self.valid.labels), global_batch_samples)}

    def build_chunks(
        self, core_config: TransformerConfig, mesh: Mesh, *, entry_layers: frozenset[int]
    ) -> list[bert_classifier.BertClassifier]:
        """See ``models.bert.build_bert_chunks``; there is always a mask."""
        kind = partial(bert_classifier.BertClassifier, num_classes=len(self.classes))
        return build_bert_chunks(kind, self.model, core_config, self.vocab_size, mesh, seed=self.config.training.seed)

    def build_data(
        self, train_samples: int, eval_samples: Mapping[str, int], *, reads: bool
    ) -> tuple[SampleSource | None, Mapping[str, SampleSource]]:
        """The training sentences in epochs, and the validation sentences once."""
        assert reads, "every stage needs the padding"
        train = ShuffledEpochs(self._rows(self.train), self.config.training.seed, train_samples)
        if self.valid is None:
            return train, {}
        return train, {key: SinglePass(self._rows(self.valid), number) for key, number in eval_samples.items()}

    def collate(self, shard: SequenceShard, *, whole_tokens: bool) -> Collate[SentenceBatch]:
        """See ``data.labelled_rows.build_sentence_batch``; samples are never sharded (no context parallelism)."""
        return build_sentence_batch

    def _call(self, model: nn.Module, batch: SentenceBatch) -> Tensor:
        assert batch.padding_BS is not None, "batches of sentences have padding"
        types_BS = batch.types_BS if self.model.sentence_types else None
        return model(batch.tokens_BS, ~batch.padding_BS, types_BS)

    def _read(self, flag: str, path: str, classes: Sequence[Label] | None) -> LabelledText:
        return read_labelled(path, self.data.columns, flag=flag, classes=classes)

    def _rows(self, labelled: LabelledText) -> LabelledRows:
        return LabelledRows(labelled, self.tokenizer, self.model.seq_length)

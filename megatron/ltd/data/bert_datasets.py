"""The samples of BERT's pretraining, on Megatron-Core's masked-word dataset.

    sentences of a document --fill up to S - 3--> A, B --swap half of the time--> [CLS] A [SEP] B [SEP] [PAD] ...
                            --hide 15 % of the tokens--> 80 % [MASK], 10 % another piece, 10 % as they are

The tokens of a word are hidden together, and up to three words in a row. Without sentence order a sample is one group
of sentences, [CLS] A [SEP]. As for GPT everything is drawn from ``seed`` and the number of requested samples.

Not here: batches (``data.bert_batch``), paths and blends (``data.datasets``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset, BERTMaskedWordPieceDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron.ltd.data.config import TRAIN, BertDataConfig
from megatron.ltd.data.core_builder import FingerprintedDataset, Fingerprints, build_sets, remove_wrong_indices
from megatron.ltd.data.datasets import blend_settings, documents_of
from megatron.ltd.data.encode import LONGEST_SENTENCE_TOKENS
from megatron.ltd.data.indexed import IndexedInfo
from megatron.ltd.data.indices.cache import is_bert_index
from megatron.ltd.data.indices.size import check_size
from megatron.ltd.data.microbatches import SampleSource
from megatron.ltd.data.sources import Sources, check_contents
from megatron.ltd.errors import UserError
from megatron.ltd.format import count_of
from megatron.ltd.tokenizers.wordpiece import WordPieceTokenizer

_LONGEST_RUN_OF_WORDS = 3


@dataclass
class _Config(Fingerprints, BERTMaskedWordPieceDatasetConfig):
    pass


class _Dataset(FingerprintedDataset, BERTMaskedWordPieceDataset):
    """Megatron-Core's dataset, with samples under the names of our batches.

    A random replacement is a piece of text, never a special token: padding would be treated as such.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        tokenizer = self.config.tokenizer
        no_text = {tokenizer.pad, *tokenizer.special_ids}
        self.token_lookup = [token for token in tokenizer.inv_vocab if token not in no_text]

    def _build_sample_index(self, sequence_length: int, min_sentences_per_sample: int) -> Any:
        """Megatron-Core's array, from the cache or built. A wrong cached index is removed first."""

        def is_right(sample: Any) -> bool:
            bounds = self.dataset.document_indices[self.indices[0] : self.indices[-1] + 2].astype(numpy.int64)
            return is_bert_index(
                sample, document_bounds=bounds, seq_length=sequence_length, num_samples=self.num_samples
            )

        remove_wrong_indices(self, is_right, "", ("sample_index",))
        return super()._build_sample_index(sequence_length, min_sentences_per_sample)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: _Config) -> IndexedDataset:
        return IndexedDataset(dataset_path, mmap=config.mmap_bin_files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``tokens``, ``types``, ``labels`` (the hidden tokens, 0 elsewhere) int64 [S]; ``loss_mask`` float32 [S], 1
        where a token is hidden; ``padding`` bool [S]; ``is_swapped`` bool.
        """
        sample = super().__getitem__(index)
        hidden = sample["loss_mask"].astype(bool)
        return {
            "tokens": sample["text"],
            "types": sample["types"],
            "labels": numpy.where(hidden, sample["labels"], 0),
            "loss_mask": hidden.astype(numpy.float32),
            "padding": sample["padding_mask"] == 0,
            "is_swapped": bool(sample["is_random"]),
        }


def build_bert_datasets(
    config: BertDataConfig,
    *,
    sentence_order: bool,
    seq_length: int,
    seed: int,
    train_samples: int,
    eval_samples: Mapping[str, int],
    tokenizer: WordPieceTokenizer,
    sources: Sources,
) -> tuple[SampleSource | None, dict[str, SampleSource]]:
    """The training samples (None if 0 are wanted), and those of each of ``eval_samples``, at least so many.

    With a process group every rank must call this.
    Raises ``UserError`` as ``data.datasets.build_datasets`` does, and when no document of a split makes a sample.
    """

    def core_config(key: str, samples: int | None) -> _Config:
        """Of one set of samples; its data are checked."""
        for info, documents in documents_of(config, sources, key, number_of=lambda info: info.documents):
            _check_documents(key.partition("_")[0], info, documents, sentence_order=sentence_order)
        if samples is not None:  # of BERT one document is a sample or more
            check_size(samples, samples_of_epoch=math.inf, documents=0, is_training=key == TRAIN)
        return _Config(
            **blend_settings(config, sources, key, samples),
            random_seed=seed,
            sequence_length=seq_length,
            tokenizer=tokenizer,  # not Megatron-Core's class, but with the attributes that the dataset uses
            masking_probability=config.mask_prob,
            short_sequence_probability=config.short_seq_prob,
            masking_max_ngram=_LONGEST_RUN_OF_WORDS,
            masking_do_full_word=True,
            masking_do_permutation=False,
            masking_use_longer_ngrams=False,
            masking_use_geometric_distribution=False,
            classification_head=sentence_order,
        )

    check_contents(config, sources, tokenizer)
    return build_sets(_Dataset, core_config, train_samples, eval_samples)


def check_sentences(config: BertDataConfig, sources: Sources) -> None:
    """Raise ``UserError`` for documents that are not split into sentences, from which no sentence order can be made."""
    for key, blend in config.blends().items():
        for info in sources[key]:
            if info.sequences == info.documents:
                raise UserError(
                    f"{blend.flag} {info.prefix}: of its {count_of(info.documents, 'document')} none has two "
                    "sentences, which sentence order needs; run preprocess_data.py with --split-sentences, or train "
                    "with --bert-no-binary-head"
                )


def _check_documents(name: str, info: IndexedInfo, documents: range, *, sentence_order: bool) -> None:
    """Raise ``UserError`` for a split without samples, in which Megatron-Core would search forever."""
    data = IndexedDataset(info.prefix)
    bounds = data.document_indices[documents.start : documents.stop + 1].astype(numpy.int64)
    lengths = data.sequence_lengths
    num_sentences = numpy.diff(bounds)
    too_long = numpy.concatenate([[0], numpy.cumsum(lengths > LONGEST_SENTENCE_TOKENS)])
    has_too_long = (too_long[bounds[1:]] > too_long[bounds[:-1]]) & (num_sentences > 1)
    if not ((num_sentences >= 1 + sentence_order) & ~has_too_long).any():
        wanted = "two sentences or more" if sentence_order else "text"
        raise UserError(
            f"{info.prefix}: of its {count_of(len(documents), 'document')} for {name} none has {wanted} of at most "
            f"{LONGEST_SENTENCE_TOKENS} tokens; run preprocess_data.py with --split-sentences on more text, or give "
            f"{name} a larger share with --split"
        )

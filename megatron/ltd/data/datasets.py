"""The training and validation datasets of a run, on Megatron-Core's builder.

    documents of .bin/.idx --split--> document index (epochs, shuffled) --> samples of S + 1 tokens --> shuffled

Samples are cut from concatenated documents; everything is drawn from ``seed``, so that every rank and every restart has
the same order. As in Megatron, the order also depends on the number of requested samples if that is more than one
epoch: to stop a run early, use ``--exit-interval``, not another ``--train-iters``.

``--full-validation`` reads one epoch of the validation data, in samples that overlap in one token: each token but the
first is a label once. The last sample is padded, and samples are added up to whole global batches; padding has no loss.

Each set of samples (training, every validation set, test) is built by itself. Those that are evaluated are all built as
Megatron-Core's validation split.

Not here: the order of reading, and microbatches (``data.microbatches``); the format of the files (``data.indexed``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset

from megatron.ltd.data.blends import Blend, plain_split
from megatron.ltd.data.config import ALL, TRAIN, DataConfig, IndexedDataConfig
from megatron.ltd.data.core_builder import FingerprintedDataset, Fingerprints, build_sets, remove_wrong_indices
from megatron.ltd.data.indexed import IndexedInfo, tokens_in
from megatron.ltd.data.indices.cache import is_gpt_index
from megatron.ltd.data.indices.size import check_size
from megatron.ltd.data.microbatches import SampleSource
from megatron.ltd.data.sources import Sources, check_contents
from megatron.ltd.errors import UserError
from megatron.ltd.format import count_of
from megatron.ltd.tokenizers.base import Tokenizer

_TRAIN, _VALID = 0, 1  # Megatron-Core's splits; its third one is not used


@dataclass
class _Config(Fingerprints, GPTDatasetConfig):
    opened: dict[str, Any] = field(default_factory=dict)
    """By prefix, the datasets that are open: each is opened once for all sets of samples."""


class _Dataset(FingerprintedDataset, GPTDataset):
    """``GPTDataset``, which caches the loss mask of the first sample for all samples: not here if it may be padded."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if not self.config.drop_last_partial_validation_sequence:
            self.masks_and_position_ids_are_cacheable = False

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: _Config) -> Any:
        if dataset_path not in config.opened:
            config.opened[dataset_path] = GPTDataset.build_low_level_dataset(dataset_path, config)
        return config.opened[dataset_path]

    def _build_document_sample_shuffle_indices(self) -> Any:
        """Megatron-Core's arrays, from the cache or built. A wrong cached index is removed first."""
        if not self.config.mock:
            is_right = partial(
                is_gpt_index,
                documents=self.indices,
                lengths=self.dataset.sequence_lengths,
                seq_length=self.config.sequence_length,
                num_samples=self.num_samples,
            )
            names = ("document_index", "sample_index", "shuffle_index")
            remove_wrong_indices(self, is_right, f"-{self.index_split.name}", names)
        return super()._build_document_sample_shuffle_indices()

    @classmethod
    def _key_config_attributes(cls) -> list[str]:
        return [*super()._key_config_attributes(), "drop_last_partial_validation_sequence"]


class _MockDataset(_Dataset, MockGPTDataset):
    """Megatron-Core's documents of successive numbers, as our samples."""

    build_low_level_dataset = staticmethod(MockGPTDataset.build_low_level_dataset)


@dataclass(frozen=True)
class Padded:
    """The samples of ``source``, then samples without loss up to ``num_samples``."""

    source: SampleSource
    num_samples: int

    def __post_init__(self) -> None:
        assert len(self.source) <= self.num_samples, (len(self.source), self.num_samples)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index < len(self.source):
            return self.source[index]
        sample = self.source[0]
        return {**sample, "loss_mask": torch.zeros_like(sample["loss_mask"])}


def build_datasets(
    config: DataConfig,
    *,
    seq_length: int,
    seed: int,
    train_samples: int,
    eval_samples: Mapping[str, int | None],
    tokenizer: Tokenizer,
    sources: Sources,
    build_on_this_rank: bool = True,
) -> tuple[SampleSource | None, dict[str, SampleSource]]:
    """The training samples (None if 0 are wanted), and those of each of ``eval_samples``, at least so many.

    The keys are those of ``IndexedDataConfig.evaluated``; None asks for the whole of its data, once, whatever weights a
    blend gives its datasets. A sample holds ``tokens``, ``labels``, ``position_ids`` int64 and ``loss_mask`` float32,
    each [S] with S = ``seq_length`` tokens. With a process group every rank must call this; the index cache is written
    and read as in ``data.core_builder``. Where ``build_on_this_rank`` is False there are no samples. ``sources`` as
    from ``check_sources``. Raises ``UserError`` for damaged data, when data that are asked for have no tokens, and when
    the indices cannot be built, written or seen.
    """
    opened: dict[str, Any] = {}

    def core_config(key: str, samples: int | None) -> _Config:
        """Of one set of samples; its data are checked."""
        _check_samples(config, sources, key, samples, seq_length)
        return _Config(
            **blend_settings(config, sources, key, samples),
            random_seed=seed,
            sequence_length=seq_length,
            tokenizer=tokenizer,  # not Megatron-Core's class, but with the attributes that GPTDataset uses
            reset_position_ids=config.reset_position_ids,
            reset_attention_mask=config.reset_attention_mask,
            eod_mask_loss=config.eod_mask_loss,
            create_attention_mask=False,
            drop_last_partial_validation_sequence=samples is not None,
            opened=opened,
        )

    check_contents(config, sources, tokenizer)
    dataset_class = _MockDataset if config.mock_data else _Dataset
    return build_sets(dataset_class, core_config, train_samples, eval_samples, build_on_this_rank=build_on_this_rank)


def num_whole_samples(config: DataConfig, sources: Sources, key: str, *, seq_length: int) -> int:
    """Number of samples in all data of what is evaluated: in each dataset all tokens but the first are labels, S each.

    Raises ``UserError`` if one has none.
    """
    return sum(-(-labels // seq_length) for labels in _num_labels(config, sources, key))


def _check_samples(config: DataConfig, sources: Sources, key: str, samples: int | None, seq_length: int) -> None:
    """Raise ``UserError`` for data without labels, or if their indices cannot be built."""
    epoch, documents = math.inf, 0
    if not config.mock_data:
        epoch = sum(_num_labels(config, sources, key)) / seq_length
        documents = sum(len(found) for _, found in _documents(config, sources, key))
    if samples is not None:
        check_size(samples, samples_of_epoch=epoch, documents=documents, is_training=key == TRAIN)


def _num_labels(config: IndexedDataConfig, sources: Sources, key: str) -> list[int]:
    """Tokens that are labels, in each dataset of a set of samples.

    Raises ``UserError`` if a dataset has none there: Megatron-Core would look for more of them forever.
    """
    numbers = []
    for info, documents in _documents(config, sources, key):
        labels = tokens_in(info, documents) - 1
        if labels < 1:
            where = f"documents {documents.start + 1} to {documents.stop}"
            raise UserError(
                f"{_place(config, key)} {info.prefix}: {where}, the share of {key.partition('_')[0]}, hold "
                f"{labels + 1} tokens; give it a larger share, or leave empty documents out of the data"
            )
        numbers.append(labels)
    return numbers


def _documents(config: IndexedDataConfig, sources: Sources, key: str) -> Iterable[tuple[IndexedInfo, range]]:
    return documents_of(config, sources, key, number_of=lambda info: info.sequences)


def _place(config: IndexedDataConfig, key: str) -> str:
    """The flag that decides about the documents of a set of samples."""
    blends = config.blends()
    return f"--split {config.split}:" if ALL in blends else blends[key].flag


def blend_settings(config: IndexedDataConfig, sources: Sources, key: str, samples: int | None) -> dict[str, Any]:
    """The settings of Megatron-Core's builder for one set of samples: paths, blend, split, cache and fingerprints."""
    blends = config.blends()
    of = ALL if ALL in blends else key
    blend = _weighted(blends[of], sources[of], whole=samples is None) if of in blends else None
    is_split = of == ALL and blend is not None
    place = _TRAIN if key == TRAIN else _VALID
    return {
        "blend": blend if is_split else None,
        "blend_per_split": None if is_split or blend is None else [blend if place == n else None for n in range(3)],
        "split": plain_split(config.split) if is_split else None,
        "num_dataset_builder_threads": config.num_dataset_builder_threads,
        "path_to_cache": None if blend is None else config.data_cache_path,
        "mmap_bin_files": config.mmap_bin_files,
        "fingerprints": {info.prefix: info.fingerprint for info in sources.get(of, ())},
    }


def _weighted(blend: Blend, infos: Sequence[IndexedInfo], *, whole: bool) -> tuple[list[str], list[float] | None]:
    """The blend for Megatron-Core. Several prefixes without weights get their token counts as weights, because without
    weights Megatron-Core stops after one epoch, which is right for ``whole``.
    """
    weights = None if whole else blend.weights
    if weights is None and not whole and len(blend.prefixes) > 1:
        weights = tuple(float(info.tokens) for info in infos)
    return list(blend.prefixes), None if weights is None else list(weights)


def documents_of(
    config: IndexedDataConfig, sources: Sources, key: str, *, number_of: Callable[[IndexedInfo], int]
) -> list[tuple[IndexedInfo, range]]:
    """Each dataset of a set of samples, and which of its documents are in the set.

    ``number_of`` is the number by which Megatron-Core splits a dataset. Raises ``UserError`` if a set has no data, or a
    dataset no documents for it.
    """
    name = key.partition("_")[0]
    if ALL not in sources:
        if key not in sources:
            flag = f"--{name}-data-path"
            raise UserError(f"{flag}: required, because {name} samples are needed; give the prefix of a dataset")
        return [(info, range(number_of(info))) for info in sources[key]]
    shares = convert_split_vector_to_split_matrix(parse_and_normalize_split(plain_split(config.split)))
    bounds = shares[_TRAIN if key == TRAIN else _VALID]
    parts = []
    for info in sources[ALL]:
        first, end = (round(bound * float(number_of(info))) for bound in bounds or (0.0, 0.0))
        if end <= first:
            raise UserError(
                f"--split {config.split}: leaves no document for {name}: {info.prefix} has "
                f"{count_of(number_of(info), 'document')}, and a document is not divided; give {name} a larger "
                "share or more documents, or separate data with --train-data-path and --valid-data-path"
            )
        parts.append((info, range(first, end)))
    return parts

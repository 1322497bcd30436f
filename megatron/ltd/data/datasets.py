"""The training and validation datasets of a run, on Megatron-Core's builder.

    documents of .bin/.idx --split--> document index (epochs, shuffled) --> samples of S + 1 tokens --> shuffled

Samples are cut from documents packed one after another; everything is drawn from ``seed`` alone, so every rank and
every restart sees the same order. As in Megatron, the order also depends on the number of samples asked for when that
takes more than one epoch: to stop a run early, use ``--exit-interval``, not another ``--train-iters``.

The whole of the validation data (``--full-validation``) is one epoch of it, in samples that overlap in one token: each
token but the first is a label once. The last sample is padded, and so are the samples to whole global batches; what
pads counts for no loss.

Not here: reading order and microbatches (``data.microbatches``); what the files must hold (``data.indexed``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron.ltd.data.config import Blend, DataConfig, IndexedDataConfig
from megatron.ltd.data.core_builder import SplitSamples, build_splits, cache_folder, is_first_rank
from megatron.ltd.data.index_cache import is_gpt_index, remove_unless
from megatron.ltd.data.indexed import IndexedInfo, check_indexed_dataset
from megatron.ltd.data.microbatches import SampleSource
from megatron.ltd.errors import UserError
from megatron.ltd.parallel.agreement import together
from megatron.ltd.tokenizers.base import Tokenizer

_CORE_SPLITS = ("train", "valid", "test")  # Megatron-Core always has three; nobody here reads the last
_WHOLE_VALID: SplitSamples = (0, None, 0)


@dataclass
class _Config(GPTDatasetConfig):
    """Megatron-Core's configuration and what the data hold, since its cache of indices is keyed by paths alone."""

    data_fingerprints: tuple[str, ...] = ()


class _Dataset(GPTDataset):
    """``GPTDataset`` whose cached indices are not used for data that were made anew under the same name, and whose last
    sample, where it is padded, does not leave its loss mask to all others: core caches the first one read as it is.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if not self.config.drop_last_partial_validation_sequence:
            self.masks_and_position_ids_are_cacheable = False

    def _build_document_sample_shuffle_indices(self) -> Any:
        """Megatron-Core's arrays, out of the cache or built. What it would find there and is not right is removed."""
        if is_first_rank():
            remove_unless(
                partial(
                    is_gpt_index,
                    documents=self.indices,
                    lengths=self.dataset.sequence_lengths,
                    seq_length=self.config.sequence_length,
                    num_samples=self.num_samples,
                ),
                cache_folder(self),
                f"{self.unique_description_hash}-{type(self).__name__}-{self.index_split.name}",
                ("document_index", "sample_index", "shuffle_index"),
            )
        return super()._build_document_sample_shuffle_indices()

    @staticmethod
    def _key_config_attributes() -> list[str]:
        return [*GPTDataset._key_config_attributes(), "data_fingerprints", "drop_last_partial_validation_sequence"]


class Padded:
    """The samples of ``source``, and after them samples without loss, ``num_samples`` together."""

    def __init__(self, source: SampleSource, num_samples: int) -> None:
        assert len(source) <= num_samples, (len(source), num_samples)
        self._source = source
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index < len(self._source):
            return self._source[index]
        sample = self._source[0]
        return {**sample, "loss_mask": torch.zeros_like(sample["loss_mask"])}


def check_sources(
    config: IndexedDataConfig, tokenizer: Tokenizer, *, read_tokens: bool = True
) -> dict[str, tuple[IndexedInfo, ...]]:
    """Check every dataset that the flags name; by flag, what each of its prefixes holds (in the order given).

    Raises ``UserError`` when no data are given, or a dataset is missing, damaged or another tokenizer's.
    """
    blends = config.blends()
    if not blends:
        raise UserError("--data-path is missing: give the prefix that preprocess_data.py wrote")
    return {
        spelling: tuple(
            check_indexed_dataset(
                prefix, tokenizer.vocab_size, tokenizer.fingerprint, flag_spelling=spelling, read_tokens=read_tokens
            )
            for prefix in blend.prefixes
        )
        for spelling, blend in blends.items()
    }


def build_datasets(
    config: DataConfig,
    *,
    seq_length: int,
    seed: int,
    train_samples: int,
    valid_samples: int | None,
    tokenizer: Tokenizer,
    build_on_this_rank: bool = True,
) -> tuple[SampleSource | None, SampleSource | None]:
    """The training and validation datasets, each with at least the samples asked for (None if that is 0).

    ``valid_samples`` None asks for the whole of the validation data, once, whatever weights a blend gives its datasets.
    A sample holds ``tokens``, ``labels``, ``position_ids`` int64 and ``loss_mask`` float32, each [S] with S =
    ``seq_length`` tokens. With a process group every rank must call this, rank 0 building: it writes the index cache
    that the others read; where ``build_on_this_rank`` is False the result is (None, None). Without one, a blend
    takes no ``--data-cache-path``. Raises ``UserError`` as ``check_sources`` does, when a split that is asked for has
    no documents, and when the index cache cannot be written.
    """
    parts: list[SplitSamples] = [(train_samples, valid_samples, 0)]
    if valid_samples is None:  # by itself: core takes no whole split beside a blend's weights for another
        parts = [(train_samples, 0, 0), _WHOLE_VALID]
    built = []
    for samples in parts:
        with together():
            sources = check_sources(config, tokenizer, read_tokens=is_first_rank())
            core_config = _core_config(config, sources, samples, seq_length, seed, tokenizer)
            check_splits(core_config, sources, samples, number_of=lambda info: info.sequences)
        built.append(build_splits(_Dataset, core_config, samples, build_on_this_rank=build_on_this_rank))
    return built[0][0], built[-1][1]


def num_whole_valid_samples(
    config: DataConfig,
    sources: Mapping[str, tuple[IndexedInfo, ...]],
    *,
    seq_length: int,
    seed: int,
    tokenizer: Tokenizer,
) -> int:
    """Samples of the whole of the validation data: of each dataset all tokens but the first are labels, S a sample.

    Raises ``UserError`` if there are none.
    """
    core_config = _core_config(config, sources, _WHOLE_VALID, seq_length, seed, tokenizer)
    parts = check_splits(core_config, sources, _WHOLE_VALID, number_of=lambda info: info.sequences)
    return sum(-(-(_num_tokens(info.prefix, documents) - 1) // seq_length) for _, info, documents in parts)


def _num_tokens(prefix: str, documents: range) -> int:
    """Tokens of some documents of a dataset."""
    dataset = IndexedDataset(prefix)  # has a name until the end: what it gives out lies in memory that goes with it
    return int(dataset.sequence_lengths[documents.start : documents.stop].sum())


def _core_config(
    config: DataConfig,
    sources: Mapping[str, tuple[IndexedInfo, ...]],
    samples: SplitSamples,
    seq_length: int,
    seed: int,
    tokenizer: Tokenizer,
) -> _Config:
    return _Config(
        **blend_settings(config, sources, samples),
        random_seed=seed,
        sequence_length=seq_length,
        tokenizer=tokenizer,  # not core's class, and all that GPTDataset asks of one
        reset_position_ids=config.reset_position_ids,
        reset_attention_mask=config.reset_attention_mask,
        eod_mask_loss=config.eod_mask_loss,
        create_attention_mask=False,
        drop_last_partial_validation_sequence=samples != _WHOLE_VALID,
    )


def blend_settings(
    config: IndexedDataConfig, sources: Mapping[str, tuple[IndexedInfo, ...]], samples: SplitSamples
) -> dict[str, Any]:
    """What every configuration of Megatron-Core's builder says of where the data are, and what they hold."""
    whole = samples == _WHOLE_VALID
    blends = {flag: _weighted(blend, sources[flag], whole=whole) for flag, blend in config.blends().items()}
    blend = blends.get("--data-path")
    per_split = [
        blends.get(f"--{name}-data-path") if wanted != 0 else None
        for name, wanted in zip(_CORE_SPLITS, samples, strict=True)
    ]
    return {
        "blend": blend,
        "blend_per_split": None if blend else per_split,
        "split": config.split if blend else None,
        "num_dataset_builder_threads": config.num_dataset_builder_threads,
        "path_to_cache": config.data_cache_path,
        "mmap_bin_files": config.mmap_bin_files,
        "data_fingerprints": tuple(info.fingerprint for infos in sources.values() for info in infos),
    }


def _weighted(blend: Blend, infos: Sequence[IndexedInfo], *, whole: bool) -> tuple[list[str], list[float] | None]:
    """The blend as core wants it. Several prefixes without weights get their token counts as weights: left without,
    core would stop after one epoch, however long the run, which is what ``whole`` asks for.
    """
    weights = None if whole else blend.weights
    if weights is None and not whole and len(blend.prefixes) > 1:
        weights = tuple(float(info.tokens) for info in infos)
    return list(blend.prefixes), None if weights is None else list(weights)


def check_splits(
    core_config: Any,
    sources: Mapping[str, tuple[IndexedInfo, ...]],
    samples: SplitSamples,
    *,
    number_of: Callable[[IndexedInfo], int],
) -> list[tuple[str, IndexedInfo, range]]:
    """Refuse a split that is asked for and has no documents in one of its datasets.

    ``number_of`` a dataset is what core splits it by. Returns each split that is asked for, by its name, with each of
    its datasets and the documents that it has of it.
    """
    parts = []
    for number, (name, wanted) in enumerate(zip(_CORE_SPLITS, samples, strict=True)):
        if wanted == 0:
            continue
        asked_for = f"{'all' if wanted is None else wanted} {name} samples are asked for"
        if "--data-path" not in sources:
            own_flag = f"--{name}-data-path"
            if own_flag not in sources:
                raise UserError(f"{own_flag} is missing: {asked_for}")
            parts += [(name, info, range(number_of(info))) for info in sources[own_flag]]
            continue
        bounds = core_config.split_matrix[number]
        for info in sources["--data-path"]:
            first, end = (round(bound * float(number_of(info))) for bound in bounds or (0.0, 0.0))
            if end <= first:
                raise UserError(
                    f"--split {core_config.split}: leaves none of the {number_of(info)} documents of {info.prefix} for "
                    f"{name}, and {asked_for}; give {name} a larger share, or the splits "
                    "data of their own with --train-data-path and its siblings"
                )
            parts.append((name, info, range(first, end)))
    return parts

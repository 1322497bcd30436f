"""The training and validation datasets of a run, on Megatron-Core's builder.

    documents of .bin/.idx --split--> document index (epochs, shuffled) --> samples of S + 1 tokens --> shuffled

Samples are cut from concatenated documents; everything is drawn from ``seed``, so that every rank and every restart has
the same order. As in Megatron, the order also depends on the number of requested samples if that is more than one
epoch: to stop a run early, use ``--exit-interval``, not another ``--train-iters``.

``--full-validation`` reads one epoch of the validation data, in samples that overlap in one token: each token but the
first is a label once. The last sample is padded, and samples are added up to whole global batches; padding has no loss.

Not here: the order of reading, and microbatches (``data.microbatches``); the format of the files (``data.indexed``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron.ltd.data.config import Blend, DataConfig, IndexedDataConfig, plain_split
from megatron.ltd.data.core_builder import SplitSamples, build_splits, cache_folder, is_first_rank
from megatron.ltd.data.index_cache import is_gpt_index, remove_unless
from megatron.ltd.data.indexed import IndexedInfo, check_indexed_dataset
from megatron.ltd.data.microbatches import SampleSource
from megatron.ltd.errors import UserError
from megatron.ltd.parallel.agreement import together
from megatron.ltd.tokenizers.base import Tokenizer

_CORE_SPLITS = ("train", "valid", "test")  # Megatron-Core always has three; the last one is not used
_WHOLE_VALID: SplitSamples = (0, None, 0)


@dataclass
class _Config(GPTDatasetConfig):
    """Megatron-Core's configuration, with fingerprints of the data, because its cache is keyed by paths only."""

    data_fingerprints: tuple[str, ...] = ()


class _Dataset(GPTDataset):
    """``GPTDataset`` with two corrections: it does not use cached indices of other data with the same name, and does
    not cache the loss mask of the first sample, which may be padded, for all samples.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if not self.config.drop_last_partial_validation_sequence:
            self.masks_and_position_ids_are_cacheable = False

    def _build_document_sample_shuffle_indices(self) -> Any:
        """Megatron-Core's arrays, from the cache or built. A wrong cached index is removed first."""
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
    """The samples of ``source``, then samples without loss up to ``num_samples``."""

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
    """Check all datasets of the flags. Returns, by flag, the content of each prefix in the given order.

    Raises ``UserError`` if no data are given, or a dataset is missing, damaged or made with another tokenizer.
    """
    blends = config.blends()
    if not blends:
        raise UserError("--data-path: required; give the prefix that preprocess_data.py wrote")
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
    """Number of samples in all validation data: in each dataset all tokens but the first are labels, S per sample.

    Raises ``UserError`` if there are none.
    """
    core_config = _core_config(config, sources, _WHOLE_VALID, seq_length, seed, tokenizer)
    parts = check_splits(core_config, sources, _WHOLE_VALID, number_of=lambda info: info.sequences)
    return sum(-(-(_num_tokens(info.prefix, documents) - 1) // seq_length) for _, info, documents in parts)


def _num_tokens(prefix: str, documents: range) -> int:
    """Number of tokens in some documents of a dataset."""
    dataset = IndexedDataset(prefix)  # keep a reference: its arrays are views of memory that it owns
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
        tokenizer=tokenizer,  # not Megatron-Core's class, but with the attributes that GPTDataset uses
        reset_position_ids=config.reset_position_ids,
        reset_attention_mask=config.reset_attention_mask,
        eod_mask_loss=config.eod_mask_loss,
        create_attention_mask=False,
        drop_last_partial_validation_sequence=samples != _WHOLE_VALID,
    )


def blend_settings(
    config: IndexedDataConfig, sources: Mapping[str, tuple[IndexedInfo, ...]], samples: SplitSamples
) -> dict[str, Any]:
    """The settings of Megatron-Core's builder for the data: paths, blend, split, cache and fingerprints."""
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
        "split": plain_split(config.split) if blend else None,
        "num_dataset_builder_threads": config.num_dataset_builder_threads,
        "path_to_cache": config.data_cache_path,
        "mmap_bin_files": config.mmap_bin_files,
        "data_fingerprints": tuple(info.fingerprint for infos in sources.values() for info in infos),
    }


def _weighted(blend: Blend, infos: Sequence[IndexedInfo], *, whole: bool) -> tuple[list[str], list[float] | None]:
    """The blend for Megatron-Core. Several prefixes without weights get their token counts as weights, because without
    weights Megatron-Core stops after one epoch, which is right for ``whole``.
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
    """Raise ``UserError`` for a requested split without documents in one of its datasets.

    ``number_of`` is the number by which Megatron-Core splits a dataset. Returns for each requested split its name, each
    of its datasets, and the documents of the split in it.
    """
    parts = []
    for number, (name, wanted) in enumerate(zip(_CORE_SPLITS, samples, strict=True)):
        if wanted == 0:
            continue
        requested = f"{'all' if wanted is None else wanted} {name} samples are needed"
        if "--data-path" not in sources:
            own_flag = f"--{name}-data-path"
            if own_flag not in sources:
                raise UserError(f"{own_flag}: required, because {requested}; give the prefix of a dataset")
            parts += [(name, info, range(number_of(info))) for info in sources[own_flag]]
            continue
        bounds = core_config.split_matrix[number]
        for info in sources["--data-path"]:
            first, end = (round(bound * float(number_of(info))) for bound in bounds or (0.0, 0.0))
            if end <= first:
                raise UserError(
                    f"--split {core_config.split}: leaves none of the {number_of(info)} documents of {info.prefix} for "
                    f"{name}, and {requested}; give {name} a larger share, or separate data with --train-data-path "
                    "and --valid-data-path"
                )
            parts.append((name, info, range(first, end)))
    return parts

"""Megatron-Core's builder of datasets, which caches their indices beside the data or in ``--data-cache-path``.

Rank 0 builds the indices, and the others read them once they see the files; a node that has a folder of its own builds
its own, and all are compared (``data.indices.builders``). Cached indices are checked first (``data.indices.cache``).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.datasets import blended_dataset, blended_megatron_dataset_builder
from megatron.core.datasets.megatron_dataset import MegatronDataset

from megatron.ltd.data.config import TRAIN
from megatron.ltd.data.indices.builders import agree_on_indices, find_builder, this_rank
from megatron.ltd.data.indices.cache import is_blend_index, numbers_only, remove_unless
from megatron.ltd.data.microbatches import SampleSource
from megatron.ltd.errors import UserError, quiet_log
from megatron.ltd.parallel.agreement import together

_LINES_PER_RANK = ("megatron.core.datasets", logging.ERROR)
"""The log of Megatron-Core's datasets has lines for each rank and dataset below this level."""
_FILES_PER_DATASET, _OTHER_FILES = 9, 1024
"""Files of a dataset that stay open: three, and three of indices for each of two sets of samples if they are large."""


@dataclass
class Fingerprints:
    """What configurations of Megatron-Core lack: its cache is keyed by the paths of data only."""

    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """By prefix."""
    data_fingerprint: str | None = None
    """That of one dataset, in the configuration of that dataset."""


class FingerprintedDataset(MegatronDataset):
    """A dataset that does not use cached indices of other data with the same name."""

    def __init__(self, low_level: Any, path: str | None, *arguments: Any) -> None:
        *others, config = arguments
        own = copy(config)  # so that the key does not grow with the number of datasets
        own.data_fingerprint = None if path is None else config.fingerprints[path]
        super().__init__(low_level, path, *others, own)

    @classmethod
    def _key_config_attributes(cls) -> list[str]:
        return [*super()._key_config_attributes(), "data_fingerprint"]


class BlendedDataset(blended_dataset.BlendedDataset):
    """Megatron-Core's class, under the same name, which names its indices. They are used only if they are right."""

    def __init__(self, datasets: Sequence[MegatronDataset], *arguments: Any) -> None:
        for dataset in datasets:  # their hashes say as much in the key of the blend as their descriptions
            dataset.unique_identifiers = dataset.unique_description_hash
        super().__init__(datasets, *arguments)

    def _build_indices(self) -> Any:
        """Megatron-Core's arrays, from the cache or built. A wrong cached index is removed first."""
        if self.config.path_to_cache:
            sizes = [len(dataset) for dataset in self.datasets]
            num_samples = sum(self.weights) if self.size is None else self.size
            remove_wrong_indices(
                self,
                partial(is_blend_index, sizes=sizes, num_samples=num_samples),
                f"-{self.split.name}",
                ("dataset_index", "dataset_sample_index"),
            )
        return super()._build_indices()


def build_sets(
    dataset_class: type,
    core_config: Callable[[str, int | None], Any],
    train_samples: int,
    eval_samples: Mapping[str, int | None],
    *,
    build_on_this_rank: bool = True,
) -> tuple[SampleSource | None, dict[str, SampleSource]]:
    """The training samples (None if 0 are wanted), and those of each of ``eval_samples`` (None: its data once).

    For any dataset of Megatron-Core; every rank calls this. ``core_config`` makes the configuration of a set from its
    key and its number of samples, and checks them. Raises ``UserError`` on every rank if one does not accept a
    configuration, or cannot write its index cache or see it, or if two indices differ.
    """
    built: dict[str, SampleSource] = {}
    train: dict[str, int | None] = {TRAIN: train_samples} if train_samples else {}
    for key, samples in {**train, **eval_samples}.items():
        with together():
            set_config = core_config(key, samples)
        splits = (samples, 0, 0) if key == TRAIN else (0, samples, 0)
        dataset = _build_samples(dataset_class, set_config, splits, build_on_this_rank=build_on_this_rank)
        if dataset is not None:
            built[key] = dataset
    return built.pop(TRAIN, None), built


def _build_samples(
    dataset_class: type,
    core_config: Any,
    samples: tuple[int | None, int | None, int | None],
    *,
    build_on_this_rank: bool,
) -> SampleSource | None:
    """Run Megatron-Core's builder on a checked configuration.

    ``samples`` of training, validation and test: one of them is wanted, None for all data once, the others are 0.
    """
    if core_config.split_matrix is not None:
        # A split that is not used is not built: Megatron-Core would never finish if it has no documents.
        core_config.split_matrix = [
            bounds if wanted != 0 else None for bounds, wanted in zip(core_config.split_matrix, samples, strict=True)
        ]
    number = max(
        [len(blend[0]) for blend in (core_config.blend, *(core_config.blend_per_split or ())) if blend], default=0
    )
    _allow_open_files(_FILES_PER_DATASET * number + _OTHER_FILES)

    def build() -> SampleSource | None:
        builder = blended_megatron_dataset_builder.BlendedMegatronDatasetBuilder(
            dataset_class, list(samples), lambda: True, core_config
        )
        with (
            quiet_log(*_LINES_PER_RANK),
            _own_blend(),
            numbers_only(),
            _errors_of_files(core_config.path_to_cache, number),
        ):
            return next(found for found, wanted in zip(builder.build(), samples, strict=True) if wanted != 0)

    if core_config.mock:  # without indices on a disk
        with _as_rank(0):
            return build() if build_on_this_rank else None
    owner, built = find_builder(_some_folders(dataset_class, core_config), reads=build_on_this_rank), None
    is_owner = owner == this_rank()
    with together():
        if is_owner:
            with _as_rank(0):
                built = build()
    agree_on_indices(_index_files(built), owner)
    with together():
        if build_on_this_rank and not is_owner:
            with _as_rank(1):
                built = build()
    return built


@contextlib.contextmanager
def _as_rank(rank: int) -> Iterator[None]:
    """Within the block Megatron-Core's datasets build missing indices if ``rank`` is 0, and otherwise only read them.

    They do not wait for other ranks, so that an error ends as ``together`` says.
    """
    get_rank, barrier = torch.distributed.get_rank, torch.distributed.barrier
    torch.distributed.get_rank, torch.distributed.barrier = lambda *_, **__: rank, lambda *_, **__: None
    try:
        yield
    finally:
        torch.distributed.get_rank, torch.distributed.barrier = get_rank, barrier


@contextlib.contextmanager
def _errors_of_files(cache: str | None, num_datasets: int) -> Iterator[None]:
    """Within the block an ``OSError`` is raised as a ``UserError``."""
    try:
        yield
    except Exception as error:
        # With a process group the builder wraps the OSError of a failed write.
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        if cause.errno == errno.EMFILE:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise UserError(
                f"--data-path: {num_datasets} datasets need more open files than this process may have ({soft}, at "
                f"most {hard}); raise the limit (ulimit -n), or join datasets with merge_datasets.py"
            ) from None
        where = f"--data-cache-path {cache}" if cache else "the folder of the data"
        raise UserError(
            f"{where}: sample indices cannot be written or read ({cause}); use another folder with --data-cache-path"
        ) from None


def _some_folders(dataset_class: type, core_config: Any) -> list[Path]:
    """The folder of indices, or of the data in each folder the one of the first dataset."""
    if core_config.path_to_cache:
        return [Path(core_config.path_to_cache)]
    blends = [blend for blend in (core_config.blend, *(core_config.blend_per_split or ())) if blend]
    first = {Path(prefix).parent: prefix for blend in blends for prefix in reversed(blend[0])}
    return [_beside(prefix, dataset_class) for prefix in first.values()]


def _index_files(built: Any) -> list[Path]:
    """The arrays of the indices of a dataset, or of a blend and its datasets; none for None."""
    keys: dict[Path, set[str]] = {}
    for part in () if built is None else (*getattr(built, "datasets", ()), built):
        if part.config.path_to_cache or isinstance(part, MegatronDataset):  # else a blend that is not cached
            keys.setdefault(_cache_folder(part), set()).add(part.unique_description_hash)
    return [
        path
        for folder, hashes in keys.items()
        for path in sorted(folder.glob("*.npy"))
        if path.name.partition("-")[0] in hashes
    ]


def _allow_open_files(number: int) -> None:
    """Raise this process's own limit of open files to ``number``, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        allowed = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def remove_wrong_indices(dataset: Any, is_right: Callable[..., bool], suffix: str, names: Sequence[str]) -> None:
    """Remove the cached indices of ``dataset``, whose files Megatron-Core names so, unless they are right.

    See ``data.indices.cache.remove_unless``; the process that builds indices does it.
    """
    if is_first_rank():
        stem = f"{dataset.unique_description_hash}-{type(dataset).__name__}{suffix}"
        remove_unless(is_right, _cache_folder(dataset), stem, names)


def _cache_folder(dataset: Any) -> Path:
    """The folder in which Megatron-Core caches the indices of ``dataset``."""
    cache = dataset.config.path_to_cache
    return Path(cache) if cache else _beside(dataset.dataset.path_prefix, type(dataset))


def _beside(prefix: str, dataset_class: type) -> Path:
    return Path(prefix, "cache", f"{dataset_class.__name__}_indices")


def is_first_rank() -> bool:
    """Whether this process is rank 0, or the only one; while samples are built, whether it builds their indices."""
    return this_rank() == 0


@contextlib.contextmanager
def _own_blend() -> Iterator[None]:
    """Within the block Megatron-Core's builder uses our class for blends."""
    blended_megatron_dataset_builder.BlendedDataset = BlendedDataset
    try:
        yield
    finally:
        blended_megatron_dataset_builder.BlendedDataset = blended_dataset.BlendedDataset

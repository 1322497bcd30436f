"""Megatron-Core's builder of datasets, which caches their indices beside the data or in ``--data-cache-path``.

Rank 0 builds the indices, and the others read them once all of them see the files. Cached indices are checked first
(``data.index_cache``).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.datasets import blended_dataset, blended_megatron_dataset_builder
from megatron.core.datasets.megatron_dataset import MegatronDataset

from megatron.ltd.data.index_cache import is_blend_index, numbers_only, remove_unless
from megatron.ltd.data.microbatches import SampleSource
from megatron.ltd.errors import UserError
from megatron.ltd.parallel.agreement import agree_on_folder

_FILES_PER_DATASET, _OTHER_FILES = 9, 1024
"""Files of a dataset that stay open: three, and three of indices for each of two sets of samples if they are large."""


class BlendedDataset(blended_dataset.BlendedDataset):
    """Megatron-Core's class, under the same name, which names its indices. They are used only if they are right."""

    def __init__(self, datasets: Sequence[MegatronDataset], *arguments: Any) -> None:
        for dataset in datasets:  # their hashes say as much in the key of the blend as their descriptions
            dataset.unique_identifiers = dataset.unique_description_hash
        super().__init__(datasets, *arguments)

    def _build_indices(self) -> Any:
        """Megatron-Core's arrays, from the cache or built. A wrong cached index is removed first."""
        cache = self.config.path_to_cache
        if cache and is_first_rank():
            sizes = [len(dataset) for dataset in self.datasets]
            num_samples = sum(self.weights) if self.size is None else self.size
            remove_unless(
                partial(is_blend_index, sizes=sizes, num_samples=num_samples),
                Path(cache),
                f"{self.unique_description_hash}-{type(self).__name__}-{self.split.name}",
                ("dataset_index", "dataset_sample_index"),
            )
        return super()._build_indices()


def build_samples(
    dataset_class: type,
    core_config: Any,
    samples: tuple[int | None, int | None, int | None],
    *,
    build_on_this_rank: bool,
) -> SampleSource | None:
    """Run Megatron-Core's builder on a checked configuration, for any of its datasets. Every rank calls this.

    ``samples`` of training, validation and test: one of them is wanted, None for all data once, the others are 0.
    Raises ``UserError`` if the index cache cannot be written, and on every rank if one does not see it.
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

    def build(here: bool) -> SampleSource | None:
        builder = blended_megatron_dataset_builder.BlendedMegatronDatasetBuilder(
            dataset_class, list(samples), lambda: here, core_config
        )
        return next(found for found, wanted in zip(builder.build(), samples, strict=True) if wanted != 0)

    try:
        with _quiet_core(), _own_blend(), numbers_only():
            built = build(build_on_this_rank and is_first_rank())
            if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
                _agree_on_indices(built)
                others = build(build_on_this_rank and not is_first_rank())
                built = built if is_first_rank() else others
            return built
    except Exception as error:
        # With a process group the builder wraps the OSError of a failed write.
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        if cause.errno == errno.EMFILE:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise UserError(
                f"--data-path: {number} datasets need more open files than this process may have ({soft}, at most "
                f"{hard}); raise the limit (ulimit -n), or join datasets with merge_datasets.py"
            ) from None
        cache = core_config.path_to_cache
        where = f"--data-cache-path {cache}" if cache else "the folder of the data"
        raise UserError(
            f"{where}: sample indices cannot be written ({cause}); use a writable folder with --data-cache-path"
        ) from None


def _agree_on_indices(built: Any) -> None:
    """Raise ``UserError`` on every rank if one does not see an index of rank 0, of each folder that has some."""
    parts = () if built is None or built.config.mock else getattr(built, "datasets", (built,))
    folders = {cache_folder(part): f"{part.unique_description_hash}-*description.txt" for part in parts}
    written: list[Any] = [[str(path) for folder, name in folders.items() for path in folder.glob(name)]]
    torch.distributed.broadcast_object_list(written, src=0)

    def look() -> dict[str, str]:
        missing = [path for path in written[0] if not Path(path).is_file()]
        return {"what a node sees of the sample indices of rank 0": f"all but {missing[0]}" if missing else "all"}

    agree_on_folder(look, "use a folder that all nodes share with --data-cache-path")


def _allow_open_files(number: int) -> None:
    """Raise this process's own limit of open files to ``number``, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        allowed = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def cache_folder(dataset: MegatronDataset) -> Path:
    """The folder in which Megatron-Core caches the indices of ``dataset``."""
    beside = Path(dataset.dataset.path_prefix, "cache", f"{type(dataset).__name__}_indices")
    return Path(dataset.config.path_to_cache or beside)


def is_first_rank() -> bool:
    """Whether this process is rank 0, or the only one."""
    return not (torch.distributed.is_available() and torch.distributed.is_initialized()) or (
        torch.distributed.get_rank() == 0
    )


@contextlib.contextmanager
def _own_blend() -> Iterator[None]:
    """Within the block Megatron-Core's builder uses our class for blends."""
    blended_megatron_dataset_builder.BlendedDataset = BlendedDataset
    try:
        yield
    finally:
        blended_megatron_dataset_builder.BlendedDataset = blended_dataset.BlendedDataset


@contextlib.contextmanager
def _quiet_core() -> Iterator[None]:
    """Silence the log of Megatron-Core's dataset modules below errors, which has lines per rank and dataset."""
    logger = logging.getLogger("megatron.core.datasets")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""The data of a run, and how documents are treated. Imports no torch.

Names and meanings are Megatron-LM's. A blend is the value of ``--data-path``:

    PREFIX                        one indexed dataset, PREFIX.bin and PREFIX.idx
    WEIGHT PREFIX WEIGHT PREFIX   samples are drawn in proportion to the weights
    PREFIX PREFIX                 samples are drawn in proportion to the datasets' tokens

Not here: ``--seq-length`` (the model's), batch sizes (the training's), and whether the files exist (``data.indexed``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron.ltd.data.labelled_text import Columns
from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag

SPLIT_NAMES = ("train", "valid")


class Blend(NamedTuple):
    """Dataset prefixes, and the weight of each (None: by their number of tokens)."""

    prefixes: tuple[str, ...]
    weights: tuple[float, ...] | None


@dataclass(frozen=True)
class ReadingConfig:
    """reading"""

    num_workers: int | None = flag(
        None,
        affects="nothing",
        metavar="N",
        help="processes that read data on each rank; by default 0 on CPU and 2 on GPU",
    )

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 0:
            raise UserError(f"--num-workers {self.num_workers}: it must be at least 0; 0 reads in the training process")

    def workers_on(self, device_type: str) -> int:
        """Data processes of a rank on ``device_type`` ("cpu" or "cuda"). On a CPU they would compete with the model."""
        if self.num_workers is not None:
            return self.num_workers
        return 0 if device_type == "cpu" else 2


@dataclass(frozen=True)
class IndexedDataConfig(ReadingConfig):
    """indexed data"""

    data_path: tuple[str, ...] = flag(
        (), affects="order", metavar="PREFIX", help="PREFIX, or WEIGHT PREFIX WEIGHT PREFIX ...: split by --split"
    )
    split: str = flag(
        "969,30,1",
        affects="order",
        metavar="T,V,T",
        help="shares of the documents of --data-path for training and validation; the third is left unread",
    )
    train_data_path: tuple[str, ...] = flag(
        (),
        affects="order",
        metavar="PREFIX",
        help="training data of its own, like --data-path; instead of --data-path and --split",
    )
    valid_data_path: tuple[str, ...] = flag(
        (), affects="execution", metavar="PREFIX", help="validation data, beside --train-data-path"
    )
    data_cache_path: str | None = flag(
        None,
        affects="nothing",
        metavar="DIR",
        help="where sample indices are kept; by default PREFIX/cache, beside the data",
    )
    num_dataset_builder_threads: int = flag(
        1, affects="nothing", metavar="N", help="threads that build the indices of a blend's datasets"
    )
    mmap_bin_files: bool = flag(
        True, affects="nothing", name="no-mmap-bin-files", help="read .bin files instead of mapping them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_path and self.per_split_paths:
            flags = ", ".join(f"--{name}-data-path" for name in self.per_split_paths)
            raise UserError(
                f"--data-path and {flags}: they exclude each other; give --data-path with --split, or one per split"
            )
        if self.per_split_paths and "train" not in self.per_split_paths:
            flags = ", ".join(f"--{name}-data-path" for name in self.per_split_paths)
            raise UserError(f"{flags}: it needs --train-data-path; add it")
        self.blends()
        parse_split(self.split)
        if self.num_dataset_builder_threads < 1:
            raise UserError(f"--num-dataset-builder-threads {self.num_dataset_builder_threads}: it must be at least 1")

    @property
    def per_split_paths(self) -> dict[str, tuple[str, ...]]:
        """``--train-data-path`` and its siblings by split name, those that are given."""
        paths = zip(SPLIT_NAMES, (self.train_data_path, self.valid_data_path), strict=True)
        return {name: path for name, path in paths if path}

    def blends(self) -> dict[str, Blend]:
        """The blend behind each flag that is given: ``{"--data-path": ...}`` or one per ``--<split>-data-path``."""
        if self.data_path:
            return {"--data-path": parse_blend("--data-path", self.data_path)}
        return {
            f"--{name}-data-path": parse_blend(f"--{name}-data-path", path)
            for name, path in self.per_split_paths.items()
        }


@dataclass(frozen=True)
class DataConfig(IndexedDataConfig):
    """data"""

    reset_position_ids: bool = flag(False, affects="numbers", help="positions start at 0 after every end of document")
    reset_attention_mask: bool = flag(False, affects="numbers", help="tokens attend only within their own document")
    eod_mask_loss: bool = flag(False, affects="numbers", help="no loss where the input token is an end of document")
    full_validation: bool = flag(
        False,
        affects="execution",
        help="an evaluation takes all validation data, each token once, instead of --eval-iters batches",
    )


@dataclass(frozen=True)
class ImageDataConfig(ReadingConfig):
    """images"""

    data_path: str | None = flag(
        None,
        affects="order",
        metavar="NAME",
        help="images that come with a library: digits, scikit-learn's 1,797 of 8 x 8 pixels",
    )
    train_data_path: str | None = flag(
        None,
        affects="order",
        metavar="PATH",
        help="a folder with one sub-folder per class, or a .npz file of images and labels",
    )
    valid_data_path: str | None = flag(
        None, affects="execution", metavar="PATH", help="images to evaluate on, beside --train-data-path"
    )
    image_mean: tuple[float, ...] = flag(
        (0.5,),
        affects="numbers",
        help="mean that is subtracted from pixels between 0 and 1: one for all channels, or one each",
    )
    image_std: tuple[float, ...] = flag(
        (0.5,), affects="numbers", help="standard deviation by which pixels are then divided"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_path is not None and (self.train_data_path or self.valid_data_path):
            raise UserError(
                f"--data-path {self.data_path}: it holds training and validation images; drop it, or "
                "--train-data-path and --valid-data-path"
            )
        if self.data_path not in (None, "digits"):
            raise UserError(
                f"--data-path {self.data_path}: only digits come with a library; give your own with "
                "--train-data-path and --valid-data-path"
            )
        if any(std <= 0.0 for std in self.image_std):
            raise UserError(f"--image-std {' '.join(map(str, self.image_std))}: each value must be above 0")

    def check_given(self) -> None:
        """Raises ``UserError`` if no training images are given: a run needs them, and its plan does not."""
        if self.data_path is None and self.train_data_path is None:
            raise UserError("--train-data-path: required; give a folder with one sub-folder per class, or a .npz file")


@dataclass(frozen=True)
class LabelledTextConfig(ReadingConfig):
    """labelled sentences"""

    train_data_path: str | None = flag(
        None,
        affects="order",
        metavar="FILE",
        help="labelled sentences, .tsv (the first line names the columns) or .jsonl",
    )
    valid_data_path: str | None = flag(
        None, affects="execution", metavar="FILE", help="held-out ones, all of which every evaluation takes"
    )
    text_column: str = flag(
        "text", affects="order", help="column of a .tsv file, or key of a .jsonl line, that holds the sentence"
    )
    text_pair_column: str | None = flag(
        None, affects="order", metavar="TEXT", help="the same of the second sentence, where samples are pairs"
    )
    label_column: str = flag("label", affects="order", help="the same of the label, a word or a whole number")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_column in (self.text_column, self.text_pair_column):
            raise UserError(
                f"--label-column {self.label_column}: it is also a column of sentences; name another one for each"
            )
        if self.train_data_path is None:
            raise UserError("--train-data-path: required; give a .tsv or .jsonl file of labelled sentences")

    @property
    def columns(self) -> Columns:
        """The columns of a sample's sentences and label."""
        return Columns(self.text_column, self.label_column, self.text_pair_column)


@dataclass(frozen=True)
class BertDataConfig(IndexedDataConfig):
    """data"""

    mask_prob: float = flag(0.15, affects="order", help="share of a sample's tokens that are masked")
    short_seq_prob: float = flag(0.1, affects="order", help="share of samples that are cut to a random, shorter length")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.mask_prob < 1.0:
            raise UserError(f"--mask-prob {self.mask_prob}: it must be above 0 and below 1; BERT's is 0.15")
        if not 0.0 <= self.short_seq_prob <= 1.0:
            raise UserError(f"--short-seq-prob {self.short_seq_prob}: it must be in [0, 1]; BERT's is 0.1")


def parse_blend(flag_spelling: str, values: Sequence[str]) -> Blend:
    """Read the value of ``--data-path``: see the top of this file. Raises ``UserError`` naming ``flag_spelling``."""
    shown = f"{flag_spelling} {' '.join(values)}"
    first, second = values[0::2], values[1::2]
    weights = [_weight(value) for value in first]
    if len(values) == 1 or all(weight is None for weight in weights):
        prefixes = tuple(values)
        if any(_weight(value) is not None for value in second):
            raise UserError(f"{shown}: a weight comes before its prefix; write WEIGHT PREFIX WEIGHT PREFIX")
        result = Blend(prefixes, None)
    elif any(weight is None for weight in weights) or len(first) != len(second):
        raise UserError(f"{shown}: give a weight before every prefix, or no weights")
    else:
        if any(not (math.isfinite(weight) and weight > 0) for weight in weights if weight is not None):
            raise UserError(f"{shown}: weights must be above 0; leave a dataset out to give it no weight")
        prefixes = tuple(second)
        result = Blend(prefixes, tuple(weight for weight in weights if weight is not None))
    for prefix in prefixes:
        if prefix.endswith((".bin", ".idx")):
            raise UserError(f"{flag_spelling} {prefix}: give the prefix without {prefix[-4:]}: {prefix[:-4]}")
    return result


def parse_split(split: str) -> tuple[float, float, float]:
    """The shares of train, valid and test, adding up to 1. Raises ``UserError`` naming ``--split``."""
    try:
        shares = [float(part) for part in split.strip("'\"").split(",")]  # scripts quote twice
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 3 or any(not math.isfinite(share) or share < 0 for share in shares) or sum(shares) <= 0:
        raise UserError(
            f"--split {split}: give one to three shares of train, valid, test that are not negative, such as 969,30,1"
        )
    train, valid, test = (share / sum(shares) for share in [*shares, 0.0, 0.0][:3])
    return train, valid, test


def _weight(value: str) -> float | None:
    """``value`` as a number, or None: a prefix."""
    try:
        return float(value)
    except ValueError:
        return None

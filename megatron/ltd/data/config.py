"""The data of a run, and how documents are treated. Imports no torch.

Names and meanings are Megatron-LM's. Not here: the values of ``--data-path`` (``data.blends``), ``--seq-length`` (the
model's), batch sizes (the training's), and whether the files exist (``data.indexed``).
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.data.blends import Blend, blend_file, parse_blend, parse_sets, plain_split, split_file
from megatron.ltd.data.labelled_text import Columns
from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import Range

ALL, TRAIN, VALID, TEST = "data_path", "train_data_path", "valid_data_path", "test_data_path"
"""What blends are for, by the ids of their flags. A named validation set has its name after a slash."""


@dataclass(frozen=True)
class ReadingConfig(Settings):
    """reading"""

    num_workers: int | None = flag(
        None,
        range=Range(0, 64),
        affects="nothing",
        metavar="N",
        help="processes that read data on each rank; by default 0 on CPU and 2 on GPU",
    )

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
        (),
        affects="execution",
        metavar="PREFIX",
        help="validation data, beside --train-data-path; NAME=PREFIX NAME=PREFIX ... are sets with a loss of their own",
    )
    test_data_path: tuple[str, ...] = flag(
        (),
        affects="execution",
        metavar="PREFIX",
        help="data of a last evaluation after the last step, beside --train-data-path",
    )
    data_args_path: str | None = flag(
        None, affects="order", metavar="FILE", help="a file with the value of --data-path, for long ones"
    )
    per_split_data_args_path: str | None = flag(
        None,
        affects="order",
        metavar="FILE",
        help="a JSON file with the values of --train-data-path, --valid-data-path and --test-data-path under train, "
        "valid and test",
    )
    data_cache_path: str | None = flag(
        None,
        affects="nothing",
        metavar="DIR",
        help="where sample indices are kept; by default PREFIX/cache, beside the data",
    )
    num_dataset_builder_threads: int = flag(
        1,
        range=Range(1, 1 << 10),
        affects="nothing",
        metavar="N",
        help="threads that build the indices of a blend's datasets",
    )
    mmap_bin_files: bool = flag(
        True, affects="nothing", name="no-mmap-bin-files", help="read .bin files instead of mapping them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        own = [f"--{name}-data-path" for name in ("train", "valid", "test") if getattr(self, f"{name}_data_path")]
        if own and "--train-data-path" not in own:
            raise UserError(f"{', '.join(own)}: it needs --train-data-path; add it")
        kinds = {
            "--data-path": self.data_path,
            "--data-args-path": self.data_args_path,
            "--per-split-data-args-path": self.per_split_data_args_path,
            ", ".join(own): own,
            "--mock-data": getattr(self, "mock_data", False),
        }
        given = [flags for flags, value in kinds.items() if value]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: each says which data are read; keep one")
        self.blends()
        plain_split(self.split)

    def blends(self) -> dict[str, Blend]:
        """By ``ALL``, or by ``TRAIN``, ``VALID`` (or ``VALID/name`` for each set) and ``TEST``, what the flags give.

        Reads the file of a flag. Raises ``UserError``.
        """
        if self.data_path:
            return {ALL: parse_blend("--data-path", self.data_path)}
        if self.data_args_path is not None:
            return {ALL: blend_file(self.data_args_path)}
        if self.per_split_data_args_path is not None:
            splits = split_file(self.per_split_data_args_path)
        else:
            splits = {
                "train": {"": parse_blend("--train-data-path", self.train_data_path)} if self.train_data_path else {},
                "valid": parse_sets("--valid-data-path", self.valid_data_path) if self.valid_data_path else {},
                "test": {"": parse_blend("--test-data-path", self.test_data_path)} if self.test_data_path else {},
            }
        return {
            f"{split}_data_path" + (f"/{name}" if name else ""): blend
            for split, blends in splits.items()
            for name, blend in blends.items()
        }

    def evaluated(self) -> list[str]:
        """What is evaluated: ``VALID``, or each of its sets, and ``TEST`` if there is one."""
        found = [key for key in self.blends() if key.partition("/")[0] in (VALID, TEST)]
        return found if any(key.startswith(VALID) for key in found) else [VALID, *found]


@dataclass(frozen=True)
class DataConfig(IndexedDataConfig):
    """data"""

    mock_data: bool = flag(
        False, affects="order", help="made-up documents instead of files: a first test of a model and a machine"
    )
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
        range=Range(-1e6, 1e6),
        affects="numbers",
        help="mean that is subtracted from pixels between 0 and 1: one for all channels, or one each",
    )
    image_std: tuple[float, ...] = flag(
        (0.5,),
        range=Range(0, 1e6, above=True),
        affects="numbers",
        help="standard deviation by which pixels are then divided",
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

    def check_given(self) -> None:
        """Raises ``UserError`` if no training images are given: a run needs them, and its plan does not."""
        if self.data_path is None and self.train_data_path is None:
            raise UserError("--train-data-path: required; give a folder with one sub-folder per class, or a .npz file")


@dataclass(frozen=True)
class LabelledTextConfig(ReadingConfig):
    """labelled sentences"""

    train_data_path: str = flag(
        None,
        affects="order",
        metavar="FILE",
        help="labelled sentences, .tsv (the first line names the columns) or .jsonl",
        required="give a .tsv or .jsonl file of labelled sentences",
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

    @property
    def columns(self) -> Columns:
        """The columns of a sample's sentences and label."""
        return Columns(self.text_column, self.label_column, self.text_pair_column)


@dataclass(frozen=True)
class BertDataConfig(IndexedDataConfig):
    """data"""

    mask_prob: float = flag(
        0.15,
        range=Range(0, 1, above=True, below=True),
        affects="order",
        help="share of a sample's tokens that are masked",
    )
    short_seq_prob: float = flag(
        0.1, range=Range(0, 1), affects="order", help="share of samples that are cut to a random, shorter length"
    )

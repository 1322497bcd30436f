"""From text to samples: datasets that Megatron-Core builds from our data, against the tokenizer's output."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset

from megatron.ltd.data.config import TEST, VALID, DataConfig
from megatron.ltd.data.datasets import Padded, build_datasets, num_whole_samples
from megatron.ltd.data.indices import size
from megatron.ltd.data.microbatches import SampleSource
from megatron.ltd.data.sources import check_sources
from megatron.ltd.tokenizers.byte import ByteTokenizer
from tests.support_errors import refused
from tests.unit.data.test_indexed import core_dataset

TOKENIZER = ByteTokenizer()
TEXTS = [f"document {number} says {'so ' * (number % 7)}" for number in range(40)]


def build_all(config: DataConfig, train: int, evaluated: Mapping[str, int | None], seed: int = 1) -> Any:
    return build_datasets(
        config, seq_length=16, seed=seed, train_samples=train, eval_samples=evaluated, tokenizer=TOKENIZER,
        sources=check_sources(config, TOKENIZER),
    )  # fmt: skip


def build(config: DataConfig, train: int = 0, valid: int | None = 0, seed: int = 1) -> tuple[Any, Any]:
    found, evaluated = build_all(config, train, {} if valid == 0 else {VALID: valid}, seed)
    return found, evaluated.get(VALID)


def train_only(config: DataConfig, samples: int, seed: int = 1) -> Any:
    train, evaluated = build_all(config, samples, {}, seed)
    assert train is not None and not evaluated
    return train


def tokens_of(dataset: SampleSource, count: int) -> list[list[int]]:
    return [dataset[index]["tokens"].tolist() for index in range(count)]


def test_samples_are_the_tokenized_text(write_dataset: Callable[..., str]) -> None:
    prefix = write_dataset(TEXTS)
    documents = [tuple([*TOKENIZER.encode(text), TOKENIZER.eod]) for text in TEXTS]
    total = sum(map(len, documents))
    samples = (total - 1) // 16
    dataset = train_only(DataConfig(data_path=(prefix,), split="1"), samples)
    assert len(dataset) == samples
    for index in range(samples):
        sample = dataset[index]
        assert torch.equal(sample["tokens"][1:], sample["labels"][:-1])
        assert sample["loss_mask"].tolist() == [1.0] * 16
        assert sample["position_ids"].tolist() == list(range(16))
    # One epoch holds every token once, except those of the last, incomplete sample.
    seen = Counter(token for tokens in tokens_of(dataset, samples) for token in tokens)
    missing = Counter(token for document in documents for token in document) - seen
    assert sum(seen.values()) == samples * 16 and missing.total() == total - samples * 16
    # Samples in the order in which they were cut are the documents one after another.
    cut_order = numpy.argsort(dataset.shuffle_index)
    stream = [token for index in cut_order for token in dataset[int(index)]["tokens"].tolist()]
    ends = [place for place, token in enumerate(stream) if token == TOKENIZER.eod]
    for begin, end in zip(ends[:-1], ends[1:], strict=True):
        assert tuple(stream[begin + 1 : end + 1]) in documents


def test_the_order_depends_only_on_the_seed(write_dataset: Callable[..., str], tmp_path: Path) -> None:
    prefix = write_dataset(TEXTS)
    config = DataConfig(data_path=(prefix,), split="1", data_cache_path=str(tmp_path / "cache"))
    first = tokens_of(train_only(config, 60), 60)
    assert tokens_of(train_only(config, 60), 60) == first
    assert tokens_of(train_only(DataConfig(data_path=(prefix,), split="1"), 60), 60) == first
    assert tokens_of(train_only(config, 60, seed=2), 60) != first
    assert any(name.endswith("shuffle_index.npy") for name in os.listdir(tmp_path / "cache"))


def test_indices_of_replaced_data_are_not_used(write_dataset: Callable[..., str]) -> None:
    config = DataConfig(data_path=(write_dataset(TEXTS),), split="1")
    train_only(config, 30)
    write_dataset(["a" * 700])
    seen = {*sum(tokens_of(train_only(config, 30), 30), [])}
    assert seen <= {ord("a"), TOKENIZER.eod}


@pytest.mark.parametrize("split", ["8,1,1", "8e2,1e2,1e2", "8_000,1_000,1_000", " 0.8, 1e-1 ,.1"])
def test_splits_share_no_document(write_dataset: Callable[..., str], split: str) -> None:
    texts = [chr(0x20 + number) * 40 for number in range(60)]
    train, valid = build(DataConfig(data_path=(write_dataset(texts),), split=split), train=50, valid=5)
    seen = [{*sum(tokens_of(*part), [])} - {TOKENIZER.eod} for part in ((train, 100), (valid, 5))]
    assert seen[0] <= set(range(0x20, 0x20 + 48)) and len(seen[0]) == 48
    assert seen[1] <= set(range(0x20 + 48, 0x20 + 54))


def test_validation_sets_and_test_data(write_dataset: Callable[..., str]) -> None:
    """Each validation set contains its own text, and is read as if it were the only one."""
    a, b, c, d = (write_dataset([letter * 300], letter) for letter in "abcd")
    config = DataConfig(train_data_path=(a,), valid_data_path=(f"x={b}", f"y={c}"), test_data_path=("1", d, "1", c))
    train, evaluated = build_all(config, 10, dict.fromkeys(config.evaluated(), 4))
    assert list(evaluated) == [f"{VALID}/x", f"{VALID}/y", TEST]
    seen = [{*sum(tokens_of(found, 4), [])} - {TOKENIZER.eod} for found in (train, *evaluated.values())]
    assert seen == [{ord("a")}, {ord("b")}, {ord("c")}, {ord("c"), ord("d")}]
    _, alone = build(DataConfig(train_data_path=(a,), valid_data_path=(b,)), valid=4)
    assert tokens_of(alone, 4) == tokens_of(evaluated[f"{VALID}/x"], 4)
    assert tokens_of(train, 10) == tokens_of(train_only(DataConfig(train_data_path=(a,)), 10), 10)


def test_mock_data_need_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Successive numbers, which a model can learn; the same each time, and others for validation."""
    monkeypatch.chdir(tmp_path)
    (first, held_out), (again, _) = (build(DataConfig(mock_data=True), train=30, valid=8) for _ in range(2))
    tokens = tokens_of(first, 30)
    assert tokens == tokens_of(again, 30) and tokens[:8] != tokens_of(held_out, 8)
    assert all(0 <= token < TOKENIZER.vocab_size for sample in tokens for token in sample)
    steps = [(after - before) % 257 for sample in tokens for before, after in zip(sample, sample[1:], strict=False)]
    assert steps.count(1) > 0.95 * len(steps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("valid", [4, None])
def test_a_share_without_tokens_is_refused(
    write_dataset: Callable[..., str], tmp_path: Path, valid: int | None
) -> None:
    """Megatron-Core would add empty epochs forever."""
    prefix = write_dataset(TEXTS)
    empty = core_dataset(tmp_path / "empty", [[1] * 5] * 8 + [[], []])
    train, _ = build(DataConfig(data_path=(empty,), split="8,2"), train=4)
    assert len(train) >= 4
    for path in ((empty,), ("1", prefix, "1", empty)):
        with refused("--split 8,2", "empty", "9 to 10", "valid"):
            build(DataConfig(data_path=path, split="8,2"), train=4, valid=valid)
        with refused("--split 8e0,2", "empty"):
            build(DataConfig(data_path=path, split="8e0,2"), train=4, valid=valid)


@pytest.mark.parametrize("num_datasets", [2, 40])
def test_what_a_dataset_takes_does_not_grow_with_the_blend(
    write_dataset: Callable[..., str], tmp_path: Path, num_datasets: int
) -> None:
    """Of 2,400 datasets each key would hold all fingerprints; and each dataset keeps three files open, not twelve."""
    prefix = write_dataset(TEXTS)
    paths = []
    for number in range(num_datasets):
        for suffix in (".bin", ".idx"):
            (tmp_path / f"{number}{suffix}").symlink_to(f"{prefix}{suffix}")
        paths += ["1", str(tmp_path / str(number))]
    open_files = len(os.listdir("/proc/self/fd"))
    held = build(DataConfig(data_path=tuple(paths), split="5,5"), train=60, valid=60)
    assert held and len(os.listdir("/proc/self/fd")) <= open_files + 3 * num_datasets
    keys = [*tmp_path.glob("*/cache/*/*description.txt")]
    assert len(keys) == 2 * num_datasets and max(key.stat().st_size for key in keys) < 1500


def test_the_limit_of_open_files_is_raised_or_named(write_dataset: Callable[..., str]) -> None:
    config = DataConfig(data_path=(write_dataset(TEXTS),), split="1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        train_only(config, 10)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.MonkeyPatch.context() as patch, refused("--data-path", "ulimit -n"):
        patch.setattr(GPTDataset, "build_low_level_dataset", staticmethod(_no_more_files))
        train_only(config, 10)


def _no_more_files(*_: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize(("blend", "share"), [(("3", "A", "1", "B"), 0.75), (("A", "B"), 0.2)])
def test_blends_sample_by_weight_and_beyond_an_epoch(
    blend: tuple[str, ...], share: float, write_dataset: Callable[..., str]
) -> None:
    prefixes = {"A": write_dataset(["a" * 199], "a"), "B": write_dataset(["b" * 799], "b")}
    dataset = train_only(DataConfig(data_path=tuple(prefixes.get(part, part) for part in blend), split="1"), 200)
    assert len(dataset) >= 200
    from_a = sum(ord("a") in tokens for tokens in tokens_of(dataset, 200))
    assert abs(from_a / 200 - share) < 0.02


def test_document_flags_reach_the_samples(write_dataset: Callable[..., str]) -> None:
    config = DataConfig(
        data_path=(write_dataset(["abc"] * 50),), split="1", reset_position_ids=True, eod_mask_loss=True
    )
    sample = train_only(config, 10)[0]
    is_end = sample["tokens"] == TOKENIZER.eod
    assert torch.equal(sample["loss_mask"], (~is_end).float())
    first = int(is_end.nonzero()[0])
    assert sample["position_ids"].tolist() == [*range(first + 1), *([0, 1, 2, 3] * 4)[: 15 - first]]


@pytest.mark.parametrize("how", ["split", "own data", "blend of own data", "blend with a split"])
def test_full_validation_reads_every_token_once(write_dataset: Callable[..., str], how: str) -> None:
    """Every token except a dataset's first is a label once, whatever the weights; training samples do not change."""
    a, b = write_dataset(TEXTS, "a"), write_dataset([text.upper() for text in TEXTS], "b")
    config = {
        "split": DataConfig(data_path=(a,), split="50,50,0"),
        "own data": DataConfig(train_data_path=(b,), valid_data_path=(a,)),
        "blend of own data": DataConfig(train_data_path=(b,), valid_data_path=("3", a, "1", b)),
        "blend with a split": DataConfig(data_path=("3", a, "1", b), split="50,50,0"),
    }[how]
    held_out = TEXTS[20:] if "split" in how else TEXTS
    texts = [held_out, [text.upper() for text in held_out]] if "blend" in how else [held_out]
    documents = [[[*TOKENIZER.encode(text), TOKENIZER.eod] for text in part] for part in texts]
    num_labels = [sum(map(len, part)) - 1 for part in documents]

    train, valid = build(config, train=50, valid=None)
    assert len(valid) == sum(-(-labels // 16) for labels in num_labels)
    samples = [valid[index] for index in range(len(valid))]
    counted = Counter(int(label) for one in samples for label in one["labels"][one["loss_mask"].bool()])
    everything = Counter(token for part in documents for document in part for token in document)
    missing = everything - counted
    assert not counted - everything and missing.total() == len(texts)  # a dataset's first token is never a label

    counted_ahead = num_whole_samples(config, check_sources(config, TOKENIZER), VALID, seq_length=16)
    assert counted_ahead == len(valid)
    batches = Padded(valid, len(valid) + 5)
    assert len(batches) == len(valid) + 5
    assert all(torch.equal(batches[index]["tokens"], samples[index]["tokens"]) for index in range(len(valid)))
    assert sum(float(batches[index]["loss_mask"].sum()) for index in range(len(batches))) == sum(num_labels)
    assert tokens_of(train, 50) == tokens_of(train_only(config, 50), 50)


def test_reading_a_padded_sample_first_does_not_mask_the_others(write_dataset: Callable[..., str]) -> None:
    """Megatron-Core caches the loss mask of the first sample that is read, and would apply it to all others."""
    config = DataConfig(train_data_path=(write_dataset(TEXTS),), valid_data_path=(write_dataset(TEXTS, "held-out"),))

    def counted(first: int) -> dict[int, int]:
        _, valid = build(config, train=1, valid=None)
        return {index: int(valid[index]["loss_mask"].sum()) for index in [first, *range(len(valid))]}

    (padded,) = (index for index, labels in counted(0).items() if labels < 16)
    assert counted(padded) == counted(0)


def test_building_is_quiet(
    write_dataset: Callable[..., str], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(data_path=("1", write_dataset(TEXTS, "a"), "1", write_dataset(TEXTS, "b")), split="1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_only(config, 20)
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize(
    ("values", "samples", "message"),
    [
        ({}, {"train": 1}, ("--data-path",)),
        ({"data_path": ("PREFIX",)}, {"valid": 1}, ("--split 969,30,1", 3)),
        ({"data_path": ("PREFIX",), "split": "1,0,1"}, {"valid": 1}, ("--split 1,0,1", 3)),
        ({"data_path": ("nowhere",)}, {"train": 1}, ("--data-path", "nowhere.idx")),
        ({"train_data_path": ("PREFIX",)}, {"train": 1, "valid": 1}, ("--valid-data-path",)),
        ({"train_data_path": ("PREFIX",)}, {"train": 1, "valid": None}, ("--valid-data-path",)),
        ({"data_path": ("PREFIX",), "split": "1", "data_cache_path": "FILE"}, {"train": 1}, ("--data-cache-path",)),
    ],
)
def test_bad_data_are_refused(
    values: dict, samples: dict, message: tuple[object, ...], write_dataset: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    names = {"PREFIX": write_dataset(["one", "two", "three"]), "FILE": str(tmp_path / "file")}
    filled = {
        key: tuple(names.get(part, part) for part in value) if isinstance(value, tuple) else names.get(value, value)
        for key, value in values.items()
    }
    with refused(*message):
        build(DataConfig(**filled), **samples)


def test_indices_that_cannot_be_built_are_refused(write_dataset: Callable[..., str]) -> None:
    """Megatron-Core would count the epochs one by one, or allocate the indices; at the bound it builds them."""
    config = DataConfig(data_path=(write_dataset(["a" * 15]),), split="1")  # 16 tokens, so 15/16 of a sample an epoch
    assert len(train_only(config, 300_000)) >= 300_000
    with refused("--train-iters", "1,000,000,000,000 samples", "epochs"):
        train_only(config, 10**12)
    large = DataConfig(data_path=(write_dataset(["a" * 200_000] * 10, "large"),), split="1")
    with refused("--train-iters", "GB of memory"):
        train_only(large, 10**12)


@pytest.mark.parametrize(("samples", "epoch", "documents", "is_refused"), [
    (10**7, 1, 0, False), (10**7 + 1, 1, 0, True), (10**8, 1e6, 0, False), (10**8 + 1, 1e6, 0, True),
    (10**7, 1e4, 10**5, False), (10**7, 1e4, 3 * 10**5, True),
])  # fmt: skip
def test_size_of_indices(
    samples: int, epoch: float, documents: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "memory_bytes", lambda: 1_200_000_000)
    with refused("--eval-iters", f"{samples:,} samples") if is_refused else contextlib.nullcontext():
        size.check_size(samples, samples_of_epoch=epoch, documents=documents, is_training=False)

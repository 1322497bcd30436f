"""Cached sample indices: Megatron-Core's own are reused, all others are built again, and none runs code."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.blended_dataset import BlendedDataset

from megatron.ltd.data.config import VALID, DataConfig
from megatron.ltd.data.datasets import build_datasets
from megatron.ltd.data.indices.cache import is_bert_index, is_blend_index, numbers_only
from megatron.ltd.data.microbatches import SampleSource
from megatron.ltd.data.sources import check_sources
from megatron.ltd.tokenizers.byte import ByteTokenizer
from tests.support import world
from tests.support_errors import refused
from tests.support_pickles import Payload
from tests.unit.data import test_bert_datasets

Build = Callable[[Path], SampleSource]
S = 16


@pytest.fixture(scope="module", autouse=True)
def in_a_world() -> Iterator[None]:
    """Set up process groups, because Megatron-Core's blended and BERT datasets ask for the rank."""
    with world():
        yield


@pytest.fixture
def texts(write_dataset: Callable[..., str]) -> tuple[str, str]:
    """Prefixes of two datasets with documents of 1 to 40 tokens."""
    draw = random.Random(2)
    a, b = ("".join(draw.choices("ab", k=draw.randint(0, 39))) for _ in range(2)), ["c" * 30] * 9
    return write_dataset(["x" * draw.randint(0, 39) for _ in range(50)] + list(a), "a"), write_dataset(b, "b")


def train(samples: int, **flags: Any) -> SampleSource:
    config = DataConfig(split="1", **flags)
    built, _ = build_datasets(
        config, seq_length=S, seed=3, train_samples=samples, eval_samples={}, tokenizer=ByteTokenizer(),
        sources=check_sources(config, ByteTokenizer()),
    )  # fmt: skip
    assert built is not None
    return built


def one_epoch(texts: tuple[str, str], cache: Path) -> SampleSource:
    return train(20, data_path=texts[:1], data_cache_path=str(cache))


def two_epochs(texts: tuple[str, str], cache: Path) -> SampleSource:
    return train(100, data_path=texts[:1], data_cache_path=str(cache))


def blend(texts: tuple[str, str], cache: Path) -> SampleSource:
    built = train(60, data_path=("1", texts[0], "2", texts[1]), data_cache_path=str(cache))
    assert isinstance(built, BlendedDataset)
    return built


def bert(texts: tuple[str, str], cache: Path) -> SampleSource:
    documents = [test_bert_datasets.sentences(seed, 2 + seed) for seed in range(9)]
    folder = cache.with_name("bert")
    folder.mkdir(exist_ok=True)
    prefix = str(folder / "d")
    if not Path(f"{prefix}.idx").exists():
        test_bert_datasets.write(folder, documents)
    return test_bert_datasets.build(prefix, 50, data_cache_path=str(cache))


def content(source: SampleSource) -> list[Any]:
    return [source[index]["tokens"].tolist() for index in range(len(source))]


def state_of(cache: Path) -> dict[str, tuple[int, int, bytes]]:
    """Inode, modification time and content of every file."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in cache.iterdir()}


KINDS = [one_epoch, two_epochs, blend, bert]


@pytest.mark.parametrize("kind", KINDS)
def test_valid_indices_are_reused(kind: Callable[..., SampleSource], texts: tuple[str, str], tmp_path: Path) -> None:
    expected = content(kind(texts, tmp_path / "cache"))
    before = state_of(tmp_path / "cache")
    assert before and content(kind(texts, tmp_path / "cache")) == expected
    assert state_of(tmp_path / "cache") == before


@pytest.mark.parametrize("num_samples", [3, 30, 31, 90, 250])
@pytest.mark.parametrize("seed", range(3))
def test_valid_indices_of_many_sizes_are_reused(
    num_samples: int, seed: int, write_dataset: Callable[..., str], tmp_path: Path
) -> None:
    draw = random.Random(seed)
    prefix = write_dataset(["x" * draw.choice([0, 1, 14, 15, 16, 17, 60]) for _ in range(12)] + ["y" * 40])
    wanted: list[dict[str, int | None]] = [{}, {VALID: None}]
    for evaluated in wanted:
        flags = {"train_data_path": (prefix,), "valid_data_path": (prefix,), "data_cache_path": str(tmp_path / "cache")}
        states = []
        for _ in range(2):
            config = DataConfig(**flags)
            build_datasets(
                config, seq_length=S, seed=3, train_samples=num_samples, eval_samples=evaluated,
                tokenizer=ByteTokenizer(), sources=check_sources(config, ByteTokenizer()),
            )  # fmt: skip
            states.append(state_of(tmp_path / "cache"))
        assert states[0] == states[1] and len(states[0]) >= 4


def _pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(mark)))


def _objects(path: Path, mark: Path) -> None:
    np.save(path, np.array([Payload(mark)], dtype=object), allow_pickle=True)


def _other_type(path: Path, mark: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


def _fewer(path: Path, mark: Path) -> None:
    values = np.load(path)
    np.save(path, values[: len(values) // 3])


def _more_dimensions(path: Path, mark: Path) -> None:
    np.save(path, np.load(path)[..., None])


def _negative(path: Path, mark: Path) -> None:
    values = np.load(path)
    values.flat[0] = -1 if values.dtype.kind == "i" else values.dtype.type(0) - values.dtype.type(1)
    np.save(path, values)


def _beyond(path: Path, mark: Path) -> None:
    values = np.load(path)
    values.flat[-1] = np.iinfo(values.dtype).max
    np.save(path, values)


def _empty(path: Path, mark: Path) -> None:
    np.save(path, np.load(path)[:0])


def _cut(path: Path, mark: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _huge(path: Path, mark: Path) -> None:
    values = np.load(path)
    header = {"descr": values.dtype.str, "fortran_order": False, "shape": (1 << 50, *values.shape[1:])}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(values.tobytes())


def _text(path: Path, mark: Path) -> None:
    path.write_text("no array")


def _archive(path: Path, mark: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.arange(3))


def _pipe(path: Path, mark: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = [
    _pickle, _objects, _other_type, _fewer, _more_dimensions, _negative, _beyond, _empty, _cut, _huge, _text, _archive,
    _pipe,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", [two_epochs, blend, bert])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_indices_are_built_again(
    damage: Callable[[Path, Path], None], kind: Callable[..., SampleSource], texts: tuple[str, str], tmp_path: Path
) -> None:
    cache, mark = tmp_path / "cache", tmp_path / "the payload ran"
    expected = content(kind(texts, cache))
    files = sorted(cache.glob("*.npy"))
    assert len(files) == {two_epochs: 3, blend: 8, bert: 1}[kind]
    for path in files:
        right = path.read_bytes()
        damage(path, mark)
        assert content(kind(texts, cache)) == expected and path.read_bytes() == right
    assert not mark.exists()


def _swap(path: Path, values: np.ndarray[Any, Any]) -> None:
    values[[1, 2]] = values[[2, 1]]


def _twice(path: Path, values: np.ndarray[Any, Any]) -> None:
    values[1] = values[0]


def _next_token(path: Path, values: np.ndarray[Any, Any]) -> None:
    values[3, 1] += 1


@pytest.mark.parametrize(
    ("name", "change"),
    [("sample", _swap), ("sample", _twice), ("sample", _next_token), ("shuffle", _twice), ("document", _twice)],
)
def test_indices_that_give_other_samples_are_built_again(
    name: str, change: Callable[[Path, Any], None], texts: tuple[str, str], tmp_path: Path
) -> None:
    expected = content(two_epochs(texts, tmp_path / "cache"))
    (path,) = (tmp_path / "cache").glob(f"*-{name}_index.npy")
    values = np.load(path)
    change(path, values)
    np.save(path, values)
    assert content(two_epochs(texts, tmp_path / "cache")) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_or_written_through_a_link(
    kind: Callable[..., SampleSource], texts: tuple[str, str], tmp_path: Path
) -> None:
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    expected = content(kind(texts, cache))
    for path in sorted(cache.iterdir()):
        for target in (elsewhere, tmp_path / "missing"):
            elsewhere.write_text("mine")
            path.unlink()
            path.symlink_to(target)
            assert content(kind(texts, cache)) == expected
            assert not path.is_symlink() and elsewhere.read_text() == "mine"
    assert not (tmp_path / "missing").exists()


def test_a_file_that_cannot_be_removed_is_named(texts: tuple[str, str], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    one_epoch(texts, cache)
    path = sorted(cache.glob("*.npy"))[0]
    path.unlink()
    path.mkdir()
    with refused(f"--data-cache-path {cache}", path):
        one_epoch(texts, cache)


def test_a_file_changed_after_the_check_runs_no_code(tmp_path: Path) -> None:
    np.save(tmp_path / "numbers.npy", np.arange(3))
    _pickle(tmp_path / "pickle.npy", tmp_path / "mark")
    load = np.load
    with refused(tmp_path / "pickle.npy", error=OSError), numbers_only():
        assert np.load(tmp_path / "numbers.npy", allow_pickle=True, mmap_mode="r").tolist() == [0, 1, 2]
        np.load(tmp_path / "pickle.npy", allow_pickle=True, mmap_mode="r")
    assert np.load is load and not (tmp_path / "mark").exists()
    np.load(tmp_path / "pickle.npy", allow_pickle=True, mmap_mode="r")  # shows that the payload works
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ((2, 5, 8), True), ((5, 9, 1), True), ((4, 5, 8), True), ((2, 6, 8), False), ((5, 5, 8), False),
        ((6, 5, 8), False), ((1, 3, 8), False), ((9, 10, 8), False), ((2, 5, 9), False), ((2, 5, 0), False),
    ],
)  # fmt: skip
def test_a_bert_sample_must_be_inside_one_document(row: tuple[int, int, int], right: bool) -> None:
    """Three documents hold the sentences 2 to 4, none, and 5 to 8."""
    samples = np.array([(2, 4, 3), row], dtype=np.uint32)
    assert is_bert_index(samples, document_bounds=np.array([2, 5, 5, 9]), seq_length=8, num_samples=2) is right


def test_samples_of_a_blend_must_be_inside_their_dataset() -> None:
    dataset, sample = np.array([0, 1, 1], dtype=np.int16), np.array([3, 0, 1], dtype=np.int64)
    assert is_blend_index(dataset, sample, sizes=[4, 2], num_samples=3)
    assert not is_blend_index(dataset, sample, sizes=[3, 2], num_samples=3)
    assert not is_blend_index(dataset, sample, sizes=[4, 1], num_samples=3)
    assert not is_blend_index(dataset, sample, sizes=[4], num_samples=3)
    assert not is_blend_index(dataset, sample, sizes=[4, 2], num_samples=4)

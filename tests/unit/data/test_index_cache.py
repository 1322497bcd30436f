"""Cached sample indices: Megatron-Core's own are reused, all others are built again, and none runs code."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.blended_dataset import BlendedDataset

from megatron.ltd.data.config import DataConfig
from megatron.ltd.data.indices.cache import is_bert_index, is_blend_index, numbers_only
from megatron.ltd.data.microbatches import SampleSource
from tests.support_errors import refused
from tests.support_pickles import Payload
from tests.unit.data import test_bert_datasets, test_datasets

pytestmark = pytest.mark.usefixtures("mesh")  # Megatron-Core's blended and BERT datasets ask for the rank


@pytest.fixture
def texts(write_dataset: Callable[..., str]) -> tuple[str, str]:
    """Prefixes of two datasets with documents of 1 to 40 tokens."""
    draw = random.Random(2)
    a, b = ("".join(draw.choices("ab", k=draw.randint(0, 39))) for _ in range(2)), ["c" * 30] * 9
    return write_dataset(["x" * draw.randint(0, 39) for _ in range(50)] + list(a), "a"), write_dataset(b, "b")


def train(samples: int, **flags: Any) -> SampleSource:
    return test_datasets.train_only(DataConfig(split="1", **flags), samples, seed=3)


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


KINDS = [two_epochs, blend, bert]


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
    config = DataConfig(train_data_path=(prefix,), valid_data_path=(prefix,), data_cache_path=str(tmp_path / "cache"))
    for valid in (0, None):
        states = []
        for _ in range(2):
            test_datasets.build(config, num_samples, valid, seed=3)
            states.append(state_of(tmp_path / "cache"))
        assert states[0] == states[1] and len(states[0]) >= 4


def _pickle(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(mark)))


def _objects(path: Path, mark: Path) -> None:
    np.save(path, np.array([Payload(mark)], dtype=object), allow_pickle=True)


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


FILES = [_pickle, _objects, _cut, _huge, _text, _archive, _pipe]


def _put(values: np.ndarray[Any, Any], place: int, number: int) -> np.ndarray[Any, Any]:
    values.flat[place] = np.array(number).astype(values.dtype)
    return values


ARRAYS: dict[str, Callable[[Any], Any]] = {
    "other type": lambda values: values.astype(np.float64),
    "fewer": lambda values: values[: len(values) // 3],
    "empty": lambda values: values[:0],
    "more dimensions": lambda values: values[..., None],
    "negative": lambda values: _put(values, 0, -1),
    "beyond": lambda values: _put(values, -1, np.iinfo(values.dtype).max),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_arrays_are_built_again(
    kind: Callable[..., SampleSource], texts: tuple[str, str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    expected = content(kind(texts, cache))
    files = sorted(cache.glob("*.npy"))
    assert len(files) == {two_epochs: 3, blend: 8, bert: 1}[kind]
    for path in files:
        right = path.read_bytes()
        for name, change in ARRAYS.items():
            np.save(path, change(np.load(path)))
            assert content(kind(texts, cache)) == expected and path.read_bytes() == right, name


@pytest.mark.parametrize("damage", FILES)
def test_files_that_are_no_array_are_built_again(
    damage: Callable[[Path, Path], None], texts: tuple[str, str], tmp_path: Path
) -> None:
    cache, mark = tmp_path / "cache", tmp_path / "the payload ran"
    expected = content(two_epochs(texts, cache))
    for path in sorted(cache.glob("*.npy")):
        right = path.read_bytes()
        damage(path, mark)
        assert content(two_epochs(texts, cache)) == expected and path.read_bytes() == right
    assert not mark.exists()


def _swap(values: np.ndarray[Any, Any]) -> None:
    values[[1, 2]] = values[[2, 1]]


def _twice(values: np.ndarray[Any, Any]) -> None:
    values[1] = values[0]


def _next_token(values: np.ndarray[Any, Any]) -> None:
    values[3, 1] += 1


def test_indices_that_give_other_samples_are_built_again(texts: tuple[str, str], tmp_path: Path) -> None:
    expected = content(two_epochs(texts, tmp_path / "cache"))
    changes = {"sample": (_swap, _twice, _next_token), "shuffle": (_twice,), "document": (_twice,)}
    for name, change in ((name, change) for name, several in changes.items() for change in several):
        (path,) = (tmp_path / "cache").glob(f"*-{name}_index.npy")
        values = np.load(path)
        change(values)
        np.save(path, values)
        assert content(two_epochs(texts, tmp_path / "cache")) == expected, (name, change)


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
    two_epochs(texts, cache)
    path = sorted(cache.glob("*.npy"))[0]
    path.unlink()
    path.mkdir()
    with refused(f"--data-cache-path {cache}", path):
        two_epochs(texts, cache)


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

"""Errors on one rank: every rank ends with the same line, and none hangs waiting for the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megatron.ltd.words import name_of
from tests.distributed.error_jobs import end_of, end_with_another_shuffle, end_with_other_tokens
from tests.distributed.layouts import RANDOM_LTD, run_flags
from tests.distributed.pool import Pool
from tests.support_errors import assert_names

pytestmark = pytest.mark.distributed


def common_line(ends: list[tuple[str, str]], kind: str = "UserError") -> str:
    """The one line that every rank ended with."""
    assert {kind for kind, _ in ends} == {kind} and len({line for _, line in ends}) == 1, ends
    return ends[0][1]


def flags(dataset: str, folder: Path, *more: object) -> list[str]:
    return [*run_flags(dataset), *RANDOM_LTD, "--device", "cpu", "--log-dir", str(folder / "logs"), *map(str, more)]


def test_one_rank_has_other_flags(pool: Pool, dataset: str, tmp_path: Path) -> None:
    alike, other = flags(dataset, tmp_path, "--num-workers", 0), flags(dataset, tmp_path / "b", "--lr", 1e-3)
    line = common_line(pool.run(end_of, [alike, alike, other], world_size=3))
    assert_names(line, "--lr 0.003", "rank 0", 0.001, "rank 2")
    assert not (tmp_path / "logs").exists()


def test_one_rank_has_another_layout(pool: Pool, dataset: str, tmp_path: Path) -> None:
    """Only that rank can detect that its layout is impossible, so it has to inform the others."""
    alike, other = flags(dataset, tmp_path), flags(dataset, tmp_path, "--tensor-model-parallel-size", 4)
    line = common_line(pool.run(end_of, [alike, other], world_size=2))
    assert_names(line, "--tensor-model-parallel-size 4", "2 processes", "rank 1")


@pytest.fixture
def nodes(dataset: str, tmp_path: Path) -> list[str]:
    """Two folders that contain the same data under the same name, like the local disks of two nodes."""
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
        for ending in ("bin", "idx", "json"):
            shutil.copy(f"{dataset}.{ending}", folder / f"d.{ending}")
    return [str(folder) for folder in folders]


def test_data_missing_on_one_node(pool: Pool, nodes: list[str], tmp_path: Path) -> None:
    (Path(nodes[1]) / "d.bin").unlink()
    line = common_line(pool.run(end_of, [flags("d", tmp_path)] * 2, nodes, world_size=2))
    assert_names(line, "--train-data-path d", "d.bin", "rank 1")


def test_data_that_differ_between_nodes(pool: Pool, nodes: list[str], tmp_path: Path) -> None:
    index = Path(nodes[1]) / "d.bin"
    content = bytearray(index.read_bytes())
    content[0] ^= 1
    index.write_bytes(content)
    card = Path(nodes[1]) / "d.json"
    card.unlink()  # without the card, the fingerprint is computed from the file
    line = common_line(pool.run(end_of, [flags("d", tmp_path)] * 2, nodes, world_size=2))
    assert_names(line, name_of("train_data_fingerprint"), "rank 0", "rank 1")


def test_a_folder_that_is_not_shared(pool: Pool, nodes: list[str], tmp_path: Path) -> None:
    line = common_line(pool.run(end_of, [flags("d", tmp_path, "--save", "out")] * 2, nodes, world_size=2))
    assert_names(line, "--save out", "rank 0", "rank 1")
    assert list(Path(nodes[0], "out").iterdir()) == []


def test_checkpoints_that_one_node_does_not_see(pool: Pool, dataset: str, nodes: list[str], tmp_path: Path) -> None:
    saved = flags(dataset, tmp_path, "--save", Path(nodes[0]) / "out", "--exit-interval", 1)
    assert pool.run(end_of, [saved] * 2, world_size=2) == [("done", "")] * 2
    load = flags(dataset, tmp_path, "--load", "out", "--finetune")
    line = common_line(pool.run(end_of, [load] * 2, nodes, world_size=2))
    assert_names(line, "--load out", "iteration 1", "rank 0", "rank 1")


BLEND = ("--train-data-path", "1", "d", "1", "d")


@pytest.mark.parametrize("more", [(), (*BLEND, "--data-cache-path", "cache")])
def test_each_node_builds_the_indices_of_its_copy(
    pool: Pool, nodes: list[str], tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Four ranks, two on each node. The files of both nodes are equal, no mark is left, and a second run uses them.

    Of one dataset beside it, and of a blend and its datasets in a folder of that name on each node.
    """
    folders = [nodes[0], nodes[0], nodes[1], nodes[1]]
    run = flags("d", tmp_path, "--tensor-model-parallel-size", 2, "--exit-interval", 1, *more)
    assert pool.run(end_of, [run] * 4, folders, world_size=4) == [("done", "")] * 4
    first, second = (built_in(Path(node)) for node in nodes)
    assert len(first) >= 6 and contents(first) == contents(second)
    assert not [*tmp_path.rglob(".seen-*")]
    wrong = next(path for path in Path(nodes[1]).rglob("*shuffle_index.npy"))
    wrong.write_bytes(wrong.read_bytes()[:-1])
    assert pool.run(end_of, [run] * 4, folders, world_size=4) == [("done", "")] * 4
    assert built_in(Path(nodes[0])) == first  # not built again
    assert contents(built_in(Path(nodes[1]))) == contents(second)


def built_in(node: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of the index files of a node, by name."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in node.rglob("*index.npy")}


def contents(files: dict[str, tuple[bytes, int]]) -> dict[str, bytes]:
    return {name: content for name, (content, _) in files.items()}


def test_copies_of_the_data_on_each_node(pool: Pool, nodes: list[str], tmp_path: Path) -> None:
    """With one folder of sample indices that all nodes see, rank 0 builds them."""
    shared = flags("d", tmp_path, "--data-cache-path", tmp_path / "cache", "--exit-interval", 1)
    assert pool.run(end_of, [shared] * 2, nodes, world_size=2) == [("done", "")] * 2
    assert list((tmp_path / "cache").iterdir()) and not [*tmp_path.glob("node*/d/cache")]


def test_a_node_that_builds_other_indices(pool: Pool, nodes: list[str], tmp_path: Path) -> None:
    """Another version of numpy could shuffle differently: the nodes compare what they have built."""
    line = common_line(pool.run(end_with_another_shuffle, [flags("d", tmp_path)] * 2, nodes, world_size=2))
    assert_names(line, "sample indices", "rank 0", "rank 1", "numpy")


def test_a_node_that_cannot_write_its_indices(pool: Pool, nodes: list[str], tmp_path: Path) -> None:
    """Every rank ends with the line of the one that fails, whether it is the first or another."""
    for rank, node in enumerate(nodes):
        place = Path(node) / "d"
        place.write_text("a file where the folder of the indices should be")
        line = common_line(pool.run(end_of, [flags("d", tmp_path)] * 2, nodes, world_size=2))
        assert_names(line, "the folder of the data", "--data-cache-path", f"rank {rank}")
        place.unlink()
        shutil.rmtree(Path(nodes[0]) / "d", ignore_errors=True)


@pytest.mark.parametrize(("every", "from_step", "found_in"), [(0, 0, 1), (1, 1, 2), (2, 1, 3)])
def test_one_rank_keeps_other_tokens(
    pool: Pool, dataset: str, tmp_path: Path, every: int, from_step: int, found_in: int
) -> None:
    """The difference is found at the start, or at the first check after it occurs; K grows at every step."""
    run = flags(dataset, tmp_path, "--check-routing-every", every, "--tensor-model-parallel-size", 2)
    line = common_line(pool.run(end_with_other_tokens, [run] * 2, from_step, world_size=2), "RunStopped")
    assert_names(line, f"step {found_in}", "rank 1", "layer 3", "rank 0")


def test_without_the_check_it_is_not_noticed(pool: Pool, dataset: str, tmp_path: Path) -> None:
    """This is why the check exists: without it, tensor-parallel ranks that keep different tokens train to the end."""
    run = flags(dataset, tmp_path, "--check-routing-every", 0, "--tensor-model-parallel-size", 2)
    assert pool.run(end_with_other_tokens, [run] * 2, 1, world_size=2) == [("done", "")] * 2

"""Ranks that cannot go on together end together: every one of them, with the same line, and none waits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megatron.ltd.words import name_of
from tests.distributed.ending_jobs import end_of, end_with_another_draw
from tests.distributed.layouts import RANDOM_LTD, run_flags
from tests.distributed.pool import Pool

pytestmark = pytest.mark.distributed


def the_line(ends: list[tuple[str, str]], kind: str = "UserError") -> str:
    """The one line that every rank ended with."""
    assert {kind for kind, _ in ends} == {kind} and len({line for _, line in ends}) == 1, ends
    return ends[0][1]


def flags(dataset: str, folder: Path, *more: object) -> list[str]:
    return [*run_flags(dataset), *RANDOM_LTD, "--device", "cpu", "--log-dir", str(folder / "logs"), *map(str, more)]


def test_other_flags(pool: Pool, dataset: str, tmp_path: Path) -> None:
    alike, other = flags(dataset, tmp_path, "--num-workers", 0), flags(dataset, tmp_path / "b", "--lr", 1e-3)
    line = the_line(pool.run(end_of, [alike, alike, other], world_size=3))
    assert line == "--lr is 0.003 on rank 0 and 0.001 on rank 2: start every process with the same flags"
    assert not (tmp_path / "logs").exists()


def test_another_layout_on_one_rank(pool: Pool, dataset: str, tmp_path: Path) -> None:
    """That rank alone is refused its layout: the others must hear of it."""
    alike, other = flags(dataset, tmp_path), flags(dataset, tmp_path, "--tensor-model-parallel-size", 4)
    line = the_line(pool.run(end_of, [alike, other], world_size=2))
    assert line.startswith("2 processes were started, but --tensor-model-parallel-size 4")
    assert line.endswith("(on rank 1; not on all of the 2 processes)")


@pytest.fixture
def nodes(dataset: str, tmp_path: Path) -> list[str]:
    """Two folders, each with the data under the same name, as nodes with disks of their own have them."""
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
        for ending in ("bin", "idx", "json"):
            shutil.copy(f"{dataset}.{ending}", folder / f"d.{ending}")
    return [str(folder) for folder in folders]


def test_data_that_one_node_lacks(pool: Pool, nodes: list[str], tmp_path: Path) -> None:
    (Path(nodes[1]) / "d.bin").unlink()
    line = the_line(pool.run(end_of, [flags("d", tmp_path)] * 2, nodes, world_size=2))
    assert "--train-data-path d" in line and "d.bin" in line and "does not exist" in line
    assert line.endswith("(on rank 1; not on all of the 2 processes)")


def test_data_that_differ(pool: Pool, nodes: list[str], tmp_path: Path) -> None:
    index = Path(nodes[1]) / "d.bin"
    content = bytearray(index.read_bytes())
    content[0] ^= 1
    index.write_bytes(content)
    card = Path(nodes[1]) / "d.json"
    card.unlink()  # without it the fingerprint is the file's own
    line = the_line(pool.run(end_of, [flags("d", tmp_path)] * 2, nodes, world_size=2))
    assert line.startswith(name_of("train_data_fingerprint")) and line.endswith("give every node the same files")


@pytest.mark.parametrize(
    ("shared", "fragment"), [("--save", "a file that rank 0 wrote in --save out is there on rank 0")]
)
def test_a_folder_that_is_not_shared(pool: Pool, nodes: list[str], tmp_path: Path, shared: str, fragment: str) -> None:
    line = the_line(pool.run(end_of, [flags("d", tmp_path, shared, "out")] * 2, nodes, world_size=2))
    assert line == f"{fragment} and missing on rank 1: name a folder that all nodes share"
    assert list(Path(nodes[0], "out").iterdir()) == []


def test_checkpoints_that_one_node_does_not_see(pool: Pool, dataset: str, nodes: list[str], tmp_path: Path) -> None:
    saved = flags(dataset, tmp_path, "--save", Path(nodes[0]) / "out", "--exit-interval", 1)
    assert pool.run(end_of, [saved] * 2, world_size=2) == [("done", "")] * 2
    load = flags(dataset, tmp_path, "--load", "out", "--finetune")
    line = the_line(pool.run(end_of, [load] * 2, nodes, world_size=2))
    assert line == (
        "what --load out holds is 1 checkpoint, the newest of iteration 1 on rank 0 and no checkpoint on rank 1: name "
        "a folder that all nodes share"
    )


def test_sample_indices_that_one_node_does_not_see(pool: Pool, nodes: list[str], tmp_path: Path) -> None:
    """Rank 0 keeps them beside its data. The other says what it misses; rank 0 is among Megatron-Core's barriers then,
    and ends by the lost contact.
    """
    ends = pool.run(end_of, [flags("d", tmp_path)] * 2, nodes, world_size=2)
    assert ends[1][0] == "UserError" and "give a folder that all nodes share with --data-cache-path" in ends[1][1]
    assert ends[0][0] == "LostContact", ends[0]


@pytest.mark.parametrize(("every", "from_step", "found_in"), [(0, 0, 1), (1, 4, 5), (4, 4, 5)])
def test_another_draw_on_one_rank(
    pool: Pool, dataset: str, tmp_path: Path, every: int, from_step: int, found_in: int
) -> None:
    """Found at the start, or at the next check after it begins; kept tokens grow at steps 2 and 4."""
    run = flags(dataset, tmp_path, "--check-routing-every", every, "--tensor-model-parallel-size", 2)
    line = the_line(pool.run(end_with_another_draw, [run] * 2, from_step, world_size=2), "RunStopped")
    assert line.startswith(f"in step {found_in} rank 1 would keep other tokens in layer 3 than rank 0, so")


def test_without_a_check_it_would_go_unseen(pool: Pool, dataset: str, tmp_path: Path) -> None:
    """What the check is for: tensor-parallel ranks that keep other tokens train to the end without a word."""
    run = flags(dataset, tmp_path, "--check-routing-every", 0, "--tensor-model-parallel-size", 2)
    assert pool.run(end_with_another_draw, [run] * 2, 4, world_size=2) == [("done", "")] * 2

"""Tasks scored during training get the same scores on several ranks as on one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.error_jobs import end_of
from tests.distributed.layouts import LAYOUTS, RANDOM_LTD, Layout, one_process, run_flags
from tests.distributed.pool import Pool
from tests.support_tasks import write_task_data

pytestmark = pytest.mark.distributed
pytest.importorskip("lm_eval")


def scores(pool: Pool, layout: Layout, dataset: str, tasks: Path, log: Path) -> list[dict[str, float]]:
    """The score records of a run under ``layout``; its embeddings are untied, and with overlaps its weights are
    gathered late.
    """
    flags = [
        *run_flags(dataset), *RANDOM_LTD, *layout.flags, "--untie-embeddings-and-output-weights", "--device", "cpu",
        "--log-dir", str(log), "--eval-tasks", "lambada_openai", "boolq", "--eval-tasks-interval", "2",
        "--eval-tasks-data", str(tasks),
    ]  # fmt: skip
    ends = pool.run(end_of, [flags] * layout.world_size, world_size=layout.world_size)
    assert ends == [("done", "")] * layout.world_size
    lines = [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "scores"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_data(tmp_path_factory.mktemp("tasks"))


@pytest.mark.parametrize("name", ["tp2 sp", "dp2 sharded overlaps"])
def test_equal_one_process(pool: Pool, dataset: str, tasks: Path, tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    found = scores(pool, layout, dataset, tasks, tmp_path / "several")
    expected = scores(pool, one_process(layout.strata), dataset, tasks, tmp_path / "one")
    assert [line["iteration"] for line in found] == [2, 3]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=1e-5)

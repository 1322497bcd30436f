"""Loading of lm-eval's tasks: errors of downloads, and more processes than samples."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from megatron.ltd.evaluation.lm_eval.task_loading import CheckedTasks
from megatron.ltd.evaluation.local_tasks import task_folder
from tests.support_errors import refused
from tests.support_tasks import BOOLQ, LAMBADA, write_task_data

NAMES = ["lambada_openai", "boolq"]


def test_a_failed_download_is_reported_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in raises the error that ``datasets`` raises without a network."""

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'someone/something' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with task_folder(NAMES, write_task_data(tmp_path / "data")) as folder:
        tasks = CheckedTasks(include_path=str(folder), include_defaults=False)
        with refused("--tasks boolq", "someone/something", "--task-data"):
            tasks.load(["boolq"])


@pytest.mark.parametrize(
    ("num_processes", "limit", "samples", "names"),
    [
        (len(BOOLQ), None, None, None),
        (len(BOOLQ) + 1, None, None, ["--tasks boolq", 3, 4]),
        (2, 2, None, None),
        (2, 1, None, ["--tasks lambada_openai", "--limit 1", 2]),
        (2, 0.4, None, None),
        (3, 0.4, None, ["--tasks lambada_openai", "--limit 0.4", 2, 3]),
        (2, None, {"boolq": [2]}, ["--tasks boolq", 1, 2]),
    ],
)
def test_each_process_needs_a_sample(
    tmp_path: Path, num_processes: int, limit: float | None, samples: dict[str, list[int]] | None, names: list | None
) -> None:
    assert len(LAMBADA) == 5
    with task_folder(NAMES, write_task_data(tmp_path / "data")) as folder:
        tasks = CheckedTasks(
            include_path=str(folder), include_defaults=False, num_processes=num_processes, limit=limit, samples=samples
        )
        if names is None:
            assert set(tasks.load(NAMES)["tasks"]) == set(NAMES)
        else:
            with refused(*names):
                tasks.load(NAMES)

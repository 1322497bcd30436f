"""Loading of lm-eval's tasks: more processes than samples, and records that lm-eval cannot use."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.lm_eval.task_loading import CheckedTasks
from megatron.ltd.evaluation.local_tasks.overlays import task_folder
from tests.support_errors import refused
from tests.support_tasks import BOOLQ, LAMBADA, write_task_data

NAMES = ["lambada_openai", "boolq"]


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


SCIQ = {"question": "why", "support": "so", "correct_answer": "a"} | {f"distractor{n}": "b" for n in (1, 2, 3)}
BROKEN: dict[str, tuple[object, str]] = {
    "null for a text": (SCIQ | {"support": None}, "lstrip"),
    "a field is missing": ({"question": "why"}, "support"),
}


def sciq(folder: Path, *records: object, last: str = "") -> Path:
    """Data of sciq, whose fields only lm-eval knows; ``last`` is the rest of the file."""
    (folder / "sciq").mkdir()
    (folder / "sciq" / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + last)
    return folder


def task_of(data: Path, local: Path | None) -> Any:
    """The task sciq with the requests of its examples."""
    with task_folder(["sciq"], data) as folder:
        manager = CheckedTasks(include_path=str(folder), include_defaults=False, local=local)
        (task,) = manager.load(["sciq"])["tasks"].values()
        task.build_all_requests(rank=0, world_size=1)
        return task


@pytest.mark.parametrize("case", BROKEN)
def test_a_record_that_lm_eval_cannot_use_is_one_line(case: str, tmp_path: Path) -> None:
    """Where the data is not local it is no record's fault, and lm-eval's own error stays."""
    record, reason = BROKEN[case]
    data = sciq(tmp_path, record, record)
    with refused(f"--task-data {data}", "sciq", reason):
        task_of(data, data)
    with pytest.raises(Exception) as raised:
        task_of(data, None)
    assert not isinstance(raised.value, UserError)


def test_an_answer_that_cannot_be_scored_is_found_before_the_model_is_asked(tmp_path: Path) -> None:
    """lm-eval itself finds it when it scores, which may be hours later."""
    data = sciq(tmp_path, SCIQ, SCIQ | {"distractor2": None})
    assert len(task_of(data, None).instances) == 2 * 4
    with refused(f"--task-data {data}", "sciq", "NoneType"):
        task_of(data, data)


def test_whole_records_become_requests_whose_answers_must_have_a_score(tmp_path: Path) -> None:
    task = task_of(sciq(tmp_path, SCIQ, SCIQ), tmp_path)
    assert len(task.instances) == 2 * 4
    with refused(f"--task-data {tmp_path}", "sciq"):
        task.process_results({"question": "why"}, [(0.0, True)])


def test_files_that_are_no_table_are_one_line(tmp_path: Path) -> None:
    data = sciq(tmp_path, last=json.dumps(SCIQ)[:-1] + ', "support": "twice"}\n')
    with refused(f"--task-data {data}", "sciq"):
        task_of(data, data)


def test_a_number_that_no_column_holds_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """``datasets`` also logs its error, to the standard error of the time when it was imported."""
    data = sciq(tmp_path, last=json.dumps(SCIQ)[:-1] + ', "more": 1e400}\n')
    handler = logging.StreamHandler(sys.__stderr__)
    logging.getLogger("datasets").addHandler(handler)
    try:
        with refused(f"--task-data {data}", "sciq", "Number too big"):
            task_of(data, data)
    finally:
        logging.getLogger("datasets").removeHandler(handler)
    assert "Failed to load JSON" not in capfd.readouterr().err

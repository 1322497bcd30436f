"""Loading of lm-eval's tasks: errors of downloads, and more processes than samples."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from megatron.ltd.errors import UserError
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


SCIQ = {"question": "why", "support": "so", "correct_answer": "a"} | {f"distractor{n}": "b" for n in (1, 2, 3)}
BROKEN: dict[str, tuple[object, str]] = {
    "a number for a text": (SCIQ | {"support": 1.5}, "lstrip"),
    "null for a text": (SCIQ | {"support": None}, "lstrip"),
    "a field is missing": ({"question": "why"}, "support"),
}


def sciq(folder: Path, *records: object) -> Path:
    (folder / "sciq").mkdir(parents=True)
    (folder / "sciq" / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def requests_of(data: Path, local: Path | None) -> list[object]:
    """The requests of the examples of sciq, whose fields only lm-eval knows."""
    with task_folder(["sciq"], data) as folder:
        (task,) = (
            CheckedTasks(include_path=str(folder), include_defaults=False, local=local).load(["sciq"])["tasks"].values()
        )
        task.build_all_requests(rank=0, world_size=1)
        return list(task.instances)


@pytest.mark.parametrize("case", BROKEN)
def test_a_record_that_lm_eval_cannot_use_is_one_line(case: str, tmp_path: Path) -> None:
    """Where the data is not local it is no record's fault, and lm-eval's own error stays."""
    record, reason = BROKEN[case]
    data = sciq(tmp_path / "data", record, record)
    with refused(f"--task-data {data}", "sciq", reason):
        requests_of(data, data)
    with pytest.raises(Exception) as raised:
        requests_of(data, None)
    assert not isinstance(raised.value, UserError)


def test_an_answer_that_cannot_be_scored_is_found_before_the_model_is_asked(tmp_path: Path) -> None:
    """lm-eval itself finds it when it scores, which may be hours later."""
    data = sciq(tmp_path / "data", SCIQ, SCIQ | {"distractor2": None})
    assert len(requests_of(data, None)) == 2 * 4
    with refused(f"--task-data {data}", "sciq", "NoneType"):
        requests_of(data, data)


def test_files_that_are_no_table_are_one_line(tmp_path: Path) -> None:
    data = sciq(tmp_path / "data", SCIQ)
    (data / "sciq" / "test.jsonl").write_text(json.dumps(SCIQ)[:-1] + ', "support": "twice"}\n')
    with refused(f"--task-data {data}", "sciq"):
        requests_of(data, data)


def test_whole_records_become_requests(tmp_path: Path) -> None:
    data = sciq(tmp_path / "data", SCIQ, SCIQ)
    assert len(requests_of(data, data)) == 2 * 4


def test_an_answer_without_a_score_is_the_records_fault(tmp_path: Path) -> None:
    data = sciq(tmp_path / "data", SCIQ)
    with task_folder(["sciq"], data) as folder:
        (task,) = (
            CheckedTasks(include_path=str(folder), include_defaults=False, local=data).load(["sciq"])["tasks"].values()
        )
    with refused(f"--task-data {data}", "sciq"):
        task.process_results({"question": "why"}, [(0.0, True)])


def test_a_number_that_no_column_holds_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """``datasets`` also logs its error, to the standard error of the time when it was imported."""
    data = sciq(tmp_path / "data", SCIQ)
    (data / "sciq" / "test.jsonl").write_text(json.dumps(SCIQ)[:-1] + ', "more": 1e400}\n')
    handler = logging.StreamHandler(sys.__stderr__)
    logging.getLogger("datasets").addHandler(handler)
    try:
        with refused(f"--task-data {data}", "sciq", "Number too big"):
            requests_of(data, data)
    finally:
        logging.getLogger("datasets").removeHandler(handler)
    assert "Failed to load JSON" not in capfd.readouterr().err

"""``--eval-tasks``: the scores in metrics.jsonl are those of the checkpoint, and scoring does not change training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron.ltd.evaluation.lm_eval.harness_command import evaluate
from tests.end_to_end.runs import metrics, refusal, run_status, tiny_flags, write_data
from tests.support_errors import assert_names
from tests.support_tasks import write_task_data

pytest.importorskip("lm_eval")
TASKS = ("--eval-tasks", "lambada_openai", "boolq", "--eval-tasks-interval", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    write_task_data(folder / "tasks")
    write_data(folder)
    return folder


def flags(folder: Path, *more: object) -> list[str]:
    dropout = ("--attention-dropout", "0.1", "--hidden-dropout", "0.1")
    return tiny_flags(str(folder / "train_text_document"), *dropout, *more)


def test_training_is_not_changed_by_scoring(folder: Path) -> None:
    """Training with dropout is bit-equal, and the last scores are those that lm-eval's command computes for the
    checkpoint.
    """
    scored, plain = folder / "runs" / "scored", folder / "runs" / "plain"
    data = ("--eval-tasks-data", folder / "tasks")
    assert run_status(flags(folder, "--save", scored, *TASKS, *data)) == (0, "")
    assert run_status(flags(folder, "--save", plain)) == (0, "")
    with_scores = metrics(scored)
    scores = {key: with_scores.pop(key) for key in list(with_scores) if key[0] == "scores"}
    assert [iteration for _, iteration in scores] == [4, 6]
    assert with_scores == metrics(plain)

    results = folder / "results.json"
    evaluate(
        f"--load {scored} --tasks lambada_openai,boolq --task-data {folder / 'tasks'} --device cpu "
        f"--output_path {results}".split(),
        None,
    )
    (written,) = folder.glob("results_*.json")
    official = json.loads(written.read_text())["results"]
    last = scores["scores", 6]
    assert last.keys() == {"kind", "iteration", "lambada_openai/perplexity", "lambada_openai/acc", "boolq/acc"}
    assert last["lambada_openai/perplexity"] == pytest.approx(official["lambada_openai"]["perplexity,none"], rel=1e-6)
    assert last["boolq/acc"] == official["boolq"]["acc,none"]
    assert scores["scores", 4]["lambada_openai/perplexity"] != last["lambada_openai/perplexity"]


@pytest.mark.parametrize(
    ("more", "names"),
    [(("--eval-tasks", "bolq"), ["--eval-tasks bolq", "boolq"]), (("--eval-tasks", "piqa"), ["--eval-tasks piqa"])],
)
def test_missing_tasks_are_refused_before_the_run(folder: Path, more: tuple[str, ...], names: list[str]) -> None:
    save = folder / "refused"
    said = refusal(
        flags(folder, "--save", save, *more, "--eval-tasks-interval", 4, "--eval-tasks-data", folder / "tasks")
    )
    assert_names(said, *names)
    assert not save.exists()


def test_more_processes_than_examples_are_refused_before_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval would fail one by one on the processes that get no examples."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    said = refusal(flags(folder, *TASKS, "--eval-tasks-data", folder / "tasks", "--eval-tasks-limit", 2))
    assert_names(said, "--eval-tasks lambada_openai", "--eval-tasks-limit 2", 3)

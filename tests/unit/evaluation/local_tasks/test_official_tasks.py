"""lm-eval's own tasks on local files: prompts against ones written by hand, metrics against ones computed here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.evaluation.lm_eval.paper_tasks import PAPER_GROUP, PAPER_TASKS
from megatron.ltd.evaluation.local_tasks.overlays import task_folder
from megatron.ltd.evaluation.local_tasks.prepare import PrepareConfig, prepare
from megatron.ltd.flags import FlagParser, add_flags, read_flags
from megatron.ltd.reports.task_table import CompareConfig, compare
from tests.unit.evaluation.local_tasks.published import PUBLISHED

lm_eval = pytest.importorskip("lm_eval")


def log_likelihood(context: str, continuation: str) -> float:
    """Log-likelihood of a model without knowledge: a negative number that depends only on the two texts."""
    digest = hashlib.sha256(f"{context}\0{continuation}".encode()).digest()
    return -1.0 - int.from_bytes(digest[:4], "big") / 2**30


def is_greedy(context: str, continuation: str) -> bool:
    return log_likelihood(context, continuation) > -3.0


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``score(task_data, names)`` returns lm-eval's results of that model on the overlays of a folder of task data."""
    import datasets
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Guesser(LM):
        def loglikelihood(self, requests: Any) -> Any:
            return [(log_likelihood(*request.args), is_greedy(*request.args)) for request in requests]

        def loglikelihood_rolling(self, requests: Any) -> Any:
            return [log_likelihood("", *request.args) for request in requests]

        def generate_until(self, requests: Any) -> Any:
            return ["A. NN" for _ in requests]

    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))

    def run(task_data: Path, names: list[str], limit: int | None = None) -> Any:
        with task_folder(names, task_data) as folder:
            manager = TaskManager(include_defaults=False, include_path=str(folder))
            return lm_eval.simple_evaluate(
                Guesser(), tasks=names, task_manager=manager, limit=limit, bootstrap_iters=10
            )

    yield run
    patch.undo()


@pytest.fixture(scope="module")
def results(score: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Zero-shot results of the whole group on the small files of ``published.py``."""
    folder = tmp_path_factory.mktemp("paper")
    for task, published in PUBLISHED.items():
        parser = FlagParser(None)
        add_flags(parser, PrepareConfig)
        output = ["--task", task, "--output-dir", str(folder / "task_data")]
        flags = parser.parse_args([*published.write(folder / "raw" / task), *output])
        prepared = prepare(read_flags(flags, PrepareConfig))
        assert prepared.remarks == {}
    return score(folder / "task_data", [PAPER_GROUP])


def test_the_group_is_the_papers_tasks(results: Any) -> None:
    names = [task.name for task in PAPER_TASKS]
    assert list(PUBLISHED.keys()) == names and len(names) == 20
    assert results["group_subtasks"] == {PAPER_GROUP: names}
    assert {name: counts["effective"] for name, counts in results["n-samples"].items()} == dict.fromkeys(names, 2)


@pytest.mark.parametrize("task", [task.name for task in PAPER_TASKS])
def test_prompts_are_the_official_ones(task: str, results: Any) -> None:
    first = results["samples"][task][0]
    asked = [tuple(arguments) for arguments in first["arguments"]]
    if task in ("triviaqa", "wikitext"):  # requests without a continuation
        assert [arguments[0] for arguments in asked] == [context for context, _ in PUBLISHED[task].asked]
    else:
        assert asked == list(PUBLISHED[task].asked)
    assert results["versions"][task] is not None


@pytest.mark.parametrize("task", [task.name for task in PAPER_TASKS if task.metric in ("acc", "acc_norm")])
def test_metrics_are_computed_on_the_right_answers(task: str, results: Any) -> None:
    published, first = PUBLISHED[task], results["samples"][task][0]
    scores = [log_likelihood(*asked) for asked in published.asked]
    if task == "lambada_openai":
        assert first["acc"] == is_greedy(*published.asked[0])
        return
    assert first["acc"] == (scores.index(max(scores)) in published.gold)
    if "acc_norm" in first:
        by_length = [score / (len(text) - 1) for score, (_, text) in zip(scores, published.asked, strict=True)]
        assert first["acc_norm"] == (by_length.index(max(by_length)) in published.gold)


def test_metrics_of_the_tasks_without_accuracy(results: Any) -> None:
    samples = results["samples"]
    assert [sample["exact_match"] for sample in samples["triviaqa"]] == [1.0, 1.0]  # aliases in any case count
    webqs = PUBLISHED["webqs"].asked
    assert samples["webqs"][0]["exact_match"] == any(is_greedy(*asked) for asked in webqs)
    scores = [log_likelihood(*asked) for asked in PUBLISHED["record"].asked]
    assert samples["record"][0]["f1"] == samples["record"][0]["em"] == (scores[0] > scores[1])
    log_likelihood_and_words = samples["wikitext"][0]["word_perplexity"]
    assert log_likelihood_and_words == (log_likelihood("", PUBLISHED["wikitext"].asked[0][0]), 18)


def test_the_file_that_lm_eval_writes_is_read(results: Any, tmp_path: Path) -> None:
    """The average follows from two samples a task, whose standard error is half of their difference."""
    from lm_eval.loggers import EvaluationTracker

    aggregated = {name: value for name, value in results.items() if name != "samples"}
    EvaluationTracker(output_path=str(tmp_path / "scores")).save_results_aggregated(aggregated, results["samples"])
    found = compare(CompareConfig(results=(str(tmp_path / "scores"),)))
    assert [row.task for row in found.rows] == [task.name for task in PAPER_TASKS] and found.notes == ()
    pairs = [
        [sample[task.metric] for sample in results["samples"][task.name]]
        for task in PAPER_TASKS
        if task.name != "wikitext"
    ]
    assert found.num_averaged == len(pairs) == 19 and found.averages is not None
    mean = sum(sum(pair) / 2 for pair in pairs) / 19
    error = sum(((first - second) / 2) ** 2 for first, second in pairs) ** 0.5 / 19
    assert (found.averages[0].value, found.averages[0].standard_error) == (pytest.approx(mean), pytest.approx(error))
    perplexity = results["results"]["wikitext"]["word_perplexity,none"]
    assert found.rows[-1].scores[0].value == perplexity and found.rows[-1].lower_is_better


def test_real_files_are_scored(score: Callable[..., Any], shared_data: Path, tmp_path: Path) -> None:
    """Every published file in the shared data is converted, and the first samples of each are scored."""
    given = {
        "hellaswag": {"validation": (str(shared_data / "hellaswag" / "hellaswag_val_full.txt.bz2"),)},
        "lambada_openai": {"test": (str(shared_data / "lambada" / "lambada_test.jsonl"),)},
        "arc_easy": {"test": (str(shared_data / "arc_easy" / "test.jsonl"),)},
        "boolq": {"validation": (str(shared_data / "boolq" / "boolq.jsonl"),)},
        "wikitext": {"test": (str(shared_data / "wikitext-2" / "test.txt"),)},
    }
    counts = {}
    for task, files in given.items():
        prepared = prepare(PrepareConfig(task=task, output_dir=str(tmp_path / "task_data"), **files))
        ((split, counts[task]),) = prepared.num_records.items()
        path = prepared.folder / f"{split}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))  # lm-eval would prepare them all
    assert counts == {"hellaswag": 10042, "lambada_openai": 5153, "arc_easy": 2376, "boolq": 2474, "wikitext": 62}
    results = score(tmp_path / "task_data", list(given), limit=5)
    assert {counts["effective"] for counts in results["n-samples"].values()} == {5}
    contexts = {task: results["samples"][task][0]["arguments"][0][0] for task in given}
    assert contexts["hellaswag"] == "Roof shingle removal: A man is sitting on a roof. He"
    assert contexts["boolq"].startswith("The myotonic goat, ")
    assert contexts["boolq"].endswith("\nQuestion: is there such a thing as a fainting goat?\nAnswer:")
    assert contexts["lambada_openai"].endswith("I don't care about")
    assert contexts["arc_easy"].startswith("Question: Which statement best explains why photosynthesis")
    assert contexts["wikitext"].startswith(" = Robert <unk> =\n\nRobert <unk> is an English film, television and")

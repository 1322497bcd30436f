"""A checkpoint of a pipeline-parallel run gets the same scores from one, tensor-parallel and data-parallel processes.

The tests run lm-eval's command on local data of three kinds: the last word of a passage, the perplexity of pages, and
questions with generated answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from tests.distributed.evaluation_jobs import evaluate_command, figures
from tests.distributed.layouts import LAYOUTS, NUM_STEPS, VARIANTS
from tests.distributed.pool import JobFailed, Pool
from tests.distributed.runs import Runs
from tests.support_evaluation import random_texts

pytestmark = pytest.mark.distributed

WORDS = "the model keeps some of its tokens and every other token skips this layer".split()
TASKS: dict[str, list[dict[str, Any]]] = {
    "lambada_openai": [{"text": " ".join(WORDS[start : start + 3 + start % 4])} for start in range(9)],
    "wikitext": [{"page": " ".join(WORDS[:number])} for number in (2, 14, 7)],
    "triviaqa": [{"question": f"what {word}?", "answer": {"value": word, "aliases": [word]}} for word in WORDS[:5]],
}
SPLIT = {"lambada_openai": "test", "wikitext": "test", "triviaqa": "validation"}


@pytest.fixture(scope="module")
def saved(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint folder of a run with Llama's layers on an interleaved pipeline."""
    folder = str(tmp_path_factory.mktemp("saved"))
    runs.run(LAYOUTS["pp2 interleaved"], *VARIANTS["RoPE"], "--lr", "3e-2", "--save", folder)
    return folder


@pytest.fixture(scope="module")
def task_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task_data")
    for task, records in TASKS.items():
        (folder / task).mkdir()
        (folder / task / f"{SPLIT[task]}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder


def evaluated(pool: Pool, saved: str, task_data: Path, output: Path, world_size: int, tensor: int) -> dict[str, Any]:
    """Evaluate, check that only one process prints and writes results, and return them with every answer by task and
    document.
    """
    flags = ["--load", saved, "--task-data", str(task_data), "--tasks", *TASKS, "--device", "cpu", "--log_samples"]
    flags += ["--output_path", str(output), "--gen_kwargs", "max_gen_toks=6"]
    printed = pool.run(evaluate_command, [*flags, "--tensor-model-parallel-size", str(tensor)], world_size=world_size)
    assert "| lambada_openai |" in printed[0] and printed[1:] == [""] * (world_size - 1)
    (path,) = output.rglob("results_*.json")
    found = json.loads(path.read_text())
    for task in TASKS:
        (samples,) = output.rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        # lm-eval repeats a request on a rank that has one request less than others, and counts the first answer.
        found[task] = {line["doc_id"]: line["resps"][0][0] for line in lines}
    return found


def numbers(answers: dict[int, Any]) -> list[float]:
    """The log-likelihoods of a task's answers, in the order of its documents."""
    return [float(answer[0] if isinstance(answer, list) else answer) for _, answer in sorted(answers.items())]


@pytest.fixture(scope="module")
def alone(pool: Pool, saved: str, task_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return evaluated(pool, saved, task_data, tmp_path_factory.mktemp("alone"), 1, 1)


@pytest.mark.parametrize(("world_size", "tensor"), [(2, 2), (2, 1), (4, 2)], ids=["tp2", "dp2", "tp2 dp2"])
def test_equals_one_process(
    pool: Pool, saved: str, task_data: Path, alone: dict[str, Any], tmp_path: Path, world_size: int, tensor: int
) -> None:
    found = evaluated(pool, saved, task_data, tmp_path, world_size, tensor)
    assert found["config"]["iteration"] == NUM_STEPS
    assert found["config"]["num_truncated"] == alone["config"]["num_truncated"] > 0
    assert found["triviaqa"] == alone["triviaqa"]
    for task in ("lambada_openai", "wikitext"):
        assert len(found[task]) == len(TASKS[task])
        assert numbers(found[task]) == pytest.approx(numbers(alone[task]), abs=1e-4)
    for task, metrics in alone["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float) and "stderr" not in name:
                assert found["results"][task][name] == pytest.approx(value, rel=1e-4), (task, name)


def test_sequence_parallel_models_answer_too(pool: Pool, saved: str) -> None:
    """A model in training may be sequence parallel. It cannot cache keys, because each rank holds only a part of each
    text.
    """
    texts = random_texts([4, 9, 31, 17])
    (expected,) = pool.run(figures, saved, {}, texts, 6, world_size=1)
    for parallel, can_cache in (({}, True), ({"sequence_parallel": True}, False)):
        for found in pool.run(figures, saved, {"tensor_model_parallel_size": 2, **parallel}, texts, 6, world_size=2):
            assert [value for value, _ in found[0]] == pytest.approx([value for value, _ in expected[0]], abs=1e-4)
            assert (found[1], found[2]) == (expected[1], can_cache)


def test_heads_that_the_processes_cannot_share(pool: Pool, saved: str) -> None:
    with pytest.raises(JobFailed, match="--num-attention-heads 4.*--tensor-model-parallel-size 3"):
        pool.run(figures, saved, {"tensor_model_parallel_size": 3}, [[1, 2]], 1, world_size=3)

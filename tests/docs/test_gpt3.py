"""The GPT-3 examples in their small version as a user runs them, from text to the table of scores."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docs.example_scripts import NEW_PYTHON, environment, run
from tests.end_to_end.runs import metrics, snapshot
from tests.support_errors import assert_refused
from tests.support_processes import PATIENCE_SECONDS, child

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


DATA, RUNS = Path("runs/gpt3-tiny-data"), Path("runs/gpt3-1.3b-tiny")
TINY = {"TINY": "1"}


@pytest.fixture(scope="module")
def prepared(repository: Path, home: Path) -> str:
    """Prepare the data in two parallel parts and merge them; return the output of the merge."""

    def prepare(*flags: str) -> str:
        ended = run(repository, home, "gpt3/prepare_data.sh", *flags, **TINY)
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
        return ended.stdout

    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda part: prepare("--workers", "1", "--shard", part), ["1/2", "2/2"]))
    return prepare("--merge", "2")


@pytest.fixture(scope="module")
def trained(repository: Path, home: Path, prepared: str) -> dict[str, str]:
    """The output of the two training runs."""
    printed = {}
    for method in ("random_ltd", "dense"):
        ended = run(repository, home, "gpt3/pretrain.sh", "1.3b", method, **TINY)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
        printed[method] = ended.stdout
    return printed


def test_merged_parts_equal_the_data_of_one_command(repository: Path, home: Path, prepared: str) -> None:
    assert re.search(r"corpus_text_document: [\d,]+ documents, [\d,]+ tokens of 2 datasets", prepared)
    (home / "whole").mkdir()
    whole = run(repository, home / "whole", "gpt3/prepare_data.sh", "--workers", "1", **TINY)
    assert whole.returncode == 0, whole.stderr
    for suffix in ("bin", "idx", "json"):
        name = DATA / f"corpus_text_document.{suffix}"
        assert (home / "whole" / name).read_bytes() == (home / name).read_bytes()
    before = snapshot(home / DATA)
    again = run(repository, home, "gpt3/prepare_data.sh", "--merge", "2", **TINY)
    assert again.returncode == 0 and "there already: " in again.stdout
    assert snapshot(home / DATA) == before
    other = run(repository, home / "whole", "gpt3/prepare_data.sh", "--input", "other.jsonl", DRY_RUN="1", **TINY)
    assert_refused(other.returncode, other.stderr, DATA / "corpus_text_document", "--workers 1")


def test_both_runs_train_to_their_end(home: Path, trained: dict[str, str]) -> None:
    """Each run uses two processes and computes as many layer tokens as its settings specify."""
    for name in ("random_ltd", "dense"):
        folder = home / RUNS / name
        lines = metrics(folder)
        train = {step: line for (kind, step), line in lines.items() if kind == "train"}
        end = train[max(train)]
        assert 15_000 <= end["consumed_layer_tokens"] / 4 < 15_000 + 8 * 128
        assert "2 processes, bfloat16" in trained[name] and "data 2 with distributed optimizer" in trained[name]
        assert end["loss"] < train[1]["loss"] - 1
        kept = {step: line["kept_tokens"] for step, line in train.items()}
        assert (kept[1], kept[8], kept[9]) == ((32, 112, 128) if name == "random_ltd" else (128, 128, 128))
        assert list((folder / "tensorboard").iterdir())
        assert (folder / "latest_checkpointed_iteration.txt").read_text().strip() == str(max(train))


def test_repeating_a_finished_run_does_nothing(repository: Path, home: Path, trained: dict[str, str]) -> None:
    before = snapshot(home / RUNS / "dense" / "iter_0000015")
    again = run(repository, home, "gpt3/pretrain.sh", "1.3b", "dense", **TINY, NPROC="1")
    assert again.returncode == 0 and "there is nothing left to do" in again.stdout
    assert snapshot(home / RUNS / "dense" / "iter_0000015") == before


@pytest.fixture(scope="module")
def scored(repository: Path, home: Path, trained: dict[str, str]) -> str:
    """The output of the evaluation, which ends with the table."""
    runs = [str(RUNS / name) for name in ("dense", "random_ltd")]
    ended = run(repository, home, "gpt3/evaluate.sh", *runs, **TINY, NPROC="1")  # the same scores on one process
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout


def test_both_runs_are_scored_and_compared(repository: Path, home: Path, scored: str) -> None:
    scores = {}
    for name in ("dense", "random_ltd"):
        (result,) = (home / RUNS / "results").glob(f"{name}-*-steps/*/results_*.json")
        found = json.loads(result.read_text())
        assert found["n-samples"]["lambada_openai"]["effective"] == 20
        scores[name] = found["results"]["lambada_openai"]["acc,none"]
    assert "| task | metric | dense | random_ltd |" in scored
    (row,) = (line for line in scored.splitlines() if re.match(r"\| LAMBADA[^|]* \| acc \|", line))
    assert [float(cell.split()[0]) for cell in row.split("|")[3:5]] == [100 * score for score in scores.values()]
    runs = [str(RUNS / name) for name in ("dense", "random_ltd", "results")]
    again = run(repository, home, "gpt3/evaluate.sh", *runs, **TINY)
    assert again.returncode == 0 and again.stdout.count("there already: ") == 2 and row in again.stdout
    other = run(repository, home, "gpt3/evaluate.sh", *runs, "--num_fewshot", "1", **TINY)
    assert other.returncode == 2 and "-steps: these scores were made with other flags" in other.stderr


def test_ctrl_c_ends_an_evaluation_in_one_line(repository: Path, home: Path, trained: dict[str, str]) -> None:
    """Ctrl-C causes no failure report of torchrun, and leaves no process or partial results."""
    (home / "interrupted").symlink_to(RUNS / "dense")  # scores are written beside the link
    with child(
        ["bash", str(repository / "examples/gpt3/evaluate.sh"), "interrupted", "--verbose"],
        env=environment(**TINY, **NEW_PYTHON), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as script:  # fmt: skip
        assert script.stdout is not None
        for line in script.stdout:
            if "Setting random seed" in line:
                break
        os.killpg(script.pid, signal.SIGINT)
        said, _ = script.communicate(timeout=PATIENCE_SECONDS)
    assert script.returncode == 130 and said.splitlines()[-1] == "stopped; the same command goes on from here", said
    assert "evaluate.py: interrupted" in said and "Traceback" not in said and "Killed" not in said, said
    assert not list((home / "results").rglob("results_*.json"))
    with pytest.raises(ProcessLookupError):
        os.killpg(script.pid, 0)

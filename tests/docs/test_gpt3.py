"""The GPT-3 examples in small, as a user runs them: from text to the table of scores."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docs.gpt3_scripts import run
from tests.end_to_end.runs import metrics, snapshot
from tests.support_processes import PATIENCE_SECONDS, child

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


TINY = {"TINY": "1", "OUT": "out", "DATA_DIR": "data"}


@pytest.fixture(scope="module")
def prepared(repository: Path, home: Path) -> str:
    """The data, made in two parts at once and joined; what was printed at last."""

    def prepare(**part: str) -> str:
        ended = run(repository, home, "gpt3_1.3b/prepare_data.sh", **TINY, WORKERS="1", **part)
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
        return ended.stdout

    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda part: prepare(SHARD=part), ["1/2", "2/2"]))
    return prepare(MERGE="2")


@pytest.fixture(scope="module")
def trained(repository: Path, home: Path, prepared: str) -> dict[str, str]:
    """What the two runs printed."""
    printed = {}
    for method, script in (("random-ltd", "pretrain_random_ltd.sh"), ("dense", "pretrain_dense.sh")):
        ended = run(repository, home, f"gpt3_1.3b/{script}", "300B", **TINY)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
        printed[method] = ended.stdout
    return printed


def test_parts_of_the_data_join_to_what_one_command_makes(repository: Path, home: Path, prepared: str) -> None:
    assert re.search(r"corpus_text_document: [\d,]+ documents, [\d,]+ tokens of 2 datasets", prepared)
    whole = run(repository, home, "gpt3_350m/prepare_data.sh", **(TINY | {"DATA_DIR": "whole"}), WORKERS="1")
    assert whole.returncode == 0, whole.stderr
    for suffix in ("bin", "idx", "json"):
        name = f"corpus_text_document.{suffix}"
        assert (home / "whole" / name).read_bytes() == (home / "data" / name).read_bytes()
    before = snapshot(home / "data")
    again = run(repository, home, "gpt3_1.3b/prepare_data.sh", **TINY, MERGE="2")
    assert again.returncode == 0 and "there already: " in again.stdout
    assert snapshot(home / "data") == before


def test_both_runs_train_to_their_end(home: Path, trained: dict[str, str]) -> None:
    """On two processes; as many layer tokens in both, as the variant says."""
    for name in ("random-ltd", "dense"):
        folder = home / "out" / f"{name}-300B"
        lines = metrics(folder)
        train = {step: line for (kind, step), line in lines.items() if kind == "train"}
        end = train[max(train)]
        assert 15_000 <= end["consumed_layer_tokens"] / 4 < 15_000 + 8 * 128
        assert "2 processes, bfloat16" in trained[name] and "data 2 with distributed optimizer" in trained[name]
        assert end["loss"] < train[1]["loss"] - 1
        kept = {step: line["kept_tokens"] for step, line in train.items()}
        assert (kept[1], kept[8], kept[9]) == ((32, 112, 128) if name == "random-ltd" else (128, 128, 128))
        assert list((folder / "tensorboard").iterdir())
        assert (folder / "latest_checkpointed_iteration.txt").read_text().strip() == str(max(train))


def test_the_same_command_again_has_nothing_left_to_do(repository: Path, home: Path, trained: dict[str, str]) -> None:
    before = snapshot(home / "out" / "dense-300B" / "iter_0000015")
    again = run(repository, home, "gpt3_1.3b/pretrain_dense.sh", "300B", **TINY, NPROC="1")
    assert again.returncode == 0 and "nothing is left to do" in again.stdout
    assert snapshot(home / "out" / "dense-300B" / "iter_0000015") == before


@pytest.fixture(scope="module")
def scored(repository: Path, home: Path, trained: dict[str, str]) -> str:
    """What was printed at last: the table."""
    ended = run(repository, home, "gpt3_1.3b/evaluate.sh", **TINY, NPROC="1")  # the scores are the same on one process
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout


def test_both_runs_are_scored_and_compared(repository: Path, home: Path, scored: str) -> None:
    scores = {}
    for name in ("dense-300B", "random-ltd-300B"):
        (result,) = (home / "out" / "results").glob(f"{name}-*-steps/*/results_*.json")
        found = json.loads(result.read_text())
        assert found["n-samples"]["lambada_openai"]["effective"] == 20
        scores[name] = found["results"]["lambada_openai"]["acc,none"]
    assert "| task | metric | dense-300B | random-ltd-300B |" in scored
    (row,) = (line for line in scored.splitlines() if re.match(r"\| LAMBADA[^|]* \| acc \|", line))
    assert [float(cell.split()[0]) for cell in row.split("|")[3:5]] == [100 * score for score in scores.values()]
    again = run(repository, home, "gpt3_1.3b/evaluate.sh", **TINY)
    assert again.returncode == 0 and again.stdout.count("there already: ") == 2 and row in again.stdout
    other = run(repository, home, "gpt3_1.3b/evaluate.sh", **TINY, NUM_FEWSHOT="1")
    assert other.returncode == 2 and "-steps holds other scores (TASKS=lambada_openai NUM_FEWSHOT=0" in other.stderr


def test_folders_of_another_size_or_other_settings(repository: Path, home: Path, trained: dict[str, str]) -> None:
    before = snapshot(home / "out")
    for script, arguments, settings, message in (
        (
            "gpt3_350m/pretrain_dense.sh",
            ["300B"],
            {},
            "/dense-300B was made with other settings (gpt3-1.3b dense-300B: ",
        ),
        ("gpt3_1.3b/pretrain_dense.sh", ["300B"], {"LR": "1e-4"}, "/dense-300B was made with other settings ("),
        (
            "gpt3_350m/evaluate.sh",
            ["dense-300B"],
            {},
            "/dense-300B is a gpt3-1.3b, not a gpt3-350m: take the script of",
        ),
        ("gpt3_1.3b/prepare_data.sh", [], {"INPUT": "a.jsonl", "SHARD": "1/2"}, "was made with other settings (INPUT="),
    ):
        ended = run(repository, home, script, *arguments, **(TINY | settings))
        lines = ended.stderr.splitlines()
        assert (ended.returncode, len(lines)) == (2, 1) and message in lines[0], ended.stdout + ended.stderr
    assert snapshot(home / "out") == before


def test_ctrl_c_ends_an_evaluation_in_one_line(repository: Path, home: Path, trained: dict[str, str]) -> None:
    """Without torchrun's report of a failure, and without a process or a score that stays."""
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "LANG")}
    with child(
        ["bash", str(repository / "examples/gpt3_1.3b/evaluate.sh"), "dense-300B"],
        env={**environment, **TINY, "OMP_NUM_THREADS": "1", "VENV": sys.prefix, "RESULTS": "interrupted"},
        cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as script:  # fmt: skip
        assert script.stdout is not None
        for line in script.stdout:
            if "Selected Tasks" in line:
                break
        os.killpg(script.pid, signal.SIGINT)
        said, _ = script.communicate(timeout=PATIENCE_SECONDS)
    assert script.returncode == 130 and said.splitlines()[-1] == "stopped; the same command goes on from here", said
    assert "evaluate.py: interrupted" in said and "Traceback" not in said and "Killed" not in said, said
    assert not list((home / "interrupted").rglob("results_*.json"))
    with pytest.raises(ProcessLookupError):
        os.killpg(script.pid, 0)

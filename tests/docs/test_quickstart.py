"""The quickstart as a new user runs it, in its small version, in this Python environment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.docs.documents import code_blocks
from tests.docs.example_scripts import NEW_PYTHON, environment, run
from tests.support_processes import PATIENCE_SECONDS, child

pytestmark = pytest.mark.slow

STEPS = 30
EQUAL_FLOPS_STEPS = 26
RUNS = ("random-ltd", "dense-equal-flops", "dense")


def quick(repository: Path, cwd: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return run(repository, cwd, "quickstart/run.sh", *words, TINY="1", **settings)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, str]:
    """The output folder, which was given as a relative path, and what was printed."""
    home = tmp_path_factory.mktemp("home")
    result = quick(repository, home, "--out", "out", **NEW_PYTHON)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout[-2000:] + result.stderr[-2000:]
    return home / "out", result.stdout


def lines_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_the_table_is_that_of_the_runs(quickstart: tuple[Path, str]) -> None:
    out, printed = quickstart
    rows = dict(re.findall(r"^(\S.*?) {2,}(\S.*)$", printed.partition("== compare")[2], flags=re.MULTILINE))
    assert re.search(r"^ +random-LTD +dense, same FLOPs +dense, same steps$", printed, flags=re.MULTILINE)
    assert rows["steps"].split() == [str(STEPS), str(EQUAL_FLOPS_STEPS), str(STEPS)]
    losses = [lines_of(out / name, "validation")[-1]["loss"] for name in RUNS]
    assert rows["validation loss"].split() == [f"{loss:.4f}" for loss in losses]
    dropped = lines_of(out / "random-ltd", "train")
    saved = 1.0 - sum(step["step_flops"] for step in dropped) / sum(step["dense_step_flops"] for step in dropped)
    assert re.split(r" {2,}", rows["saved, theoretical (FLOPs)"]) == [f"{100 * saved:.1f} %", "-", "-"]
    assert re.split(r" {2,}", rows["saved, measured (CPU seconds)"])[1:] == ["-", "-"]


def test_dense_takes_the_flops_of_random_ltd(quickstart: tuple[Path, str]) -> None:
    """The FLOPs are equal to within half a dense step."""
    out, printed = quickstart
    dropped, short = (lines_of(out / name, "train") for name in RUNS[:2])
    missing = sum(step["step_flops"] for step in dropped) - sum(step["step_flops"] for step in short)
    assert abs(missing) <= short[0]["step_flops"] / 2
    assert f"{EQUAL_FLOPS_STEPS} dense steps take as many FLOPs as {STEPS} with random-LTD" in printed


def test_all_runs_learn(quickstart: tuple[Path, str]) -> None:
    out, _ = quickstart
    for name in RUNS:
        losses = [line["loss"] for line in lines_of(out / name, "validation")]
        assert losses[-1] < losses[0] and losses[-1] < 6.6  # an untrained model has ln 1024 = 6.93


def test_random_ltd_drops_and_ends_dense(quickstart: tuple[Path, str]) -> None:
    kept = [step["kept_tokens"] for step in lines_of(quickstart[0] / "random-ltd", "train")]
    assert kept == sorted(kept) and (kept[0], kept[-1]) == (32, 128)
    run_line = lines_of(quickstart[0] / "random-ltd", "run")[0]
    assert run_line["method"] == "random_ltd" and run_line["config"]["methods"]["random_ltd"]["ltd_block_size"] == 16


def test_figure_and_sample(quickstart: tuple[Path, str]) -> None:
    out, printed = quickstart
    assert (out / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    sample = printed.partition("== a sample from the random-LTD model")[2].partition("\n")[2]
    assert sample.startswith("If the file") and len(sample.partition("\n-- ")[0]) > len("If the file")
    assert "warning" not in printed.lower()


def test_a_second_run_skips_what_is_finished(quickstart: tuple[Path, str], repository: Path) -> None:
    out, _ = quickstart
    steps = lines_of(out / "dense", "train")
    result = quick(repository, out.parent, "--out", "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("there already: ") == 4 and result.stdout.count("there is nothing left to do") == 3
    assert lines_of(out / "dense", "train") == steps


def in_form(line: str) -> str:
    """A line of output without its numbers, their unit prefixes and the width of columns."""
    numbers = re.sub(r"\d[\d.]*(?:e-\d+)?(?::\d\d)*", "#", line)
    return " ".join(re.sub(r"# [KMGT](?:\b|(?=FLOP/s))", "#", numbers).split())


def test_the_front_page_shows_what_is_printed(quickstart: tuple[Path, str], repository: Path) -> None:
    """Each line has the form of a printed line. The plan, which does not depend on the machine, is equal."""
    (block,) = code_blocks((repository / "README.md").read_text(encoding="utf-8"), "text")
    shown, printed = block.splitlines(), quickstart[1].splitlines()
    assert len(shown) == 10
    assert {in_form(line) for line in shown} <= {in_form(line) for line in printed}
    first_losses = next(place for place, line in enumerate(shown) if line.startswith("step "))
    assert set(shown[:first_losses]) <= set(printed)


def test_the_card_names_existing_files(repository: Path) -> None:
    """Every script and settings file that the README of the quickstart names exists."""
    folder = repository / "examples" / "quickstart"
    card = (folder / "README.md").read_text()
    scripts = set(re.findall(r"[\w/]+\.(?:py|sh)\b", card)) - {"run.sh"}
    assert len(scripts) == 8 and all((repository / path).is_file() for path in scripts)
    files = set(re.findall(r"\b\w+\.yaml\b", card)) - {"config.yaml"}
    assert files == {"recipe.yaml", "random_ltd.yaml", "tiny.yaml"} == {path.name for path in folder.glob("*.yaml")}


def test_other_settings_or_a_foreign_folder_are_refused(
    quickstart: tuple[Path, str], repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").touch()
    for words, message in (
        (["--out", str(quickstart[0]), "--seed", "7"], "--seed"),
        (["--out", str(quickstart[0]), "--sed", "7"], "--sed: there is no such flag; use --seed"),
        (["--out", "."], "the folder is not empty, and was not made by this example; choose another one"),
    ):
        result = quick(repository, tmp_path, *words)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1 and message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def is_under_way(script: int) -> bool:
    """Whether a command of the script runs, and no interpreter starts: CPython would print a traceback of its own."""
    try:
        commands = [one for one in psutil.Process(script).children(recursive=True) if "python" in one.name()]
        return bool(commands) and all(sum(one.cpu_times()[:2]) > 0.6 for one in commands)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(os.environ.get("CTRL_C") != "all", reason="two minutes; CTRL_C=all runs it")
def test_ctrl_c_in_every_stage(quickstart: tuple[Path, str], repository: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches the script and its children, as in a terminal. The same command goes on from where it was stopped,
    and after all these stops its runs are bit for bit those of the uninterrupted ones.
    """
    script = ["bash", str(repository / "examples" / "quickstart" / "run.sh"), "--out", "out"]
    stages = re.findall(r"^== (.*)$", quickstart[1], flags=re.MULTILINE)
    assert len(stages) == 10 and stages[-2] == "compare"
    for stage in stages[1:]:
        with (tmp_path / "stdout").open("w") as out, (tmp_path / "stderr").open("w") as err:
            settings = environment(TINY="1", **NEW_PYTHON)
            with child(script, cwd=tmp_path, env=settings, stdout=out, stderr=err) as process:
                deadline = time.monotonic() + PATIENCE_SECONDS
                while f"== {stage}" not in (tmp_path / "stdout").read_text() and time.monotonic() < deadline:
                    time.sleep(0.01)
                while not is_under_way(process.pid) and process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.001)
                os.killpg(process.pid, signal.SIGINT)
                status = process.wait(timeout=PATIENCE_SECONDS)
        stdout, stderr = (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()
        assert status == 130, (stage, stdout[-500:], stderr)
        assert "stopped; the same command goes on from here" in stdout and "Traceback" not in stderr, (stage, stderr)
        assert len(stderr.splitlines()) <= 1, (stage, stderr)
    result = quick(repository, tmp_path, "--out", "out", **NEW_PYTHON)
    assert (result.returncode, result.stderr) == (0, "")
    for name in RUNS:
        losses = [
            [line["loss"] for line in lines_of(of / name, "validation")] for of in (quickstart[0], tmp_path / "out")
        ]
        assert losses[0] == losses[1]


def test_ctrl_c_stops_cleanly(repository: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches the script and its children, as in a terminal, during tokenization."""
    script = ["bash", str(repository / "examples" / "quickstart" / "run.sh"), "--out", "out"]
    pipes: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with child(script, cwd=tmp_path, env=environment(TINY="1", **NEW_PYTHON), **pipes) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        # Not while an interpreter starts: CPython would print a traceback of its own.
        while not list((tmp_path / "out").glob("*.tmp-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "stopped; the same command goes on from here" in stdout
    assert "Traceback" not in stderr
    assert not list((tmp_path / "out").glob("*_text_document.json"))

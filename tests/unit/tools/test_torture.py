"""The campaigns of ``tools/torture.py``: a few trials of each, what counts as wrong, and their page."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron.ltd.errors import UserError
from tests.support_processes import PATIENCE_SECONDS, child
from tools.torture.child import Bounds, Ending, in_child
from tools.torture.config import CAMPAIGNS, SHARES, TortureConfig
from tools.torture.damage import CHANGES, KINDS, damage
from tools.torture.report import to_markdown
from tools.torture.saved import equal_tensors
from tools.torture.trials import Journal, Trial
from tools.torture.verdict import problem_of

TRIAL = Trial("disks", 3, "full", "training", "2: x: error: y", "", 1.5)


def torture(repository: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    """Run the tool as its own process: children are forked from it, which the process of the tests must not do."""
    command = [sys.executable, str(repository / "tools/torture.py"), *map(str, flags)]
    with child(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, said = process.communicate(timeout=PATIENCE_SECONDS)
    return subprocess.CompletedProcess(command, process.returncode, out, said)


SLICES = {2: ("kills", "disks"), 32: ("corruption", "command-lines", "data-files")}
"""Trials of each campaign: every target of the corruptions, and every kind of data file."""


@pytest.mark.slow
@pytest.mark.parametrize("trials", SLICES)
def test_a_slice_of_each_campaign(repository: Path, tmp_path: Path, trials: int) -> None:
    """All but trial 0 of the kills, which is under torchrun and takes a minute; see ``tests/launched`` for that."""
    campaigns = SLICES[trials]
    (tmp_path / "torture.jsonl").write_text(
        json.dumps({"seed": 5, **vars(replace(TRIAL, campaign="kills", number=0))}) + "\n"
    )
    ran = torture(
        repository, "--campaign", *campaigns, "--trials", trials, "--seed", 5, "--workers", 1, "--minutes", 1000,
        "--output", tmp_path / "torture",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    reports = json.loads((tmp_path / "torture.json").read_text())
    for name in campaigns:
        rows = [row for row in reports[0]["rows"] if row["campaign"] == name]
        assert sum(row["tried"] + row["skipped"] for row in rows) == trials
        assert sum(row["right"] for row in rows) == sum(row["tried"] for row in rows)
    assert (tmp_path / "torture.md").read_text() == to_markdown(reports)
    assert {trial.campaign for trial in Journal(tmp_path / "torture.jsonl").read(5)} == {"kills", *campaigns}


@pytest.mark.parametrize("limit", [0, 2, 5])
def test_a_limit_of_processes_counts_for_root_too(limit: int, tmp_path: Path) -> None:
    """With none at all it cannot fork, and every limit gives the line that a user sees."""
    from megatron.ltd.machine import limits_problem
    from tools.torture import namespaces

    def limited() -> None:
        namespaces.become_limited()
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
        (tmp_path / "written").touch()
        print(limits_problem())
        if limit == 0:
            os.fork()

    ending = in_child(limited, tmp_path / "folder", Bounds())
    if "Invalid argument" in ending.said or "Operation not permitted" in ending.said:
        pytest.skip("this machine has no second user")
    assert f"of this user is {limit} (ulimit -H -u), and a command needs 64" in ending.out
    assert (tmp_path / "written").exists() and (limit != 0 or "BlockingIOError" in ending.said)


@pytest.mark.parametrize(("words", "problem"), [
    ("--num-layers 3 --global-batch-size 64 --micro-batch-size 2", "no end within"),
    ("--num-layers 3 --global-batch-size 64 --num-layers 4000", "skipped: a step of 256,000 layers"),
])  # fmt: skip
def test_a_step_that_nobody_waits_for_is_skipped(
    words: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.torture.campaigns import command_lines
    from tools.torture.programs import Program

    killed = Ending(-9, "", "", 44.0, 0, was_asked=True, was_killed=True, left=False)
    monkeypatch.setattr(command_lines, "in_child", lambda *_: killed)
    monkeypatch.setattr(command_lines, "command_line", lambda *_: words.split())
    (tmp_path / "material").mkdir()
    program = Program(tmp_path / "p.py", [], [[]], trains=True)
    trial = command_lines.CommandLines(tmp_path / "material", [program]).attempt(1, random.Random(1), tmp_path / "t")
    assert trial.problem.startswith(problem) and trial.is_wrong == (problem == "no end within")


PLANTED: dict[str, tuple[str, str]] = {
    "a traceback": ("raise ZeroDivisionError('planted')", "a traceback: ZeroDivisionError: planted"),
    "two lines": ("import sys; print('p: error: a\\nb', file=sys.stderr); sys.exit(2)", "exit status 2 and 2 lines"),
    "no line": ("raise SystemExit(2)", "exit status 2 and 0 lines"),
    "another status": ("raise SystemExit(7)", "exit status 7"),
    "a process left": ("import subprocess; subprocess.Popen(['sleep', '60'])", "processes are left behind"),
    "a signal": ("import os; os.kill(os.getpid(), 12)", "ended by signal 12"),
}


@pytest.mark.parametrize(("code", "problem"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_fault_is_wrong(code: str, problem: str, tmp_path: Path) -> None:
    from tools.torture.campaigns.command_lines import CommandLines
    from tools.torture.programs import Program

    (tmp_path / "material").mkdir()
    (tmp_path / "planted.py").write_text(code)
    campaign = CommandLines(tmp_path / "material", [Program(tmp_path / "planted.py", [TortureConfig], [[]])])
    trial = campaign.attempt(0, random.Random(0), tmp_path / "trial")
    assert trial.problem == problem and not trial.is_right


def _never_ends() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000.0)


def _eats() -> None:
    print(len(b"x" * 1_200_000_000))


BOUNDS = {"time": (_never_ends, 0.05, "no end within"), "memory": (_eats, 300.0, "1.2 GB of memory")}


@pytest.mark.parametrize(("function", "seconds", "problem"), BOUNDS.values(), ids=BOUNDS.keys())
def test_time_and_memory_are_bounded(
    function: Callable[[], None], seconds: float, problem: str, tmp_path: Path
) -> None:
    assert problem in problem_of(in_child(function, tmp_path / "trial", Bounds(seconds, seconds)))


def test_a_line_and_its_status_are_right(tmp_path: Path) -> None:
    def stops() -> None:
        print("p: stopped: a NaN", file=sys.stderr)
        raise SystemExit(1)

    ending = in_child(stops, tmp_path / "trial")
    assert problem_of(ending, may_stop=True) == "" and problem_of(ending) == "exit status 1"


@pytest.mark.parametrize(("lines", "problem", "verbose"), [
    (["p: error: x"], "", ""), (["a log", "p: error: x"], "exit status 2 and 2 lines", ""),
    (["p: error: x", "a log"], "exit status 2 and 2 lines", "exit status 2 and 2 lines"),
    (["p: error: x", "p: error: y"], "exit status 2 and 2 lines", "exit status 2 and 2 lines"),
])  # fmt: skip
def test_a_log_comes_before_the_line(lines: list[str], problem: str, verbose: str, tmp_path: Path) -> None:
    def fails() -> None:
        print(*lines, sep="\n", file=sys.stderr)
        raise SystemExit(2)

    ending = in_child(fails, tmp_path / "trial")
    assert problem_of(ending) == problem and problem_of(ending, may_log=True) == verbose


def test_a_damaged_field_leaves_json(tmp_path: Path) -> None:
    """Of a file with one value, and of one with a value a line, of which one line changes."""
    record = {"layers": 12, "parts": {"name": ["small", {"deep": 7}]}}
    for number in range(200):
        (tmp_path / "one").write_text(json.dumps(record, indent=1))
        (tmp_path / "many").write_text((json.dumps(record) + "\n") * 3)
        for name in ("one", "many"):
            damage(tmp_path / name, "a field", random.Random(number))
        assert json.loads((tmp_path / "one").read_text()) != record
        found = [json.loads(line) for line in (tmp_path / "many").read_text().splitlines()]
        assert len(found) == 3 and found.count(record) == 2


def test_damage_is_drawn_from_its_seed(tmp_path: Path) -> None:
    """Each kind changes what a reader of the file finds, and the same seed makes the same file."""
    content = json.dumps({"layers": 12, "name": "small"}).encode() * 20
    for kind in (*CHANGES, *KINDS):
        found = []
        for attempt in range(2):
            path = tmp_path / f"{kind.replace('/', '-')}-{attempt}"
            path.write_bytes(content)
            damage(path, kind, random.Random(2))
            found.append(path.read_bytes() if path.is_file() else path.stat().st_mode if path.exists() else None)
        assert found[0] != content and found[0] == found[1]


def test_tensor_files_are_compared(tmp_path: Path) -> None:
    for name, content in (("one", "weights"), ("same", "weights"), ("other", "Weights"), ("none", "")):
        folder = tmp_path / name / "iter_0000005"
        folder.mkdir(parents=True)
        if content:
            (folder / "__0_0.distcp").write_text(content)
    assert equal_tensors(tmp_path / "one", tmp_path / "same", 5)
    assert not equal_tensors(tmp_path / "one", tmp_path / "other", 5)
    assert not equal_tensors(tmp_path / "one", tmp_path / "none", 5)
    assert not equal_tensors(tmp_path / "none", tmp_path / "none", 5)


def test_flags() -> None:
    assert TortureConfig().chosen == tuple(CAMPAIGNS) == tuple(SHARES)
    assert TortureConfig(campaign=("disks", "kills")).chosen == ("kills", "disks")
    assert TortureConfig(campaign=("kills", "disks"), minutes=52).deadlines == {"kills": 2400.0, "disks": 3120.0}
    assert TortureConfig().num_workers == len(os.sched_getaffinity(0))
    with pytest.raises(UserError, match="--trial 3"):
        TortureConfig(trial=3)
    with pytest.raises(UserError, match="--target scores"):
        TortureConfig(campaign=("corruption", "disks"), target=("scores",))


def test_every_program_with_flags_is_tried(repository: Path) -> None:
    """All scripts of commands."""
    from tools.torture.programs import programs

    found = {
        path.name
        for path in [*repository.glob("*.py"), *(repository / "tools").glob("*.py")]
        if "from megatron.ltd.commands" in path.read_text(encoding="utf-8")
    }
    assert {program.name for program in programs()} == found

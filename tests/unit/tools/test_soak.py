"""The soak test with a single kill, its comparison of runs, and its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron.ltd.errors import UserError
from tests.end_to_end.runs import run_status
from tests.support_processes import PATIENCE_SECONDS
from tools.soak.config import SoakConfig
from tools.soak.drive import Kill, Result, _equal_files
from tools.soak.report import to_markdown, write

RESULT = Result(
    kills=[Kill("rank 0", 7, "saving"), Kill("the node", 9, "starting"), Kill("rank 0", 12, "training")],
    resumes=2, num_steps=60, repeated_steps=3, straight_seconds=40.0, seconds=70.0, longest_restart_seconds=9.5,
    equal_steps=True, equal_weights=True, processes_left=0,
)  # fmt: skip


@pytest.mark.distributed
@pytest.mark.slow
def test_one_kill(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "tools/soak.py"), "--kills", "1", "--steps", "12", "--async-save"]
    more = ["--work-dir", str(tmp_path / "work"), "--output-prefix", str(tmp_path / "soak"), "--seed", "3"]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    ran = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "kill 1/1: " in ran.stdout
    result = json.loads((tmp_path / "soak.json").read_text())["asynchronous"]["result"]
    assert len(result["kills"]) == 1 and result["num_steps"] == 12
    assert result["equal_steps"] and result["equal_weights"] and result["processes_left"] == 0
    assert "| final weights and optimizer state bit-equal | yes |" in (tmp_path / "soak.md").read_text()


def test_any_difference_makes_a_result_bad() -> None:
    assert RESULT.is_good
    for change in ({"equal_steps": False}, {"equal_weights": False}, {"processes_left": 1}):
        assert not replace(RESULT, **change).is_good


def test_files_are_compared(tmp_path: Path) -> None:
    for name, content in (("one", "weights"), ("same", "weights"), ("other", "Weights"), ("none", "")):
        folder = tmp_path / name / "iter_0000005"
        folder.mkdir(parents=True)
        if content:
            (folder / "__0_0.distcp").write_text(content)
    assert _equal_files(tmp_path / "one", tmp_path / "same", 5)
    assert not _equal_files(tmp_path / "one", tmp_path / "other", 5)
    assert not _equal_files(tmp_path / "one", tmp_path / "none", 5)
    assert not _equal_files(tmp_path / "none", tmp_path / "none", 5)


def test_both_kinds_of_save_share_a_page(tmp_path: Path) -> None:
    from dataclasses import asdict

    entry = {"command": "python tools/soak.py", "date": "today", "machine": "this", "versions": "1"}
    prefix = str(tmp_path / "soak")
    write(prefix, "synchronous", entry | {"result": asdict(RESULT)})
    write(prefix, "asynchronous", entry | {"result": asdict(replace(RESULT, equal_weights=False))})
    text = to_markdown(json.loads(Path(f"{prefix}.json").read_text()))
    assert Path(f"{prefix}.md").read_text() == text
    assert "| kills | 3 (2 of rank 0, 1 of the node) | 3 (2 of rank 0, 1 of the node) |" in text
    assert "| seconds lost a kill | 10.0 | 10.0 |" in text
    assert "| final weights and optimizer state bit-equal | yes | **no** |" in text


def test_the_committed_page_agrees_with_its_figures(repository: Path) -> None:
    prefix = repository / "tools" / "benchmark" / "results" / "soak"
    assert prefix.with_suffix(".md").read_text() == to_markdown(json.loads(prefix.with_suffix(".json").read_text()))


@pytest.mark.parametrize("flags", [{"kills": 0}, {"save_interval": 0}, {"kills": 10, "steps": 19}])
def test_bad_flags_are_refused(flags: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be at least"):
        SoakConfig(**flags)


def test_its_run_has_valid_flags(tmp_path: Path) -> None:
    """The flags are valid; the run ends only because the data do not exist."""
    status, said = run_status(SoakConfig(kills=1).run_flags(str(tmp_path / "none"), str(tmp_path / "save")))
    assert status == 2 and "does not exist" in said

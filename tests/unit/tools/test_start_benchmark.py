"""The benchmark of starts over blends: one small whole measurement, and the committed page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def rows(page: str) -> list[list[str]]:
    """The cells of the table of blends, without its head."""
    table = page.partition("## Over many datasets")[2]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return cells[2:]


@pytest.mark.slow
def test_a_small_measurement(repository: Path) -> None:
    """Files are opened for each dataset, and the second start writes no index."""
    command = [sys.executable, "-W", "ignore", str(repository / "tools" / "benchmark" / "start.py")]
    ended = subprocess.run(
        [*command, *"--rounds 0 --datasets 1 3".split()], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    (one, three) = rows(ended.stdout)
    assert (one[0], three[0]) == ("1", "3") and int(three[3]) > int(one[3]) > 5 < int(three[6])


def test_the_committed_starts_are_short(repository: Path) -> None:
    """A plan and a refusal within a second, a first step within 12 on two cores."""
    page = (repository / "tools" / "benchmark" / "results" / "start.md").read_text()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    (plan, refusal, step) = ([float(cell) for cell in row[1:]] for row in table[2:5])
    assert max(plan) < 1 and max(refusal) < 1 and max(step) < 12


def test_the_committed_page_grows_in_proportion(repository: Path) -> None:
    page = (repository / "tools" / "benchmark" / "results" / "start.md").read_text()
    opened = [[int(cell.replace(",", "")) for cell in (row[0], row[3], row[6])] for row in rows(page)]
    assert len(opened) >= 2
    for number, *files in opened:
        assert all(count < 30 * number for count in files)

"""The benchmark of starts over blends: one small whole measurement, and the committed page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.tools import tool_status
from tests.unit.tools.tables import table_rows


def rows(page: str) -> list[list[str]]:
    """Those of the table of blends."""
    return table_rows(page.partition("## Over many datasets")[2])


@pytest.mark.slow
def test_a_small_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    """Files are opened for each dataset, and the second start writes no index."""
    assert tool_status("benchmark/start.py", *"--rounds 0 --datasets 1 3".split()) == (0, "")
    one, three = rows(capsys.readouterr().out)
    assert (one[0], three[0]) == ("1", "3") and int(three[3]) > int(one[3]) > 5 < int(three[6])


def test_the_committed_starts_are_short(repository: Path) -> None:
    """A plan and a refusal within a second, a first step within 12 on two cores."""
    page = (repository / "tools" / "benchmark" / "results" / "start.md").read_text()
    plan, refusal, step = ([float(cell) for cell in row[1:]] for row in table_rows(page)[:3])
    assert max(plan) < 1 and max(refusal) < 1 and max(step) < 12


def test_the_committed_page_grows_in_proportion(repository: Path) -> None:
    page = (repository / "tools" / "benchmark" / "results" / "start.md").read_text()
    opened = [[int(cell.replace(",", "")) for cell in (row[0], row[3], row[6])] for row in rows(page)]
    assert len(opened) >= 2
    for number, *files in opened:
        assert all(count < 30 * number for count in files)

"""The benchmark of data: one small whole measurement, and the committed page."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import data
import pytest

from tests.end_to_end.tools import tool_status
from tests.support_processes import PATIENCE_SECONDS
from tests.unit.tools.tables import table_rows

KINDS = ["JSON lines", "gzip", "bzip2", "xz", "Zstandard", "plain text", "Parquet", "Arrow"]


def rows(page: str) -> list[list[str]]:
    """Those of the table of kinds."""
    return [row for row in table_rows(page) if row[0] in KINDS]


def burn(seconds: float, done: Event, end: Event) -> None:
    """Compute for so many CPU seconds, and wait."""
    end_of_work = time.process_time() + seconds
    while time.process_time() < end_of_work:
        pass
    done.set()
    end.wait()


def test_cpu_seconds_are_also_those_of_a_process_that_lives_on() -> None:
    """As the one that reads tables; this process only waits for it."""
    context = multiprocessing.get_context("fork")
    done, end = context.Event(), context.Event()
    with data.timed() as took:
        process = context.Process(target=burn, args=(0.5, done, end), daemon=True)
        process.start()
        assert done.wait(timeout=PATIENCE_SECONDS)
    end.set()
    process.join()
    assert 0.4 < took.cpu < 5


@pytest.mark.slow
def test_a_small_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool_status("benchmark/data.py", *"--megabytes 1 --rounds 1".split()) == (0, "")
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found] == KINDS
    texts = {row[2] for row in found}
    assert len(texts) <= 2 and all(float(row[3]) > 0 for row in found)


def test_the_committed_page_has_every_kind(repository: Path) -> None:
    page = (repository / "tools" / "benchmark" / "results" / "data.md").read_text()
    assert [row[0] for row in rows(page)] == KINDS

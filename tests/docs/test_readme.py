"""The front page: it is short, and its figures are on linked pages that name the command that measured them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.documents import code_blocks, section, table_rows

MOST_LINES = 150


def test_the_front_page_is_short(repository: Path) -> None:
    assert len((repository / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize(("page", "num_rows"), [("README.md", 8), ("docs/results.md", 9)])
def test_every_figure_is_on_the_linked_page(repository: Path, page: str, num_rows: int) -> None:
    """Decimal numbers of a row are on the page linked in its third column, which names the measuring command."""
    text = (repository / page).read_text(encoding="utf-8")
    rows = table_rows(section(text, "Measured") if page == "README.md" else text)
    assert len(rows) >= num_rows
    for what, result, link in rows:
        target = re.search(r"\]\(([^)#]+)", link)
        assert target is not None, what
        source = (repository / page).parent.joinpath(target[1]).read_text(encoding="utf-8")
        assert "python tools/" in source, f"{target[1]} names no command"
        for figure in re.findall(r"\d+\.\d+", f"{what} {result}"):
            if figure != "1.3":  # GPT-3 1.3B is a name
                assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", source), f"{figure} is not in {target[1]}"


def test_the_front_page_shows_the_main_commands(repository: Path) -> None:
    commands, install = code_blocks((repository / "README.md").read_text(encoding="utf-8"), "bash")
    assert [line.partition("#")[0].strip() for line in commands.splitlines()] == [
        "bash examples/quickstart/run.sh",
        "bash tests/run.sh",
    ]
    assert len(install.splitlines()) == 2 and install.startswith("bash tools/setup_env.sh")

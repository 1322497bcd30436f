"""The tables of a page that a measurement has printed."""

from __future__ import annotations


def table_rows(page: str) -> list[list[str]]:
    """The cells of all rows, without heads and rules."""
    lines = page.splitlines()
    rows = [line for line, below in zip(lines, [*lines[1:], ""], strict=True) if "| ---" not in f"{line}{below}"]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows if line.startswith("|")]

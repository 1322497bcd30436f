"""The tables of docs/tested-layouts.md: each cell links to a test that the suite runs, and no test is missing."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

from tests.distributed.layouts import LAYOUT_CASES, LAYOUTS, RECOMPUTE, RECOMPUTE_CASES, RECOMPUTED_LAYOUTS, VARIANTS
from tests.distributed.test_layout_changes import CHAINS

PAGE = "docs/tested-layouts.md"
LAYOUT_TESTS, CHANGE_TESTS = "tests/distributed/test_layouts.py", "tests/distributed/test_layout_changes.py"
WORDS = {
    "tp2": "tensor 2",
    "sp": "sequence",
    "pp2": "pipeline 2",
    "pp4": "pipeline 4",
    "cp2": "context 2",
    "dp2": "data 2",
    "sharded": "distributed optimizer",
}


def cell(path: str, test: str) -> str:
    return f'[✓](../{path} "{test}")'


def in_words(name: str) -> str:
    return ", ".join(WORDS.get(part, part) for part in name.split()) if name in LAYOUTS else name


def moved(name: str) -> str:
    """A link to the test of the first chain of layouts that contains this one."""
    variant = next(variant for variant, names in CHAINS.items() if name in names)
    return cell(CHANGE_TESTS, f"test_continues_under_another_layout[{variant}]")


def layout_table() -> list[str]:
    """One row per layout: the variants compared with one process, and a change to or from another layout."""
    lines = [f"| layout | {' | '.join(VARIANTS)} | moved |", f"|---|{'---|' * len(VARIANTS)}---|"]
    for name in LAYOUTS:
        cells = [
            cell(LAYOUT_TESTS, f"test_equals_one_process[{name}-{variant}]") if (name, variant) in LAYOUT_CASES else ""
            for variant in VARIANTS
        ]
        lines.append(f"| {in_words(name)} | {' | '.join([*cells, moved(name)])} |")
    return lines


def recompute_table() -> list[str]:
    """One row per mode of activation recompute and layout."""
    lines = [f"| recompute | {' | '.join(VARIANTS)} |", f"|---|{'---|' * len(VARIANTS)}"]
    for mode, name in itertools.product(RECOMPUTE, RECOMPUTED_LAYOUTS):
        cells = [
            cell(LAYOUT_TESTS, f"test_recompute_changes_nothing[{name}-{mode}-{variant}]")
            if (name, mode, variant) in RECOMPUTE_CASES
            else ""
            for variant in VARIANTS
        ]
        lines.append(f"| {mode}; {in_words(name)} | {' | '.join(cells)} |")
    return lines


def test_the_tables_list_the_tests(repository: Path) -> None:
    text = (repository / PAGE).read_text(encoding="utf-8")
    for table in (layout_table(), recompute_table()):
        expected = "\n".join(table)
        assert expected in text, f"{PAGE} must hold:\n{expected}"


def test_the_linked_tests_exist(repository: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", LAYOUT_TESTS, CHANGE_TESTS]
    collected = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.splitlines()
    links = [link.split('"') for row in [*layout_table(), *recompute_table()] for link in row.split("](")[1:]]
    named = {f"{path.strip().removeprefix('../')}::{test}" for path, test, _ in links}
    assert named and not named - set(collected)

"""Every script: ``--help`` says what it does and what flags it has, and a wrong word gets one line; neither starts
anything.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.tools import tool_status
from tests.support import REPOSITORY

TOOLS = sorted(
    str(path.relative_to(REPOSITORY / "tools"))
    for path in [*(REPOSITORY / "tools").glob("*.py"), *(REPOSITORY / "tools" / "benchmark").glob("*.py")]
    if "__main__" in path.read_text(encoding="utf-8")
)
WRONG_WORDS = (["--no-such-flag"], ["word"], ["--conf", "x", "two\nlines"])
TINY = "examples/tiny.py"
TRAINING = sorted(path.name for path in REPOSITORY.glob("*_ltd.py"))


@pytest.mark.parametrize("tool", [*TOOLS, f"../{TINY}"])
def test_help(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str((REPOSITORY / "tools" / tool).parent))
    assert tool_status(tool, "--help") == (0, "")
    said = capsys.readouterr().out
    assert said.startswith("usage: ") and "--help" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", [*(f"tools/{tool}" for tool in TOOLS), TINY, *TRAINING])
@pytest.mark.parametrize("words", WRONG_WORDS, ids=lambda words: words[0])
def test_a_wrong_word(
    script: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str((REPOSITORY / script).parent))
    status, said = tool_status(f"../{script}", *words)
    assert status == 2 and said.count("\n") == 1 and words[0] in said, said
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "missing"), [([], "--example"), (["--example", "gpt3"], "--out")])
def test_the_data_of_an_example_needs_its_name_and_a_folder(
    words: list[str], missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, said = tool_status(f"../{TINY}", *words)
    assert (status, said.count("\n")) == (2, 1) and missing in said, said
    assert not list(tmp_path.iterdir())


def test_every_tool_is_looked_at() -> None:
    assert {"evaluate.py", "benchmark/memory.py", "benchmark/step_time.py"} <= {*TOOLS} and len(TOOLS) >= 20

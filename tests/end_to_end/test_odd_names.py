"""Names and words of a command line that are not UTF-8: everything works in such a folder, or ends in one line."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from megatron.ltd.export import to_hugging_face
from tests.end_to_end.runs import run_status, tiny_flags, write_data
from tests.end_to_end.tools import tool_status
from tests.support_errors import assert_refused

LATIN = "ann\udce9es"  # "années" in Latin-1
TOKENS = ["--device", "cpu", "--num-tokens-to-generate", 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of that name, with a dataset and a finished run."""
    folder = tmp_path_factory.mktemp("names") / LATIN
    folder.mkdir()
    assert run_status(tiny_flags(write_data(folder), "--save", folder / "run")) == (0, "")
    return folder


@pytest.mark.parametrize("table", [False, True])
def test_input_and_output_of_preprocessing(folder: Path, table: bool) -> None:
    source = folder / "train.jsonl"
    if table:
        source = folder / "t.parquet"
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        with source.open("wb") as file:
            parquet.write_table(arrow.table({"text": ["some text"] * 9}), file)
    flags = ["--input", source, "--tokenizer-type", "ByteTokenizer", "--output-prefix", folder / f"{LATIN}{table}"]
    said = io.StringIO()
    with redirect_stdout(said):
        assert tool_status("preprocess_data.py", *flags) == (0, "")
    assert "documents" in said.getvalue()


def test_a_run_is_loaded_and_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool_status("generate_text.py", "--load", folder / "run", "--prompt", "a", *TOKENS) == (0, "")
    assert tool_status("summarize_runs.py", "--runs", folder / "run") == (0, "")
    assert tool_status("report.py", "--run", folder / "run", "--output", folder / "page.html") == (0, "")
    assert "ann\\udce9es" in capsys.readouterr().out
    assert "ann\\udce9es" in (folder / "page.html").read_text(encoding="utf-8")


def test_a_library_that_takes_utf8_only(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    flags = tiny_flags(str(folder / "train_text_document"), "--log-dir", folder / "log", "--tensorboard-dir")
    assert_refused(*run_status([*flags, str(folder / "board")]), "ann\\udce9es", "not UTF-8")


def test_a_prompt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A byte that is not UTF-8 is read as the replacement character."""
    prompt = ("--load", folder / "run", "--prompt", f"a {LATIN}", *TOKENS)
    assert tool_status("generate_text.py", *prompt) == (0, "")
    assert capsys.readouterr().out.startswith("a ann\\udce9es")


def test_the_card_of_an_export(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of a run may also hold half of a surrogate pair, which JSON allows."""
    monkeypatch.setattr(to_hugging_face, "model_card", lambda *_, **__: "trained on \ud800")
    flags = ["--load", folder / "run", "--output", folder / "hf", "--no-tokenizer"]
    assert tool_status("export_hf.py", *flags) == (0, "")
    assert (folder / "hf" / "README.md").read_text(encoding="utf-8") == "trained on \\ud800"


def test_a_terminal_that_cannot_show_a_character(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert tool_status("generate_text.py", "--load", folder / "run", "--prompt", "é✓", *TOKENS) == (0, "")
    assert raw.getvalue().startswith(b"\\xe9\\u2713")

"""The data tools as users run them, one after another: corpus, tokenizer, indexed tokens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron.ltd.data.indexed import check_indexed_dataset
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.end_to_end.tools import tool_status
from tests.support_errors import assert_refused
from tests.support_processes import PATIENCE_SECONDS, child


def command(repository: Path, tool: str, *arguments: str) -> list[str]:
    return [sys.executable, str(repository / "tools" / tool), *arguments]


def test_from_the_built_in_corpus_to_indexed_tokens(repository: Path, tmp_path: Path) -> None:
    steps = [
        ("builtin_corpus.py", "--output-dir", "corpus", "--max-mb", "1.5"),
        ("train_tokenizer.py", "--input", "corpus/train.jsonl", "--vocab-size", "1000", "--output-prefix", "t"),
        ("preprocess_data.py", "--input", "corpus/*.jsonl", "--output-prefix", "d", "--append-eod", *("--workers", "2"))
        + ("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", "t.model"),
    ]
    for step in steps:
        result = subprocess.run(
            command(repository, *step), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(repository)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, "")
        assert len(result.stdout.splitlines()) == 1
    assert "B/s, " in result.stdout and " tokens/s)" in result.stdout
    tokenizer = build_tokenizer(TokenizerFiles("SentencePieceTokenizer", tokenizer_model=str(tmp_path / "t.model")))
    info = check_indexed_dataset(str(tmp_path / "d_text_document"), tokenizer.vocab_size, tokenizer.fingerprint)
    assert info.tokens < 1.5e6 and f"{info.tokens:,} tokens" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["builtin_corpus.py"], "--output-dir"),
        (["train_tokenizer.py", "--input", "none"], "--output-prefix"),
        (["preprocess_data.py", "--input", "none", "--output-prefix", "d"], "--input none"),
        (["merge_datasets.py", "--input", "none", "--output-prefix", "d"], "--input none"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(
    arguments: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, said = tool_status(*arguments)
    assert_refused(status, said, name)
    assert said.startswith(f"{arguments[0]}: ") and capsys.readouterr().out == "" and os.listdir(tmp_path) == []


def test_ctrl_c_leaves_nothing_behind(repository: Path, tmp_path: Path) -> None:
    line = '{"text": "' + "many words " * 100 + '"}\n'
    (tmp_path / "a.jsonl").write_text(line * 60_000)
    arguments = ("--input", "a.jsonl", "--output-prefix", "d", "--tokenizer-type", "ByteTokenizer", "--workers", "2")
    with child(
        command(repository, "preprocess_data.py", *arguments),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not any(path.stat().st_size for path in tmp_path.glob("*.tmp-*")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        # A terminal sends the signal to every process of the command.
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, err) == (130, "", "preprocess_data.py: interrupted\n")
    assert os.listdir(tmp_path) == ["a.jsonl"]

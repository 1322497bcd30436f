"""The books of the comparison: Project Gutenberg's frame cut off, the end of every book held out, encoded.

    book   |header| text ............................................. | last 5 % |footer|
                    train.jsonl, one document a book                     valid.jsonl, one document

Held-out text is one document, cut where it fills a whole number of global batches: every run evaluates the same samples
whatever its seed. Tokenizer and indexed tokens come from the product's own tools.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron.ltd.data.indexed import DatasetCard
from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles

from .recipe import Recipe, RunData

REPOSITORY = Path(__file__).resolve().parents[3]
HELD_OUT_FRACTION = 0.05

_START = re.compile(r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*$", re.MULTILINE)
_END = re.compile(r"^\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*$", re.MULTILINE)


@dataclass(frozen=True)
class CorpusFacts:
    """What the comparison ran on, for its report."""

    books: tuple[str, ...]
    train_characters: int
    train_tokens: int
    held_out_tokens: int
    eval_batches: int
    sha256: str
    """Of both JSONL files, one after the other."""


def strip_frame(text: str, name: str) -> str:
    """The book between Project Gutenberg's START and END lines. Raises ``UserError`` where a line is missing."""
    start, end = _START.search(text), _END.search(text)
    if start is None or end is None or end.start() < start.end():
        missing = "START" if start is None else "END"
        raise UserError(
            f"--data: {name} has no line '*** {missing} OF THIS PROJECT GUTENBERG EBOOK' in its place; give plain-text "
            "books as Project Gutenberg distributes them"
        )
    return text[start.end() : end.start()].strip()


def read_books(folder: Path) -> dict[str, str]:
    """Books by file name, sorted, without frame, line ends as newline. Raises ``UserError``."""
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise UserError(f"--data {folder}: holds no .txt files; give a folder of Project Gutenberg books")
    books = {}
    for path in paths:
        try:
            books[path.name] = strip_frame(path.read_text(encoding="utf-8-sig"), path.name)
        except UnicodeDecodeError as error:
            raise UserError(f"--data: {path} is not UTF-8 at byte {error.start}; convert it") from None
        except OSError as error:
            raise UserError(f"--data: {path} cannot be read ({error.strerror})") from None
    return books


def split_book(text: str) -> tuple[str, str]:
    """Training and held-out part: the last ``HELD_OUT_FRACTION`` of the characters, from the next line start on."""
    cut = len(text) - int(len(text) * HELD_OUT_FRACTION)
    cut = text.find("\n", cut) + 1 or cut
    return text[:cut], text[cut:]


def prepare(recipe: Recipe, source: Path, folder: Path) -> tuple[RunData, CorpusFacts]:
    """Make what the runs read in ``folder``, or take what is there whole. Raises ``UserError`` for bad books."""
    data_file = folder / "corpus.json"
    prefixes = {name: folder / f"{name}_text_document" for name in ("train", "valid")}
    model = folder / "tokenizer.model"
    if not data_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _make(recipe, source, folder, model, data_file)
    facts = read_facts(data_file)
    return RunData(prefixes["train"], prefixes["valid"], model, facts.eval_batches), facts


def read_facts(path: Path) -> CorpusFacts:
    """The facts that ``prepare`` recorded."""
    record = json.loads(path.read_text(encoding="utf-8"))
    return CorpusFacts(**{**record, "books": tuple(record["books"])})


def _make(recipe: Recipe, source: Path, folder: Path, model: Path, data_file: Path) -> None:
    books = read_books(source)
    parts = [split_book(text) for text in books.values()]
    train = write_jsonl(folder / "train.jsonl", [train for train, _ in parts])
    tokenizer_flags = ("--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", f"{model}")
    run_tool(
        "train_tokenizer.py", "--input", f"{folder / 'train.jsonl'}", "--vocab-size", f"{recipe.vocab_size}",
        "--output-prefix", f"{model.with_suffix('')}", "--overwrite",
    )  # fmt: skip
    held_out, eval_batches = cut_held_out("\n\n".join(held_out for _, held_out in parts), recipe, model)
    valid = write_jsonl(folder / "valid.jsonl", [held_out])
    for name in ("train", "valid"):
        run_tool(
            "preprocess_data.py", "--input", f"{folder / name}.jsonl", "--output-prefix", f"{folder / name}",
            "--append-eod", "--overwrite", *tokenizer_flags,
        )  # fmt: skip
    train_card, valid_card = (_read_card(folder / f"{name}_text_document") for name in ("train", "valid"))
    samples = (valid_card.tokens - 1) // recipe.seq_length
    assert samples == eval_batches * recipe.batch_samples, (samples, eval_batches, recipe.batch_samples)
    facts = CorpusFacts(
        books=tuple(books),
        train_characters=sum(len(train) for train, _ in parts),
        train_tokens=train_card.tokens,
        held_out_tokens=samples * recipe.seq_length,
        eval_batches=eval_batches,
        sha256=hashlib.sha256(train + valid).hexdigest(),
    )
    temporary = data_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(facts), indent=1) + "\n", encoding="utf-8")
    temporary.replace(data_file)


def cut_held_out(text: str, recipe: Recipe, model: Path) -> tuple[str, int]:
    """``text`` cut to whole global batches, and how many those are.

    Half a sample of slack stays at the end, so that encoding the cut text anew, which may join its last pieces
    otherwise, cannot change the number of samples.
    """
    tokenizer = build_tokenizer(TokenizerFiles("SentencePieceTokenizer", tokenizer_model=f"{model}"))
    ids = tokenizer.encode(text)
    slack = recipe.seq_length // 2
    batch_tokens = recipe.batch_samples * recipe.seq_length
    batches = (len(ids) - 1 - slack) // batch_tokens
    if recipe.max_held_out_batches is not None:
        batches = min(batches, recipe.max_held_out_batches)
    if batches < 1:
        raise UserError(f"--data: {len(ids)} held-out tokens do not fill one batch of {batch_tokens}; give more books")
    return tokenizer.decode(ids[: batches * batch_tokens + 1 + slack]), batches


def _read_card(prefix: Path) -> DatasetCard:
    card = DatasetCard.read(prefix.with_name(f"{prefix.name}.json"))
    assert card is not None, f"preprocess_data.py wrote no card beside {prefix}"
    return card


def write_jsonl(path: Path, texts: Sequence[str]) -> bytes:
    """One document a line; the bytes written."""
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode("utf-8")
    path.write_bytes(content)
    return content


def run_tool(tool: str, *flags: str) -> None:
    """Run one of the product's tools; its own error line is the user's."""
    command = [sys.executable, f"{REPOSITORY / 'tools' / tool}", *flags]
    if subprocess.run(command, env=child_environment(), check=False).returncode:
        raise UserError(f"tools/{tool} failed (its message is above): {' '.join(command[1:])}")


def child_environment() -> dict[str, str]:
    """The environment of a child: this checkout first on the path, one thread for each."""
    paths = [f"{REPOSITORY}", *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

"""Books as encoded training data, without Project Gutenberg's header and footer; the end of each book is held out.

    book   |header| text ............................................. | last 5 % |footer|
                    train.jsonl, one document per book                   valid.jsonl, one document

Held-out text is one document, cut to a whole number of global batches, so that every run evaluates the same samples,
whatever its seed. Tokenizer and indexed datasets are made with the tools of this project.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from megatron.ltd.data.indexed import DatasetCard
from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles

Facts = TypeVar("Facts", bound=Any)
"""A dataclass of facts about data"""

REPOSITORY = Path(__file__).resolve().parents[3]
HELD_OUT_FRACTION = 0.05

_START = re.compile(r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*$", re.MULTILINE)
_END = re.compile(r"^\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*$", re.MULTILINE)


@dataclass(frozen=True)
class Encoding:
    """How text is tokenized, and how much of the held-out part is used."""

    vocab_size: int | None
    """Size of a SentencePiece vocabulary learned from the training text; None for bytes."""
    seq_length: int
    batch_samples: int
    max_held_out_batches: int | None = None
    """Maximum number of global batches of held-out text; None for all of it."""


@dataclass(frozen=True)
class RunData:
    """The data of runs: prefixes of indexed datasets, the tokenizer, and the number of batches of an evaluation."""

    train_prefix: Path
    valid_prefix: Path
    tokenizer: tuple[str, ...]
    """The tokenizer's flags."""
    eval_batches: int

    def flags(self) -> list[str]:
        """The data as flags of ``pretrain_gpt_ltd.py``."""
        return [
            *("--train-data-path", f"{self.train_prefix}", "--valid-data-path", f"{self.valid_prefix}"),
            *self.tokenizer,
            *("--eval-iters", f"{self.eval_batches}"),
        ]


@dataclass(frozen=True)
class CorpusFacts:
    """Facts about the data of runs, for a report."""

    books: tuple[str, ...]
    train_characters: int
    train_tokens: int
    held_out_tokens: int
    eval_batches: int
    sha256: str
    """Checksum of both JSONL files, concatenated."""


def strip_frame(text: str, name: str) -> str:
    """The book between Project Gutenberg's START and END lines. Raises ``UserError`` if a line is missing."""
    start, end = _START.search(text), _END.search(text)
    if start is None or end is None or end.start() < start.end():
        missing = "START" if start is None else "END"
        raise UserError(
            f"--data: {name} has no line '*** {missing} OF THIS PROJECT GUTENBERG EBOOK' in its place; give plain-text "
            "books as Project Gutenberg distributes them"
        )
    return text[start.end() : end.start()].strip()


def read_books(folder: Path, name: str | None = None) -> dict[str, str]:
    """The text of all books by file name, sorted, or of the book ``name``, without header and footer. Raises
    ``UserError``.
    """
    paths = sorted(folder.glob(name or "*.txt"))
    if not paths:
        raise UserError(f"--data {folder}: holds no {name or '.txt files'}; give a folder of Project Gutenberg books")
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
    """Split a book; the held-out part is the last ``HELD_OUT_FRACTION`` of characters, from the next line start on."""
    cut = len(text) - int(len(text) * HELD_OUT_FRACTION)
    cut = text.find("\n", cut) + 1 or cut
    return text[:cut], text[cut:]


def prepare(encoding: Encoding, source: Path, folder: Path, book: str | None = None) -> tuple[RunData, CorpusFacts]:
    """Make the data of runs in ``folder`` from all books of ``source``, or from ``book``; complete data are reused.

    Raises ``UserError`` if a book cannot be used.
    """
    prefixes = {name: folder / f"{name}_text_document" for name in ("train", "valid")}
    facts = made_once(folder / "corpus.json", CorpusFacts, lambda: _make(encoding, read_books(source, book), folder))
    tokenizer = _tokenizer_flags(_tokenizer_files(encoding, folder))
    return RunData(prefixes["train"], prefixes["valid"], tokenizer, facts.eval_batches), facts


def _tokenizer_files(encoding: Encoding, folder: Path) -> TokenizerFiles:
    if encoding.vocab_size is None:
        return TokenizerFiles("ByteTokenizer")
    return TokenizerFiles("SentencePieceTokenizer", tokenizer_model=f"{folder / 'tokenizer.model'}")


def _tokenizer_flags(files: TokenizerFiles) -> tuple[str, ...]:
    model = () if files.tokenizer_model is None else ("--tokenizer-model", files.tokenizer_model)
    return ("--tokenizer-type", f"{files.tokenizer_type}", *model)


def made_once(path: Path, facts_class: type[Facts], make: Callable[[], Facts]) -> Facts:
    """Read the facts in ``path``; if there are none, call ``make``, which makes the data, and write its facts at the
    end.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(make()), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    return facts_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()})


def _make(encoding: Encoding, books: Mapping[str, str], folder: Path) -> CorpusFacts:
    parts = [split_book(text) for text in books.values()]
    train = write_jsonl(folder / "train.jsonl", [train for train, _ in parts])
    if encoding.vocab_size is not None:
        run_tool(
            "train_tokenizer.py", "--input", f"{folder / 'train.jsonl'}", "--vocab-size", f"{encoding.vocab_size}",
            "--output-prefix", f"{folder / 'tokenizer'}", "--overwrite",
        )  # fmt: skip
    files = _tokenizer_files(encoding, folder)
    held_out, eval_batches = cut_held_out("\n\n".join(held_out for _, held_out in parts), encoding, files)
    valid = write_jsonl(folder / "valid.jsonl", [held_out])
    for name in ("train", "valid"):
        run_tool(
            "preprocess_data.py", "--input", f"{folder / name}.jsonl", "--output-prefix", f"{folder / name}",
            "--append-eod", "--overwrite", *_tokenizer_flags(files),
        )  # fmt: skip
    train_card, valid_card = (_read_card(folder / f"{name}_text_document") for name in ("train", "valid"))
    samples = (valid_card.tokens - 1) // encoding.seq_length
    assert samples == eval_batches * encoding.batch_samples, (samples, eval_batches, encoding.batch_samples)
    return CorpusFacts(
        books=tuple(books),
        train_characters=sum(len(train) for train, _ in parts),
        train_tokens=train_card.tokens,
        held_out_tokens=samples * encoding.seq_length,
        eval_batches=eval_batches,
        sha256=hashlib.sha256(train + valid).hexdigest(),
    )


def cut_held_out(text: str, encoding: Encoding, files: TokenizerFiles) -> tuple[str, int]:
    """Cut ``text`` to whole global batches; return it and their number.

    Half a sample is added at the end: encoding the cut text may merge its last tokens differently, which must not
    change the number of samples.
    """
    tokenizer = build_tokenizer(files)
    ids = tokenizer.encode(text)
    slack = encoding.seq_length // 2
    batch_tokens = encoding.batch_samples * encoding.seq_length
    batches = (len(ids) - 1 - slack) // batch_tokens
    if encoding.max_held_out_batches is not None:
        batches = min(batches, encoding.max_held_out_batches)
    if batches < 1:
        raise UserError(f"--data: {len(ids)} held-out tokens do not fill one batch of {batch_tokens}; give more books")
    return tokenizer.decode(ids[: batches * batch_tokens + 1 + slack]), batches


def _read_card(prefix: Path) -> DatasetCard:
    card = DatasetCard.read(prefix.with_name(f"{prefix.name}.json"))
    assert card is not None, f"preprocess_data.py wrote no card beside {prefix}"
    return card


def write_jsonl(path: Path, texts: Sequence[str]) -> bytes:
    """Write one document per line, and return the written bytes."""
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode("utf-8")
    path.write_bytes(content)
    return content


def run_tool(tool: str, *flags: str) -> None:
    """Run a script of ``tools``, which prints its own errors. Raises ``UserError`` if it fails."""
    command = [sys.executable, f"{REPOSITORY / 'tools' / tool}", *flags]
    if subprocess.run(command, env=child_environment(), check=False).returncode:
        raise UserError(f"tools/{tool} failed (its message is above): {' '.join(command[1:])}")


def child_environment() -> dict[str, str]:
    """The environment of a child process, with this checkout first on PYTHONPATH and one thread."""
    paths = [f"{REPOSITORY}", *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

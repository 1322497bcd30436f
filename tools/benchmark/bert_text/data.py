"""The books and labelled sentences of the comparison, encoded with the tools of this project.

books                 the last 5 % of each is held out; WordPiece vocabulary of the training part; split into sentences
labelled sentences    sentence_polarity: one file per class, shuffled with a fixed seed, the last 10 % held out
"""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from dataclasses import dataclass
from pathlib import Path

from common.corpus import made_once, read_books, run_tool, split_book, write_jsonl

from megatron.ltd.errors import UserError

from .recipe import Data, Recipe

HELD_OUT_FRACTION = 0.1
_CLASSES = ("neg", "pos")


@dataclass(frozen=True)
class Facts:
    """Facts about the data, for the report."""

    books: tuple[str, ...]
    train_characters: int
    labelled_train: int
    labelled_valid: int
    sha256: str
    """Checksum of the four JSONL files together."""


def prepare(recipe: Recipe, books_folder: Path, labelled: Path, folder: Path) -> tuple[Data, Facts]:
    """Make the data of the runs in ``folder``, or reuse it if it is complete. Raises ``UserError``."""
    data = Data(
        train_prefix=folder / "train_text_sentence",
        valid_prefix=folder / "valid_text_sentence",
        vocab=folder / "books-vocab.txt",
        labelled_train=folder / "labelled_train.jsonl",
        labelled_valid=folder / "labelled_valid.jsonl",
    )
    return data, made_once(folder / "facts.json", Facts, lambda: _make(recipe, books_folder, labelled, folder, data))


def read_labelled_zip(path: Path) -> list[dict[str, str]]:
    """The sentences of sentence_polarity.zip, as published, with their classes. Raises ``UserError``."""
    try:
        with zipfile.ZipFile(path) as archive:
            texts = {name: archive.read(f"sentence_polarity/rt-polarity.{name}").decode("latin-1") for name in _CLASSES}
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--labelled {path}: is not sentence_polarity.zip ({error}); give the file as published"
        ) from None
    return [
        {"text": line.strip(), "label": name}
        for name, text in texts.items()
        for line in text.splitlines()
        if line.strip()
    ]


def _make(recipe: Recipe, books_folder: Path, labelled: Path, folder: Path, data: Data) -> Facts:
    books = read_books(books_folder)
    parts = [split_book(text) for text in books.values()]
    written = [
        write_jsonl(folder / f"{name}.jsonl", [part[number] for part in parts])
        for number, name in enumerate(("train", "valid"))
    ]
    run_tool(
        "train_tokenizer.py", "--model-type", "wordpiece", "--input", f"{folder / 'train.jsonl'}",
        *("--vocab-size", f"{recipe.vocab_size}", "--output-prefix", f"{folder / 'books'}", "--overwrite"),
    )  # fmt: skip
    for name in ("train", "valid"):
        run_tool(
            "preprocess_data.py", "--input", f"{folder / name}.jsonl", "--output-prefix", f"{folder / name}",
            "--split-sentences", "--overwrite", *data.tokenizer_flags(),
        )  # fmt: skip
    samples = read_labelled_zip(labelled)
    random.Random(0).shuffle(samples)
    held_out = int(len(samples) * HELD_OUT_FRACTION)
    labelled_parts = (samples[:-held_out], samples[-held_out:])
    for path, rows in zip((data.labelled_train, data.labelled_valid), labelled_parts, strict=True):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
        path.write_bytes(content)
        written.append(content)
    return Facts(
        books=tuple(books),
        train_characters=sum(len(train) for train, _ in parts),
        labelled_train=len(labelled_parts[0]),
        labelled_valid=held_out,
        sha256=hashlib.sha256(b"".join(written)).hexdigest(),
    )

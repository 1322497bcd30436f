"""A corpus from the text in every Python: the source of the standard library and its language reference.

    train.jsonl, valid.jsonl   one document per line, {"text": ..., "path": ...}, sorted by path
    corpus.json                sizes, counts, sha256 of both files and the Python version they came from

About 11 MB of source without the tests, and one document of English prose per help topic; or about 1.4 MB of English
sentences from both (``prose``). The content differs between Python versions, so that hashes are recorded. The hash of
its text decides whether a document is held out: the choice needs no random numbers, and does not change if other
documents are added or removed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron.ltd.data.builtin.prose import paragraphs, prose
from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import Range
from megatron.ltd.format import count_of
from megatron.ltd.small_files import write_whole

# Tests, caches, other people's packages; and source that records how this very Python was built.
_LEFT_OUT_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_LEFT_OUT_PREFIX = "_sysconfigdata"
_TOPICS = "pydoc_data/topics.py"

# Two independent draws per document, so that a smaller corpus holds out the same share.
_HOLD_OUT, _KEEP = 0, 1


@dataclass(frozen=True)
class CorpusConfig(Settings):
    """corpus"""

    output_dir: str = flag(
        None, metavar="DIR", help="where train.jsonl, valid.jsonl and corpus.json are written",
        required="give a folder for the corpus",
    )  # fmt: skip
    text: str = flag(
        "all", choices=("all", "prose"), help="whole files, or the English sentences of docstrings and comments in them"
    )
    held_out_fraction: float = flag(
        0.05,
        range=Range(0, 1, above=True, below=True),
        metavar="F",
        help="share of the documents that go to valid.jsonl",
    )
    max_mb: float | None = flag(
        None,
        range=Range(0, 1e9, above=True),
        metavar="N",
        help="keep at most this much text [MB], drawn evenly from all documents; by default all of it",
    )


@dataclass(frozen=True)
class Document:
    """A text and where it came from, relative to the standard library."""

    path: str
    text: str

    def random_number(self, draw: int) -> float:
        """A number in [0, 1) that depends on the text and ``draw`` (0 to 3) alone, evenly spread over documents."""
        digest = hashlib.sha256(self.text.encode("utf-8")).digest()
        return int.from_bytes(digest[8 * draw : 8 * draw + 6], "big") / 2**48


@dataclass(frozen=True)
class SplitInfo:
    """What a corpus file holds."""

    documents: int
    text_bytes: int
    sha256: str


@dataclass(frozen=True)
class CorpusInfo:
    """The content of corpus.json."""

    python: str
    unreadable_files: int
    train: SplitInfo
    valid: SplitInfo

    def summary(self) -> str:
        """One line."""
        skipped = f"; {count_of(self.unreadable_files, 'file')} not UTF-8, left out" if self.unreadable_files else ""
        return (
            f"Python {self.python}: {count_of(self.train.documents, 'document')}, "
            f"{self.train.text_bytes / 1e6:.1f} MB to train; "
            f"{count_of(self.valid.documents, 'document')}, {self.valid.text_bytes / 1e6:.2f} MB held out{skipped}"
        )


def write_corpus(config: CorpusConfig) -> CorpusInfo:
    """Write the corpus into ``--output-dir``, which is created if missing; existing files are replaced at the end.

    Raises ``UserError`` if this Python has no source files, the text is too short for both parts, or the folder cannot
    be written.
    """
    documents, unreadable = collect_documents(Path(sysconfig.get_paths()["stdlib"]))
    if config.text == "prose":
        documents = _prose(documents)
    if config.max_mb is not None:
        documents = _limit(documents, int(config.max_mb * 1e6))
    parts = {
        "train": [document for document in documents if document.random_number(_HOLD_OUT) >= config.held_out_fraction],
        "valid": [document for document in documents if document.random_number(_HOLD_OUT) < config.held_out_fraction],
    }
    for name, part in parts.items():
        if not part:
            raise UserError(
                f"--held-out-fraction {config.held_out_fraction}: leaves no document for {name} of {len(documents)}; "
                "give a share nearer to 0.5, or a larger --max-mb"
            )
    with writes_to(f"--output-dir {config.output_dir}"):
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        infos = {name: _write_part(Path(config.output_dir, f"{name}.jsonl"), part) for name, part in parts.items()}
        info = CorpusInfo(platform.python_version(), unreadable, **infos)
        write_whole(Path(config.output_dir, "corpus.json"), f"{json.dumps(asdict(info), indent=2)}\n".encode())
    return info


def collect_documents(library: Path) -> tuple[list[Document], int]:
    """The documents under ``library``, sorted by path, and how many files were not UTF-8 text."""
    documents, unreadable = [], 0
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in _LEFT_OUT_FOLDERS]
        for name in files:
            path = Path(folder, name)
            relative = path.relative_to(library).as_posix()
            if path.suffix != ".py" or name.startswith(_LEFT_OUT_PREFIX) or relative == _TOPICS:
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                unreadable += 1
                continue
            if text.strip():
                documents.append(Document(relative, text))
    if not documents:
        raise UserError(f"{library}: has no .py files; use a Python whose standard library is installed as source")
    if Path(library, _TOPICS).is_file():
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        documents += [Document(f"{_TOPICS}/{topic}", text) for topic, text in topics.items()]
    return sorted(documents, key=lambda document: document.path), unreadable


def _prose(documents: Sequence[Document]) -> list[Document]:
    """The English sentences of each document that has any."""
    found = []
    for document in documents:
        is_topic = document.path.startswith(f"{_TOPICS}/")
        text = "\n\n".join(paragraphs(document.text)) if is_topic else prose(document.text)
        if text:
            found.append(Document(document.path, text))
    return found


def _limit(documents: Sequence[Document], max_bytes: int) -> list[Document]:
    """Documents of at most ``max_bytes`` together, drawn by their hash from all over the library; order kept."""
    kept, total = set(), 0
    for document in sorted(documents, key=lambda document: (document.random_number(_KEEP), document.path)):
        num_bytes = len(document.text.encode("utf-8"))
        if total + num_bytes <= max_bytes:
            total += num_bytes
            kept.add(document.path)
    return [document for document in documents if document.path in kept]


def _write_part(path: Path, documents: Sequence[Document]) -> SplitInfo:
    lines = [json.dumps({"text": document.text, "path": document.path}, ensure_ascii=False) for document in documents]
    content = ("\n".join(lines) + "\n").encode("utf-8")
    write_whole(path, content)
    text_bytes = sum(len(document.text.encode("utf-8")) for document in documents)
    return SplitInfo(len(documents), text_bytes, hashlib.sha256(content).hexdigest())

"""Hostile text, tables and compressed files as the input of the tools that read data.

Right: the command works, or says in one line what is wrong; memory does not grow with what a small file expands to.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..child import in_child
from ..damage import CHANGES, KINDS, damage
from ..lies import arrow_lie, parquet_lie
from ..material import copy_of
from ..trials import Trial
from ..verdict import problem_of
from ..warm import REPOSITORY, run_program

_TEXTS = (
    "", " ", "plain words, and a few more of them. ", "naïve café, 東京, שלום, 🙂 ", "\ud800", "a\0b", "\ufeff",
    "\u2028\u2029\x85", "\r\n\r", "x" * 100_000, "word " * 20_000, "é" * 5000, "\u0301" * 3000,
    "<|endoftext|>", "[CLS] [SEP] [MASK]", "." * 10_000,
    "\x1b[31m", "\U0010ffff", "a.B.c. D! E? " * 500, "\t\n\v\f", "0" * 3000,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, 1, -1.5, True, [], {}, ["a", "b"], {"text": "inside"}, 10**400, float("nan"), float("inf"), "", "one",
)  # fmt: skip
_LINES = (
    b"", b" ", b"{", b"}", b"[]", b"null", b"1", b'"text"', b"\xff\xfe\x00", b"\0", b'{"text": "a"',
    b'{"text": "a"} {}',
    b'{"text": "\xff"}', b'{"text": "\\ud800"}', b'{"text": "a", "text": "b"}', b'{"text": NaN}', b"{'text': 'a'}",
    b"[" * 200_000, b'{"text":' * 50_000, b'{"a": ' + b"9" * 10_000 + b', "text": "a"}', b"\xef\xbb\xbf{}",
    b"text\tlabel",
    b'{"text": "' + b"a" * 3_000_000 + b'"}', b'{"TEXT": "a"}', b'{"": "a"}',
)  # fmt: skip


def _json_lines(draw: random.Random) -> bytes:
    """Good lines, and mostly a few that are not."""
    lines = [json.dumps({"id": n, "text": draw.choice(_TEXTS[2:4]) * draw.randint(1, 9)}).encode() for n in range(30)]
    for _ in range(draw.choice((0, 1, 1, 2, 5))):
        what = draw.random()
        text = draw.choice(_TEXTS)
        strange = (
            json.dumps({"text": text}, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass") if what < 0.35
            else json.dumps({"id": 1, "text": draw.choice(_VALUES)}).encode() if what < 0.6
            else draw.choice(_LINES)
        )  # fmt: skip
        lines[draw.randrange(len(lines))] = strange
    content = draw.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\n\n")).join(lines)
    return draw.choice((b"", b"", b"", b"\xef\xbb\xbf")) + content + draw.choice((b"\n", b"\n", b"", b"\n \n\0"))


def _text(draw: random.Random) -> bytes:
    words = "".join(draw.choices(_TEXTS, k=5))
    encoding = draw.choice(("utf-8", "utf-8", "utf-8", "utf-16", "latin-1", "utf-32"))
    return words.encode(encoding, errors="surrogatepass" if encoding.startswith("utf") else "replace")


def _lines_or_text(draw: random.Random) -> bytes:
    return draw.choice((_json_lines, _json_lines, _text))(draw)


def _zstd(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def _zip(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("text.jsonl", content)
    return file.getvalue()


_TABLES = ("parquet", "arrow", "stream")
_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": _zstd, "zip": _zip,
}  # fmt: skip


def _compressed(kind: str, draw: random.Random) -> bytes:
    """Sometimes several streams, one within another, or one that expands to a gigabyte of zeros or of one long line."""
    compress = _COMPRESS[kind]
    what = draw.random()
    if what < 0.06:
        return _bomb(kind, draw)
    if what < 0.2:
        return compress(_lines_or_text(draw)) + compress(_json_lines(draw))
    if what < 0.3:
        return compress(draw.choice(list(_COMPRESS.values()))(_json_lines(draw)))
    return compress(_lines_or_text(draw))


def _bomb(kind: str, draw: random.Random) -> bytes:
    """One gigabyte in a small file; 16 MB as a .zip, which has no pieces."""
    block = draw.choice((bytes(1 << 20), b"a" * (1 << 20), b"\n" * (1 << 20), b"[" * (1 << 20)))
    if kind == "zst":
        import zstandard

        stream: Any = zstandard.ZstdCompressor().compressobj()
    elif kind in ("bz2", "xz"):
        stream = bz2.BZ2Compressor(1) if kind == "bz2" else lzma.LZMACompressor(preset=0)
    else:
        return _COMPRESS[kind](block * 16)
    count = 1024 if kind == "zst" else 64
    return b"".join(stream.compress(block) for _ in range(count)) + stream.flush()


def _table(kind: str, draw: random.Random) -> bytes:
    """A table whose column of text may be of other types, null, nested or missing."""
    import pyarrow
    from pyarrow import parquet

    texts = [text for text in draw.choices(_TEXTS, k=40) if text != "\ud800"]
    columns: dict[str, Any] = {"id": list(range(len(texts))), "text": texts}
    what = draw.randrange(9)
    if what < 5:
        columns["text"] = pyarrow.array((
            [None] * len(texts), list(range(len(texts))), [[text] for text in texts],
            [{"text": text} for text in texts],
            [text.encode() + b"\xff" for text in texts],
        )[what])  # fmt: skip
    elif what == 5:
        columns["text"] = pyarrow.array(texts).dictionary_encode()
    elif what == 6:
        columns = {"other": texts}
    elif what == 7:
        columns = {"id": [], "text": []}
    table, file = pyarrow.table(columns), io.BytesIO()
    if kind == "parquet":
        parquet.write_table(table, file, row_group_size=draw.choice((1, 7, 100)))
        return file.getvalue()
    make = pyarrow.ipc.new_file if kind == "arrow" else pyarrow.ipc.new_stream
    with make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=draw.choice((1, 7, 100)))
    return file.getvalue()


def _lying(kind: str, draw: random.Random) -> bytes:
    """A table in whose description one number is another."""
    return (parquet_lie if kind == "parquet" else arrow_lie)(_table(kind, draw), draw)


MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    "jsonl": _json_lines, "json": _json_lines, "txt": _text,
    **{kind: partial(_compressed, kind) for kind in _COMPRESS},
    **{kind: partial(_table, kind) for kind in _TABLES},
    **{f"lying {kind}": partial(_lying, kind) for kind in _TABLES},
}  # fmt: skip
_TOKENIZERS = (
    "--tokenizer-type ByteTokenizer", "--tokenizer-type ByteTokenizer --append-eod",
    "--tokenizer-type SentencePieceTokenizer --tokenizer-model pieces.model",
    "--tokenizer-type GPT2BPETokenizer --vocab-file vocab.json --merge-file merges.txt",
    "--tokenizer-type BertWordPieceLowerCase --vocab-file vocab.txt --split-sentences",
)  # fmt: skip
_MORE = ("", "", "", "--skip-bad-lines", "--skip-bad-lines", "--json-keys text id", "--json-keys other", "--shard 2/3")


class DataFiles:
    """See the module."""

    def __init__(self, material: Path) -> None:
        self._material = material

    def attempt(self, number: int, draw: random.Random, folder: Path) -> Trial:
        kinds = list(MAKERS)
        kind = kinds[number % len(kinds)]
        copy_of(self._material, folder)
        usual = kind.removeprefix("lying ")
        ending_of_name = usual if draw.random() < 0.85 else draw.choice((*kinds, "csv", "npz", "JSONL.GZ", ""))
        suffix = f"jsonl.{ending_of_name}" if ending_of_name in _COMPRESS else ending_of_name
        path = folder / f"input.{suffix}"
        path.write_bytes(MAKERS[kind](draw))
        harm = draw.choice((*CHANGES, *CHANGES, *KINDS)) if draw.random() < 0.6 and kind == usual else "as made"
        if harm != "as made":
            damage(path, harm, draw)
        if draw.random() < 0.2:
            script, words = "train_tokenizer.py", "--vocab-size 300 --threads 1"
            words += draw.choice((" --model-type bpe", " --model-type unigram", " --model-type wordpiece"))
        else:
            script, words = "preprocess_data.py", draw.choice(_TOKENIZERS)
        words += f" --input {path.name} --output-prefix out {draw.choice(_MORE[:3] if 'train' in script else _MORE)}"
        ending = in_child(partial(run_program, REPOSITORY / "tools" / script, words.split()), folder)
        what = f"{path.name} holds {kind}: {harm}; {script} {words}"
        return Trial("data-files", number, f"{kind}", what, str(ending), problem_of(ending), ending.seconds)

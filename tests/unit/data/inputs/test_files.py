"""Every kind of file that ``--input`` takes gives the same documents as plain JSON lines, and damage is named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from megatron.ltd.data.inputs.documents import WHOLE, Shard, parse_chunk, read_chunks
from megatron.ltd.data.inputs.files import find_inputs
from tests.support_errors import refused

TEXTS = [f"Document {number}: naïve café, 東京.\n" * (number % 7) for number in range(300)]
LINES = "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS)).encode()


def texts_of(*paths: object, keys: tuple[str, ...] = ("text",), shard: Shard = WHOLE, size: int = 5000) -> list[str]:
    files = find_inputs([str(path) for path in paths])
    return [
        texts[0]
        for chunk in read_chunks(files, size, shard, keys)
        for texts in parse_chunk(chunk, keys, skip_bad_lines=False).texts
    ]


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd,
}  # fmt: skip


def table(**columns: Any) -> pyarrow.Table:
    return pyarrow.table(columns or {"id": list(range(len(TEXTS))), "text": TEXTS})


def write_parquet(path: Path, content: pyarrow.Table) -> None:
    parquet.write_table(content, path, row_group_size=25)


def write_arrow(path: Path, content: pyarrow.Table, make: Callable[..., Any] = pyarrow.ipc.new_file) -> None:
    with pyarrow.OSFile(str(path), "wb") as sink, make(sink, content.schema) as writer:
        writer.write_table(content, max_chunksize=25)


TABLES: dict[str, Callable[[Path, pyarrow.Table], None]] = {
    "parquet": write_parquet, "arrow": write_arrow, "arrow stream": partial(write_arrow, make=pyarrow.ipc.new_stream),
}  # fmt: skip


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_lines_and_text(tmp_path: Path, suffix: str) -> None:
    """Compression is recognised by the content, whatever the name."""
    for name, documents in ((f"a.jsonl{suffix}", TEXTS), ("a.jsonl", TEXTS), (f"b.txt{suffix}", [LINES.decode()])):
        (tmp_path / name).write_bytes(COMPRESS[suffix](LINES))
        assert texts_of(tmp_path / name) == documents
    (tmp_path / f"plain.jsonl{suffix}").write_bytes(LINES)
    assert texts_of(tmp_path / f"plain.jsonl{suffix}") == TEXTS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_several_streams_in_one_file(tmp_path: Path, suffix: str) -> None:
    """``cat a.gz b.gz`` and parallel compressors write such files."""
    cut = LINES.index(b"\n", 4000) - 7
    (tmp_path / "d").write_bytes(COMPRESS[suffix](LINES[:cut]) + COMPRESS[suffix](b"") + COMPRESS[suffix](LINES[cut:]))
    assert texts_of(tmp_path / "d") == TEXTS


def test_a_skippable_frame_of_zstandard(tmp_path: Path) -> None:
    """Files of pzstd and seekable files have such frames, also at the start."""
    frame = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
    (tmp_path / "d.zst").write_bytes(frame + zstd(LINES[:100]) + frame + zstd(LINES[100:]) + frame)
    assert texts_of(tmp_path / "d.zst") == TEXTS


@pytest.mark.parametrize(("window_log", "is_refused"), [(27, False), (28, True)])
def test_the_window_of_zstandard_is_bounded(tmp_path: Path, window_log: int, is_refused: bool) -> None:
    """``zstd --long=28`` needs 256 MB to read; its files are whole, and not damaged."""
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "d.zst"
    path.write_bytes(compressor.compress(LINES) + compressor.flush())
    if is_refused:
        with refused(f"--input {path}", "--long=27"):
            texts_of(path)
    else:
        assert texts_of(path) == TEXTS


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("what", ["cut", "changed"])
def test_damaged_compression_names_the_file(tmp_path: Path, suffix: str, what: str) -> None:
    content = COMPRESS[suffix](LINES)
    if suffix == ".zst":
        content = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)
    middle = len(content) // 2
    damaged = content[:middle] if what == "cut" else content[:middle] + b"\xff\x00\xff\x00" + content[middle + 4 :]
    path = tmp_path / f"d.jsonl{suffix}"
    path.write_bytes(damaged)
    with refused(f"--input {path}"):
        texts_of(path, size=1 << 20)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_document_that_expands_without_end(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on a document, which is a line or a whole text, and not on the file."""
    monkeypatch.setattr("megatron.ltd.data.inputs.files.MOST_DOCUMENT_BYTES", 3 << 20)
    line = json.dumps({"text": "a" * (2 << 20)}).encode() + b"\n"
    (tmp_path / f"whole.jsonl{suffix}").write_bytes(COMPRESS[suffix](line * 3))
    assert len(texts_of(tmp_path / f"whole.jsonl{suffix}")) == 3
    for name in (f"endless.jsonl{suffix}", f"endless.txt{suffix}"):
        (tmp_path / name).write_bytes(COMPRESS[suffix](line[:-1] * 3))
        with refused(f"--input {tmp_path / name}", "3 MB"):
            texts_of(tmp_path / name)


@pytest.mark.parametrize("kind", TABLES)
def test_a_text_that_many_rows_name(tmp_path: Path, kind: str) -> None:
    """A gigabyte in a small file; memory holds the text once, and a row at a time."""
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["a" * 1_000_000])
    TABLES[kind](tmp_path / "d", pyarrow.table({"text": rows}))
    chunks = read_chunks(find_inputs([str(tmp_path / "d")]))
    assert sum(len(chunk.rows) for chunk in chunks) == 1000
    assert pyarrow.default_memory_pool().max_memory() < 300 << 20


def test_a_decompression_bomb_is_read_in_pieces(tmp_path: Path) -> None:
    """One line of a gigabyte is compressed to 32 KB; reading its start takes little memory."""
    import tracemalloc

    from megatron.ltd.data.inputs.files import open_content

    packed = zstandard.ZstdCompressor().compressobj()
    with (tmp_path / "bomb.zst").open("wb") as stream:
        for _ in range(1024):
            stream.write(packed.compress(b"{" + b" " * ((1 << 20) - 1)))
        stream.write(packed.flush())
    assert (tmp_path / "bomb.zst").stat().st_size < 200_000
    (file,) = find_inputs([str(tmp_path / "bomb.zst")])
    tracemalloc.start()
    try:
        with open_content(file) as content:
            assert content.read(8) == b"{       "
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", TABLES)
def test_tables(tmp_path: Path, kind: str) -> None:
    TABLES[kind](tmp_path / "d", table())
    for size in (100, 5000, 1 << 20):
        assert texts_of(tmp_path / "d", size=size) == TEXTS
    other = table(text=["a", "b"], body=pyarrow.array(["c", "c"]).dictionary_encode())
    TABLES[kind](tmp_path / "e", other)
    assert texts_of(tmp_path / "e", keys=("body", "text")) == ["c", "c"]


@pytest.mark.parametrize("kind", TABLES)
def test_the_bytes_of_a_file_are_counted_once(tmp_path: Path, kind: str) -> None:
    """The count of bytes read is used for the progress."""
    TABLES[kind](tmp_path / "d", table())
    (tmp_path / "e.gz").write_bytes(gzip.compress(LINES))
    for name in ("d", "e.gz"):
        files = find_inputs([str(tmp_path / name)])
        chunks = list(read_chunks(files, 5000))
        stored = sum(chunk.stored_bytes for chunk in chunks)
        assert len(chunks) > 3 and abs(stored - files[0].num_bytes) <= len(chunks) + 8  # 8: the end of a stream
        assert sum(chunk.num_bytes for chunk in chunks) == (
            len(LINES) if name == "e.gz" else len("".join(TEXTS).encode())
        )


@pytest.mark.parametrize("kind", TABLES)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "d"
    TABLES[kind](path, table(body=["a"], number=[7]))
    with refused("--json-keys text", path, "body", "number"):
        texts_of(path)
    with refused("--json-keys number", path, "int64"):
        texts_of(path, keys=("number",))
    TABLES[kind](path, table(text=["a", None, "c"]))
    with refused(path, 2, "text", "--skip-bad-lines"):
        texts_of(path)
    (chunk,) = read_chunks(find_inputs([str(path)]))
    parsed = parse_chunk(chunk, ["text"], skip_bad_lines=True)
    assert parsed.texts == (("a",), ("c",)) and parsed.bad_lines == 1


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("what", ["cut", "start only", "changed"])
def test_damaged_tables(tmp_path: Path, kind: str, what: str) -> None:
    path = tmp_path / "d"
    TABLES[kind](path, table())
    content = path.read_bytes()
    if what == "changed":  # the schema, which every format stores near one end
        place = content.find(b"text") if kind == "arrow stream" else content.rfind(b"text")
        content = content[: place - 40] + b"\xff" * 32 + content[place - 8 :]
    else:
        content = content[: len(content) // 2 if what == "cut" else 16]
    path.write_bytes(content)
    with refused("--input", path) if what != "changed" else refused(path):
        texts_of(path)


def test_a_saved_dataset_of_hugging_face(tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_dict({"text": TEXTS})
    saved.save_to_disk(str(tmp_path / "one"), num_shards=3)
    assert texts_of(tmp_path / "one") == TEXTS
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "both"))
    assert texts_of(tmp_path / "both" / "train") == TEXTS
    with refused(f"--input {tmp_path / 'both'}", "train", "test"):
        texts_of(tmp_path / "both")


@pytest.mark.parametrize("state", [b"{", b"[]", b'{"_data_files": [{"filename": "../x"}]}', b'{"_data_files": [{}]}'])
def test_a_state_file_that_lists_something_else(tmp_path: Path, state: bytes) -> None:
    (tmp_path / "x").write_bytes(LINES)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "state.json").write_bytes(state)
    with refused(f"--input {tmp_path / 'd'}", "state.json"):
        texts_of(tmp_path / "d")


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "b"}\n'))
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "readme.md").write_text("no text of a corpus")
    (tmp_path / ".hidden" / "h.txt").write_text("h")
    write_parquet(tmp_path / "deep" / "c.parquet", table(text=["c"]))
    assert texts_of(tmp_path) == ["a", "b", "c"]
    with refused(f"--input {tmp_path / '.hidden' / 'none'}"):
        texts_of(tmp_path / ".hidden" / "none")
    (tmp_path / "empty").mkdir()
    with refused(f"--input {tmp_path / 'empty'}", ".jsonl"):
        texts_of(tmp_path / "empty")


def test_shards_in_order_are_the_whole_input(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(LINES))
    (tmp_path / "b.jsonl").write_bytes(LINES)
    write_parquet(tmp_path / "c.parquet", table())
    (tmp_path / "d.txt.zst").write_bytes(zstd(b"text"))
    for count in (1, 2, 5, 11):
        parts = [texts_of(tmp_path, shard=Shard(number, count)) for number in range(1, count + 1)]
        assert sum(parts, []) == [*TEXTS * 3, "text"]


def _tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return content.getvalue()


def _zip() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", "a")
    return content.getvalue()


REFUSED = {
    "a.zip": (_zip(), "zip"), "a.tar": (_tar(), "tar"), "a.tar.gz": (gzip.compress(_tar()), "tar"),
    "a.jsonl": (_zip(), "zip"), "a.csv": (b"id,text\n1,a\n", "Parquet"),
    "a.tsv": (b"id\ttext\n1\ta\n", "Parquet"), "a.csv.gz": (gzip.compress(b"id,text\n1,a\n"), "Parquet"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_archives_and_separated_values_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(REFUSED[name][0])
    with refused(f"--input {tmp_path / name}", REFUSED[name][1]):
        texts_of(tmp_path / name)


def test_a_table_within_a_compressed_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "d", table())
    (tmp_path / "d.gz").write_bytes(gzip.compress((tmp_path / "d").read_bytes()))
    with refused(f"--input {tmp_path / 'd.gz'}", "Parquet", "gzip"):
        texts_of(tmp_path / "d.gz")


@pytest.mark.parametrize(("content", "package"), [(zstd(b"{}"), "zstandard"), (b"PAR1", "pyarrow")])
def test_libraries_that_are_not_installed(
    tmp_path: Path, content: bytes, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "megatron.ltd.data.inputs.zstandard_stream", raising=False)
    (tmp_path / "d").write_bytes(content)
    with refused(f"--input {tmp_path / 'd'}", package, "megatron-ltd[data]"):
        texts_of(tmp_path / "d")

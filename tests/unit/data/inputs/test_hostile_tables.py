"""Parquet and Arrow files whose descriptions lie: one line, in bounded time and memory."""

from __future__ import annotations

import os
import random
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from megatron.ltd.data.inputs import table_process
from megatron.ltd.data.inputs.files import find_inputs
from megatron.ltd.data.inputs.table_process import read_table
from megatron.ltd.errors import UserError
from tests.support_errors import refused
from tests.unit.data.inputs.test_files import TABLES
from tools.torture.lies import Number, arrow_lie, footer_numbers, parquet_lie

TEXTS = [f"text {number} " * (number % 7) for number in range(60)]


def table(kind: str, folder: Path) -> bytes:
    TABLES[kind](folder / "whole", pyarrow.table({"id": list(range(len(TEXTS))), "text": TEXTS}))
    return (folder / "whole").read_bytes()


def texts_of(path: Path) -> list[str | None]:
    (file,) = find_inputs([str(path)])
    return [text for rows, _ in read_table(file, ["text"]) for (text,) in rows]


def reader_pid() -> int:
    assert table_process._reader is not None and table_process._reader[0].pid is not None
    return table_process._reader[0].pid


def peak_bytes(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


LIES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "parquet": parquet_lie, "arrow": arrow_lie, "arrow stream": arrow_lie,
}  # fmt: skip


@pytest.mark.parametrize("kind", LIES)
def test_one_lie(tmp_path: Path, kind: str) -> None:
    """Random ones: texts or a line about the file."""
    answers, content = [], table(kind, tmp_path)
    for number in range(25):
        draw = random.Random(f"{kind} {number}")
        (tmp_path / "d").write_bytes(LIES[kind](content, draw))
        try:
            answers.append(str(len(texts_of(tmp_path / "d"))))
        except UserError as error:
            answers.append(str(error))
            assert str(tmp_path / "d") in answers[-1] and "\n" not in answers[-1]
        if table_process._reader is not None:
            assert peak_bytes(reader_pid()) < 1 << 30
    assert len(set(answers)) > 3


def test_a_column_that_is_said_to_hold_no_nulls(tmp_path: Path) -> None:
    """Its statistics then disagree, at which pyarrow 26 ends the process; other ones say what is wrong, or read on."""
    content, said = table("parquet", tmp_path), []
    required: list[Number] = [number for number in footer_numbers(content) if number.value == 1]
    for number in required[:8]:
        (tmp_path / "d").write_bytes(number.replaced(content, 0))
        try:
            texts_of(tmp_path / "d")
        except UserError as error:
            said.append(str(error))
    assert any(f"--input {tmp_path / 'd'}: cannot be read as Parquet" in line for line in said)


def test_a_reader_that_dies(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(table("parquet", tmp_path))
    (tmp_path / "lie").write_bytes(b"PAR1")
    assert texts_of(tmp_path / "d") == TEXTS
    dead = reader_pid()
    os.kill(dead, signal.SIGABRT)
    with refused(f"--input {tmp_path / 'd'}", "Parquet", "SIGABRT"):
        texts_of(tmp_path / "d")
    assert texts_of(tmp_path / "d") == TEXTS and reader_pid() != dead
    living = reader_pid()
    with refused(f"--input {tmp_path / 'lie'}"):
        texts_of(tmp_path / "lie")
    assert texts_of(tmp_path / "d") == TEXTS and reader_pid() == living


def varint(value: int) -> bytes:
    return bytes([*((value >> shift & 127 | 128) for shift in (0, 7)), value >> 14])


def test_a_footer_that_expands(tmp_path: Path) -> None:
    """Three bytes of it become a column of hundreds."""
    columns = b"\x19\xfc" + varint(900_000) + b"\x26\x00\x00" * 900_000 + b"\x16\x00\x16\x00\x00"
    footer = b"\x15\x02\x19\x1c\x48\x04root\x00\x16\x00\x19\x4c" + columns * 4 + b"\x00"
    (tmp_path / "d").write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")
    with refused(f"--input {tmp_path / 'd'}", "memory"):
        texts_of(tmp_path / "d")
    if table_process._reader is not None:
        assert peak_bytes(reader_pid()) < 1 << 30


@pytest.mark.parametrize("kind", ["one row", "many rows"])
def test_a_page_that_expands(tmp_path: Path, kind: str) -> None:
    if kind == "one row":
        plain = {"use_dictionary": False, "write_statistics": False}
        texts = pyarrow.array(["a" * 600_000_000])
        parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "d", compression="lz4", **plain)
    else:
        texts = pyarrow.DictionaryArray.from_arrays(pyarrow.nulls(1 << 20, pyarrow.int32()).fill_null(0), ["a"])
        parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "d")
    assert (tmp_path / "d").stat().st_size < 3_000_000
    with refused(f"--input {tmp_path / 'd'}", "more"):
        texts_of(tmp_path / "d")
    assert peak_bytes(reader_pid()) < 1 << 30

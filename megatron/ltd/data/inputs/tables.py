"""Rows of Parquet and Arrow files as documents: each of the given columns has one text per row.

Read with ``pyarrow``, some rows at a time and only the given columns, in a process of its own (``table_process.py``): a
description that lies about sizes can end it or exhaust its memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from megatron.ltd.data.inputs.files import InputFile
from megatron.ltd.errors import UserError

if TYPE_CHECKING:
    import pyarrow

_ROWS = 1000
_SMALL_BYTES, _MOST_BYTES = 64 << 20, 2 << 30
_FREE_ROWS, _MOST_ROWS_A_BYTE = 100_000, 10

Row = tuple[str | None, ...]


def read_rows(file: InputFile, columns: Sequence[str]) -> Iterator[tuple[Iterator[Row], float]]:
    """The texts of ``columns`` in each row, some rows at a time, and the share of the file that has been read.

    A table may store a text once and name it in a million rows: a row's text is made when the row is asked for.

    A missing value is None. Raises ``UserError`` for a file that cannot be read, or a column that is missing or not of
    text.
    """
    import pyarrow

    rows = 0
    try:
        for batch, share in _batches(file, columns):
            rows += batch.num_rows
            if rows > _FREE_ROWS + _MOST_ROWS_A_BYTE * file.num_bytes:
                raise UserError(
                    f"--input {file.path}: has more than {_MOST_ROWS_A_BYTE} rows for each of its bytes, which is not "
                    "text; get the file again"
                )
            wanted = batch.select(list(columns))
            wanted.validate(full=True)  # offsets of a hostile file could point anywhere
            texts = [_texts(wanted.column(column), file, column) for column in columns]
            yield zip(*texts, strict=True), share
    except (pyarrow.ArrowException, MemoryError, OSError, UnicodeDecodeError) as error:
        reason = str(error).split("\n", 1)[0]
        if isinstance(error, MemoryError) or "bad_alloc" in reason:
            raise UserError(
                f"--input {file.path}: takes far more memory to read than it has bytes; write it again in smaller parts"
            ) from None
        raise UserError(f"--input {file.path}: cannot be read as {file.table} ({reason}); get the file again") from None


def _batches(file: InputFile, columns: Sequence[str]) -> Iterator[tuple[pyarrow.RecordBatch, float]]:
    """Batches of at most ``_ROWS`` rows, and the share of the file at the end of each."""
    import pyarrow

    if file.table == "Parquet":
        from pyarrow import parquet

        path = os.fsencode(file.path)  # as text, pyarrow takes UTF-8 only
        with pyarrow.OSFile(path) as source, parquet.ParquetFile(source) as content:
            _check_columns(content.schema_arrow, file, columns)
            stored_bytes = _stored_bytes(content.metadata, columns)
            is_text = all(_is_text(content.schema_arrow.field(name).type) for name in columns)
        # As dictionaries, rows take no more memory than what is stored; for a lot of text that would be slow to build.
        named = list(columns) if is_text and stored_bytes <= _SMALL_BYTES else None
        size = _ROWS if named else max(1, min(_ROWS, _MOST_BYTES // max(1, stored_bytes)))
        with pyarrow.OSFile(path) as source, parquet.ParquetFile(source, read_dictionary=named) as content:
            rows = 0
            for batch in content.iter_batches(size, columns=list(columns)):
                rows += batch.num_rows
                yield batch, rows / content.metadata.num_rows
        return
    with pyarrow.memory_map(os.fsencode(file.path)) as source:
        is_stream = file.table == "Arrow stream"
        content = pyarrow.ipc.open_stream(source) if is_stream else pyarrow.ipc.open_file(source)
        _check_columns(content.schema, file, columns)
        whole = content if is_stream else map(content.get_batch, range(content.num_record_batches))
        for number, batch in enumerate(whole, start=1):
            share = source.tell() / source.size() if is_stream else number / content.num_record_batches
            for start in range(0, batch.num_rows, _ROWS):
                yield batch.slice(start, _ROWS), share


def _stored_bytes(metadata: Any, columns: Sequence[str]) -> int:
    """The most that a row group stores in ``columns``, decompressed, which no text in it exceeds."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return max(
        (
            sum(
                group.column(place).total_uncompressed_size
                for place in range(group.num_columns)
                if group.column(place).path_in_schema in columns
            )
            for group in groups
        ),
        default=0,
    )


def _check_columns(schema: pyarrow.Schema, file: InputFile, columns: Sequence[str]) -> None:
    for column in columns:
        if schema.names.count(column) != 1:
            raise UserError(
                f"--json-keys {' '.join(columns)}: {file.path} has no single column {column}; it has "
                f"{', '.join(schema.names) or 'none'}"
            )


def _texts(column: Any, file: InputFile, name: str) -> Iterator[str | None]:
    import pyarrow

    kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    if not _is_text(kind):
        raise UserError(f"--json-keys {name}: this column of {file.path} holds {column.type} instead of text")
    return (value.as_py() for value in column)


def _is_text(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)

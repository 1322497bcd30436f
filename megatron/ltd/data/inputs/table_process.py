"""Tables are read in a process of their own, with a limit of memory.

    this process                    | that process, one for all tables
    read_table -- file, columns --> | tables.read_rows, within a limit of memory
               <-- rows, share ---- |

A Parquet footer or an Arrow message can declare anything. The libraries that read them check much of it, but some lies
end the process (an exception that C++ does not catch), and a page can expand to more than any memory. Here both are one
line about the file.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import resource
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from megatron.ltd.data.inputs.files import InputFile
from megatron.ltd.data.inputs.interrupts import interrupts_held
from megatron.ltd.data.inputs.tables import Row, read_rows
from megatron.ltd.errors import UserError

_PIECE_BYTES = 256 << 10
_MORE_BYTES, _MORE_BYTES_A_BYTE = 512 << 20, 4
_reader: tuple[BaseProcess, Connection] | None = None


def read_table(file: InputFile, columns: Sequence[str]) -> Iterator[tuple[Sequence[Row], float]]:
    """The texts of ``columns`` in each row, some rows at a time, and the share of the file that has been read.

    A missing value is None. Raises ``UserError`` for a file that cannot be read or takes more memory than its size
    justifies, a column that is missing or not of text, or if ``pyarrow`` is not installed.
    """
    global _reader
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"--input {file.path}: is a {file.table} file, which needs the package pyarrow; run pip install "
            "'megatron-ltd[data]'"
        )
    (process, connection), _reader = _reader or _start(), None
    is_ready = False
    try:
        connection.send((file, tuple(columns)))
        while isinstance(answer := connection.recv(), tuple):
            yield answer
        is_ready = True
    except (EOFError, ConnectionError):
        process.join()
        raise UserError(
            f"--input {file.path}: cannot be read as {file.table} (its reader ended with {_end(process)}); get the "
            "file again"
        ) from None
    finally:
        if is_ready:
            _reader = process, connection
        else:
            process.kill()
            process.join()
            connection.close()
    if isinstance(answer, UserError):
        raise answer
    if answer is not None:
        raise RuntimeError(answer)


def _start() -> tuple[BaseProcess, Connection]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    with interrupts_held():
        process.start()
    there.close()
    return process, here


def _end(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return signal.Signals(-code).name if code < 0 else f"status {code}"


def _serve(connection: Connection) -> None:
    """In that process: read one table after the other, until the other side is gone."""
    _prepare()
    with suppress(EOFError, ConnectionError):
        while True:
            file, columns = connection.recv()
            try:
                _limit_memory(file.num_bytes)
                for answer in _pieces(read_rows(file, columns)):
                    connection.send(answer)
                connection.send(None)
            except (EOFError, ConnectionError):
                raise
            except UserError as error:
                connection.send(error)
            except Exception:
                connection.send(traceback.format_exc())


def _prepare() -> None:
    import pyarrow

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C++ says something of its own when it ends the process
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the others reserve a gigabyte, which counts for the limit


def _limit_memory(num_bytes: int) -> None:
    """Let this process have what the file of ``num_bytes`` justifies, beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit = pages * resource.getpagesize() + _MORE_BYTES + _MORE_BYTES_A_BYTE * num_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _pieces(batches: Iterator[tuple[Iterator[Row], float]]) -> Iterator[tuple[list[Row], float]]:
    """Rows of about ``_PIECE_BYTES`` together: a batch may name one long text a thousand times."""
    rows: list[Row] = []
    waiting_bytes, share = 0, 0.0
    for batch, share in batches:
        for row in batch:
            rows.append(row)
            waiting_bytes += sum(map(len, filter(None, row)))
            if waiting_bytes > _PIECE_BYTES:
                yield rows, share
                rows, waiting_bytes = [], 0
        if rows:
            yield rows, share
            rows, waiting_bytes = [], 0

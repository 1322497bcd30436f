"""Which process builds the sample indices that a process reads, when nodes share the folder or have each their own.

    rank 0 --mark--> folder       who finds the mark reads what rank 0 builds
    the first rank of each host without it --mark--> folder      and so on, until every process has a builder

A mark is an empty file under a new name. A network file system may answer from memory for a name that was looked up
before, as those of indices were in an earlier run; for a new name it asks the server.

Not here: building, and what is built (``data.core_builder``).
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch.distributed as dist

from megatron.ltd.parallel.agreement import agree, agree_on_folder, exchange, together

_BLOCK_BYTES = 1 << 20


def this_rank() -> int:
    """The rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def find_builder(folders: Sequence[Path], *, reads: bool) -> int | None:
    """The rank that builds the indices in ``folders`` for this rank, maybe itself; None for one that does not read.

    Every rank calls this. Where a folder cannot be written, the first rank of each host is the builder of its host: all
    that it can do is to check the indices that are there.
    """
    rank, host, found = this_rank(), socket.gethostname(), None
    is_first_round = True
    while True:
        waiting = exchange(host if reads and found is None else None)
        candidates = _first_of_each(waiting)[: 1 if is_first_round else None]
        if not candidates:
            return found
        alone = len([one for one in waiting if one is not None]) == 1
        with _marks(folders if rank in candidates and not alone else ()) as own:
            marks = exchange(own)
            if waiting[rank] is not None:
                seen = [
                    one
                    for one in candidates
                    if (all(map(os.path.exists, marks[one])) if marks[one] else waiting[one] == host)
                ]
                found = min([*seen, *([rank] if rank in candidates else [])], default=None)
            exchange(None)  # a mark stays until all have looked
        is_first_round = False


def _first_of_each(hosts: Sequence[str | None]) -> list[int]:
    """The lowest rank of each host, in ascending order; None stands for no host."""
    return sorted({host: rank for rank, host in reversed(list(enumerate(hosts))) if host is not None}.values())


@contextmanager
def _marks(folders: Sequence[Path]) -> Iterator[list[str]]:
    """Within the block each of the folders has a new empty file. Empty if one of them cannot be written."""
    with ExitStack() as marks:
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            files = [marks.enter_context(NamedTemporaryFile(dir=folder, prefix=".seen-")) for folder in folders]
        except OSError:
            files = []
        yield [str(folder / Path(file.name).name) for folder, file in zip(folders, files, strict=False)]


def agree_on_indices(files: Sequence[Path], builder: int | None) -> None:
    """Raise ``UserError`` on every rank if one does not see the files that were built, or if two builders' differ.

    ``files`` that this rank has built, under the same names on every node. Every rank calls this.
    """
    with together():
        sizes = [{path.parent: (path.name, path.stat().st_size) for path in files}]  # one file of each folder
    if dist.is_initialized():
        dist.broadcast_object_list(sizes, src=0)

    def look() -> dict[str, str]:
        built = () if builder is None else sizes[0].items()
        missing = [folder / name for folder, (name, size) in built if _size(folder / name) != size]
        return {"what is seen of the sample indices": f"all but {missing[0]}" if missing else "all"}

    agree_on_folder(look, "check the file system of the data, or of --data-cache-path")
    if len({*exchange(builder)} - {None}) > 1:  # nodes with folders of their own
        with together():
            digest = _digest(files)
        own = exchange(digest)[builder or 0]
        places = ", ".join(map(str, [*sizes[0]][:1])) or "the folder"
        fix = f"give all nodes the same version of numpy, and remove the indices, as in {places}"
        agree({"the sha256 of the sample indices": own}, fix)


def _size(path: Path) -> int:
    """-1 for a file that is not there. A network file system asks the server when a file is opened."""
    try:
        with open(path, "rb") as file:
            return file.seek(0, 2)
    except OSError:
        return -1


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()[:16]

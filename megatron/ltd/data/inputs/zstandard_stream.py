"""Zstandard data as a stream: frames one after another, with an error if the last one is incomplete.

The library's own stream reader ends silently within a frame. Input is decompressed in small pieces, so that even data
made to expand a lot takes at most 128 MB of memory a piece.
"""

from __future__ import annotations

from typing import BinaryIO

import zstandard

from megatron.ltd.errors import UserError

_PIECE_BYTES = 4096


class ZstandardReader:
    """``read(size)`` returns decompressed bytes of ``source``, none at the end.

    Raises ``OSError`` for damaged data, and ``UserError``, which names ``path``, for data that take more memory.
    """

    def __init__(self, source: BinaryIO, path: str) -> None:
        self._source, self._path = source, path
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._input = b""
        self._ready = memoryview(b"")

    def read(self, size: int) -> memoryview:
        """At most ``size`` bytes."""
        while not self._ready:
            self._input = self._input or self._source.read(_PIECE_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise OSError("the data ends within a frame")
                break
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(self._input))
            except zstandard.ZstdError as error:
                if "too much memory" in str(error):
                    raise UserError(
                        f"--input {self._path}: was compressed with zstd --long, and reading it takes over 128 MB of "
                        "memory; compress it again with --long=27 or less"
                    ) from None
                raise OSError(str(error)) from None
            self._input = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        found, self._ready = self._ready[:size], self._ready[size:]
        return found

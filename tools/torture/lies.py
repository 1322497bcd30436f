"""Tables whose descriptions lie: one number in the footer, a page or a message replaced by another.

    Parquet    | PAR1 | pages, each with a header | footer | its length | PAR1 |      headers and footer are Thrift
    Arrow      | a message: its length, a flatbuffer, buffers | ... |  in a file: a footer, which is a flatbuffer too

Noise seldom gets beyond the first check of a reader. Here the rest of the file stays whole, so that what is declared is
believed: rows, sizes, offsets, lengths of lists, kinds of values.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

_BOOLS, _VARINTS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), (4, 5, 6), 7, 8, (9, 10), 12
_SHORT_LIST = 15
_MAGIC_BYTES = 4


@dataclass(frozen=True)
class Number:
    """A number of Thrift's compact protocol: the bytes ``start`` to ``end`` of the content."""

    start: int
    end: int
    value: int
    list_kind: int | None = None
    """The kind of a list whose length this is: of a short one it shares the byte."""
    is_signed: bool = True

    def replaced(self, content: bytes, value: int) -> bytes:
        """The content of a Parquet file with another number, and the length of the footer that it then has."""
        written = _varint(value << 1 ^ value >> 63 if self.is_signed else value)
        if self.list_kind is not None:
            written = bytes([_SHORT_LIST << 4 | self.list_kind]) + written
        changed = content[: self.start] + written + content[self.end :]
        if self.start < (start := _footer_start(content)):
            return changed
        return changed[:-8] + struct.pack("<I", len(changed) - 8 - start) + changed[-4:]


def parquet_lie(content: bytes, draw: random.Random) -> bytes:
    """A Parquet file with one number changed: in its footer, or in the header of a page."""
    pages = _pages(content)
    in_page = bool(pages) and draw.random() < 0.3
    number = draw.choice(_numbers(content, draw.choice(pages)) if in_page else footer_numbers(content))
    content = number.replaced(content, _lie(number.value, draw))
    if draw.random() < 0.05:
        length = struct.unpack("<I", content[-8:-4])[0]
        content = content[:-8] + struct.pack("<I", _lie(length, draw) & 0xFFFFFFFF) + content[-4:]
    return content


def footer_numbers(content: bytes) -> list[Number]:
    """The numbers in the footer of a Parquet file."""
    return _numbers(content, _footer_start(content))


def _footer_start(content: bytes) -> int:
    return len(content) - 8 - int(struct.unpack("<I", content[-8:-4])[0])


def arrow_lie(content: bytes, draw: random.Random) -> bytes:
    """An Arrow file or stream with one aligned number of a message, a footer or a buffer changed."""
    width = draw.choice((2, 4, 4, 8, 8, 8))
    places = [place for place in range(8, len(content) - 8, width) if any(content[place : place + width])]
    place = draw.choice(places)
    value = int.from_bytes(content[place : place + width], "little", signed=True)
    lie = _lie(value, draw) & ((1 << 8 * width) - 1)
    return content[:place] + lie.to_bytes(width, "little") + content[place + width :]


def _lie(value: int, draw: random.Random) -> int:
    near = (value + 1, value - 1, value * 2, value * 1000, -value, value + draw.randint(-100, 100))
    far = (0, -1, 1, 5, 255, 65_536, 10**6, 10**8, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, -1 << 63)
    lie = draw.choice(near if draw.random() < 0.4 else far)
    return max(-1 << 63, min(lie, (1 << 63) - 1))


def _pages(content: bytes) -> list[int]:
    """Where the pages of the text begin."""
    import io

    from pyarrow import parquet

    metadata = parquet.read_metadata(io.BytesIO(content))
    places = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        column = group.column(group.num_columns - 1)
        places += [column.data_page_offset, column.dictionary_page_offset or 0]
    return [place for place in places if place >= _MAGIC_BYTES]  # a group without rows has none


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def _read_varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _numbers(content: bytes, place: int) -> list[Number]:
    """The numbers of the structure at ``place``."""
    found: list[Number] = []
    _walk_struct(content, place, found)
    return found


def _walk_struct(content: bytes, place: int, found: list[Number]) -> int:
    """Append the numbers of a structure to ``found``; where it ends."""
    while header := content[place]:
        place += 1
        if header >> 4 == 0:
            _, place = _read_varint(content, place)
        place = place if header & 15 in _BOOLS else _walk_value(content, place, header & 15, found)
    return place + 1


def _walk_value(content: bytes, place: int, kind: int, found: list[Number]) -> int:
    start = place
    if kind in _VARINTS:
        coded, place = _read_varint(content, place)
        found.append(Number(start, place, coded >> 1 ^ -(coded & 1)))
    elif kind == _BINARY:
        length, place = _read_varint(content, place)
        found.append(Number(start, place, length, is_signed=False))
        place += length
    elif kind in _LISTS:
        length, element, place = content[place] >> 4, content[place] & 15, place + 1
        if length == _SHORT_LIST:
            length, place = _read_varint(content, place)
        found.append(Number(start, place, length, element, is_signed=False))
        for _ in range(length):
            place = _walk_value(content, place, element, found)
    elif kind == _STRUCT:
        place = _walk_struct(content, place, found)
    else:
        place += 8 if kind == _DOUBLE else 1  # a byte, or a truth value in a list
    return place

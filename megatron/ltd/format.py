"""Numbers and tables as people read them, on the console and in Markdown.

Large numbers get four significant digits. Values that are stored or computed with stay plain numbers.
Tables are laid out by ``tabulate``. Their cells are text; the first ``num_labels`` columns are aligned to the left, and
the others, which are figures, to the right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import DataRow, TableFormat, tabulate

_COUNT_UNITS = ("", " K", " M", " B", " T", " Q")
_BYTE_UNITS = (" B", " KB", " MB", " GB", " TB", " PB")
_FLOPS_UNITS = (" FLOP", " KFLOP", " MFLOP", " GFLOP", " TFLOP", " PFLOP", " EFLOP", " ZFLOP", " YFLOP")


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """``value`` in the largest unit in which it is at least 1, to four significant digits; units go up by 1000."""
    power = 0
    while power + 1 < len(units) and abs(value) >= (999.5 if power == 0 else 999.95):
        value /= 1000
        power += 1
    digits = 0 if power == 0 else 1 if abs(value) >= 99.995 else 2 if abs(value) >= 9.9995 else 3
    return f"{value:.{digits}f}{units[power]}"


def format_count(count: float) -> str:
    """A count: ``"512"``, ``"8.192 K"``, ``"390.9 B"``."""
    return _scaled(count, _COUNT_UNITS)


def count_of(count: int, noun: str) -> str:
    """``"1 document"``, ``"1,024 documents"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_bytes(num_bytes: float) -> str:
    """A number of bytes, in powers of 1000: ``"512 B"``, ``"46.04 MB"``."""
    return _scaled(num_bytes, _BYTE_UNITS)


def format_flops(flops: float) -> str:
    """A number of floating-point operations: ``"1.234 TFLOP"``."""
    return _scaled(flops, _FLOPS_UNITS)


def format_seconds(seconds: float) -> str:
    """A duration to the second: ``"0:00:07"``, ``"1:02:05"``, ``"2d 01:02:05"``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02d}:{minute:02d}:{second:02d}" if days else f"{hour}:{minute:02d}:{second:02d}"


def format_ranges(numbers: Iterable[int]) -> str:
    """Ascending whole numbers, with ranges joined: ``"2-5,8"``."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def text_table(rows: Iterable[Sequence[str]], header: Sequence[str] = (), *, num_labels: int = 1) -> str:
    """A table for a terminal: aligned columns, two spaces apart."""
    lines = [list(row) for row in rows]
    sides = _sides(max(map(len, (header, *lines))), num_labels, ("left", "right"))
    table = tabulate(lines, header, "plain", disable_numparse=True, preserve_whitespace=True, colalign=sides)
    return "\n".join(line.rstrip() for line in table.splitlines())


def markdown_table(rows: Iterable[Sequence[str]], header: Sequence[str], *, num_labels: int = 1) -> str:
    """A table in Markdown, cells as wide as their text; a ``|`` in a cell is escaped, and each is one line."""
    ruler = f"| {' | '.join(_sides(len(header), num_labels, ('---', '---:')))} |"
    row = DataRow("| ", " | ", " |")
    layout = TableFormat(None, lambda widths, sides: ruler, None, None, row, row, 0, None)
    escaped = [[" ".join(cell.splitlines()).replace("|", r"\|") for cell in cells] for cells in (header, *rows)]
    return tabulate(escaped[1:], escaped[0], layout, disable_numparse=True, stralign=None, preserve_whitespace=True)


def without_markup(text: str) -> str:
    """Text of a file as Markdown: one line, whose HTML is shown and not rendered."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")


def _sides(num_columns: int, num_labels: int, names: tuple[str, str]) -> list[str]:
    """The alignment of every column."""
    return [names[0] if column < num_labels else names[1] for column in range(num_columns)]

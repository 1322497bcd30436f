"""Checks of error messages for user errors: one line that names the flag, value or file, and exit status 2.

    with refused("--ltd-strata 3", "--seq-length 16"):     the library, UserError
        ...
    assert_refused(status, stderr, "--lr nan")             a command line: exit status 2 and its one line

The names are what the user typed and what the message suggests, not the sentence around them, so that the wording can
be improved without changing tests. Where only a word of the sentence distinguishes two errors, a test adds that word as
a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from megatron.ltd.errors import UserError


def assert_names(line: str, *names: object) -> None:
    """Check that ``line`` is one line that contains each of ``names`` as whole words: ``--lr`` is not in
    ``--lr-warmup``.

    The word "is" may stand between a flag and its value.
    """
    assert line and "\n" not in line, f"not one line: {line!r}"
    for name in map(str, names):
        pattern = re.escape(name).replace(r"\ ", "(?: is)? ", 1) if name.startswith("--") else re.escape(name)
        assert re.search(rf"(?<![\w-]){pattern}(?![\w-])", line), f"{line!r} does not name {name!r}"


@contextmanager
def refused(*names: object, error: type[Exception] = UserError) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Check that the block raises exactly ``error`` with one line that contains ``names``; see ``assert_names``."""
    with pytest.raises(error) as caught:
        yield caught
    assert caught.type is error
    assert_names(str(caught.value), *names)


def assert_refused(status: int, stderr: str, *names: object) -> str:
    """Check that a command ended with status 2 and one line that contains ``names``; return it without the program's
    name.
    """
    lines = stderr.splitlines()
    assert (status, len(lines)) == (2, 1), (status, stderr)
    program, _, line = lines[0].partition(": error: ")
    assert re.fullmatch(r"[\w.-]+", program), lines[0]
    assert_names(line, *names)
    return line

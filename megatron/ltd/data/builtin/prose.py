"""English sentences in Python source: paragraphs of docstrings, of comments and of the language reference.

A paragraph is kept if it reads like prose: it starts with a capital, ends like a sentence, is neither indented nor a
list nor an example, and is nearly all letters. Its lines are joined.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from inspect import cleandoc

_MIN_LENGTH = 60
_MIN_LETTERS = 0.9
"""Share of letters, spaces, commas and full stops."""
_NOT_PROSE = (" ", ">>>", "...", "|", "+", "- ", "* ", ":", "..")
_COMMENTS = re.compile(r"(?:^[ \t]*# \S.*\n){2,}", re.MULTILINE)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def prose(source: str) -> str:
    """The paragraphs of a module, with an empty line between them; empty if it has none, or is not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    docstrings = (ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, _DOCUMENTED))
    blocks = (match[0].splitlines() for match in _COMMENTS.finditer(source))
    comments = ("\n".join(line.strip().removeprefix("# ") for line in block) for block in blocks)
    found = [paragraph for text in (*filter(None, docstrings), *comments) for paragraph in paragraphs(text)]
    return "\n\n".join(dict.fromkeys(found))


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a text that read like prose, each on one line."""
    for paragraph in re.split(r"\n[ \t]*\n", cleandoc(text)):
        lines = paragraph.split("\n")
        if not any(line.startswith(_NOT_PROSE) for line in lines):
            joined = " ".join(line.strip() for line in lines)
            if _is_prose(joined):
                yield joined


def _is_prose(line: str) -> bool:
    letters = sum(character.isalpha() or character in " ,." for character in line)
    is_sentence = line[:1].isupper() and line.endswith((".", "!", "?"))
    return is_sentence and len(line) >= _MIN_LENGTH and letters >= _MIN_LETTERS * len(line)

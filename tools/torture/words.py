"""Random and boundary words for command lines, from what the flags say about themselves.

A number is drawn at and beyond the ends of its range, small, and far too large; a choice among those that the flag
lists; text among paths of every kind and words that break parsers. A few command lines are cut, shuffled or misspelled.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import typing
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from megatron.ltd.flags import flag_fields, flag_name
from megatron.ltd.flags.fields import value_type
from megatron.ltd.flags.ranges import Range, range_of
from megatron.ltd.megatron_lm.refused import recorded

from .programs import Program

_NO_NUMBERS = ("", "nan", "inf", "-inf", "1e400", "0x10", "1_0", "1.5", "many", "--", "-", "²", "9" * 400, "1,2", " 1")
_PATHS = (
    "run", "half", "last", "hf", "data", "more", "sentences", "text.jsonl", "text.txt", "labelled.tsv", "images.npz",
    "vocab.txt", "vocab.json", "merges.txt", "pieces.model", "settings.yaml", "plan.json", "run/metrics.jsonl",
    "run/iter_0000002", "data.bin", "hf/config.json", "no/such", "out", "out/deep/er", "fifo", "closed/x", "loop", ".",
)  # fmt: skip
_TEXTS = (
    "", "a b", "ü", "\udcff", "a\nb", "\x1b[31m", "x" * 5000, "%s%n", "{}", "{0}", "null", "[", "--", "-1", "0", "1",
    "2-3",
    "1-9999999999999999999", "3,2,2", "1,1", "0:4", "0:4,3:8", "969,30,1", "1/2", "0/0", "1e308,1e308", "1 data 2 data",
    "text", "1KB", "0GB", "acc", "wikitext", "a=b", "=", "<b>&|$x", "\u202e", "[0, [1]]", "1" * 50,
)  # fmt: skip


def make_special_files(folder: Path) -> None:
    """The paths among ``_PATHS`` that are no usual files: a FIFO, a loop of links, a closed folder."""
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "closed").mkdir(mode=0o000)


def command_line(program: Program, draw: random.Random) -> list[str]:
    """Words for ``program``: mostly a command line that works with a few flags changed."""
    words = list(draw.choice(program.bases)) if draw.random() < 0.96 else []
    if program.trains and draw.random() < 0.35:
        words.append("--plan")
    for _ in range(draw.choice((1, 1, 1, 1, 2, 2, 3, 4))):
        change = draw.random()
        if change < 0.88:
            words += _some_flag(program, draw)
        elif change < 0.94 and words:
            _drop_a_flag(words, draw)
        else:
            words += _strange_words(words, draw)
    return words


def _some_flag(program: Program, draw: random.Random) -> list[str]:
    """One flag of the program with a value, or several."""
    config_class, field = draw.choice(_fields(tuple(program.classes)))
    spelling = flag_name(config_class, field.name)
    kind, several = value_type(_annotations(config_class)[field.name])
    if kind is bool:
        return [spelling] if draw.random() < 0.95 else [f"{spelling}={draw.choice(('1', 'False', ''))}"]
    count = draw.choice((0, 1, 1, 1, 2, 2, 3, 4)) if several else 1 if draw.random() < 0.98 else 0
    values = [_value(config_class, field, kind, draw) for _ in range(count)]
    if count == 1 and (values[0].startswith("-") or draw.random() < 0.1):
        return [f"{spelling}={values[0]}"]
    return [spelling, *values]


def _value(config_class: type, field: Any, kind: type, draw: random.Random) -> str:
    choices = field.metadata["choices"]
    if choices is not None and draw.random() < 0.9:
        return draw.choice(tuple(choices))
    allowed = range_of(config_class, field.name)
    if allowed is not None and draw.random() < 0.97:
        return _number(allowed, kind, draw)
    if allowed is not None:
        return draw.choice(_NO_NUMBERS)
    return draw.choice(_PATHS) if draw.random() < 0.5 else draw.choice(_TEXTS)


def _number(allowed: Range, kind: type, draw: random.Random) -> str:
    small = draw.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 32, 64, 100, 1000))
    if kind is int:
        low, high = math.ceil(allowed.least), math.floor(allowed.most)
        edges = (low - 1, low, low + 1, high - 1, high, high + 1)
        far = (-small, draw.randrange(1 << 16), draw.randrange(1 << 31), draw.randrange(1 << 53), 1 << 63, -(1 << 63))
        return str(small if draw.random() < 0.75 else draw.choice(edges + far))
    inside = (1e-300, 1e-8, 1e-3, 0.1, 0.25, 0.5, 0.9, 0.999999, 1.0, 1.5, 2.0, 1e3, 1e9, 1e17, float(small))
    edges = (allowed.least, allowed.most, math.nextafter(allowed.least, math.inf), math.nextafter(allowed.most, 0.0))
    beyond = (math.nextafter(allowed.least, -math.inf), -1.0, -0.0, allowed.most * 2, 1e300)
    return repr(float(draw.choice(inside if draw.random() < 0.75 else edges + beyond)))


def _drop_a_flag(words: list[str], draw: random.Random) -> None:
    flags = [place for place, word in enumerate(words) if word.startswith("--")]
    if flags:
        start = draw.choice(flags)
        end = next((place for place in flags if place > start), len(words))
        del words[start : end if draw.random() < 0.8 else start + 1]


def _strange_words(words: Sequence[str], draw: random.Random) -> list[str]:
    """A flag of Megatron-LM, one misspelled, or a word that no flag takes."""
    what = draw.randrange(4)
    if what == 0:
        spelling = draw.choice([name for group in recorded().values() for names in group for name in names])
        return [spelling, *draw.choice(((), ("1",), ("x",), ("0.5", "2")))]
    if what == 1 and words:
        word = draw.choice(words)
        place = draw.randrange(len(word) + 1)
        return [word[:place] + draw.choice("-_xé\n=") + word[place + draw.randrange(2) :]]
    if what == 2 and words:
        return [draw.choice(words) for _ in range(draw.randint(1, 3))]
    return [draw.choice(_TEXTS)] if draw.random() < 0.5 else ["--config", draw.choice(_PATHS)]


@cache
def _fields(classes: tuple[type, ...]) -> list[tuple[type, dataclasses.Field[Any]]]:
    return [(config_class, field) for config_class in classes for field in flag_fields(config_class)]


@cache
def _annotations(config_class: type) -> dict[str, Any]:
    return typing.get_type_hints(config_class)

"""Which indexed datasets a run reads: the values of ``--data-path`` and its siblings, from flags or files. No torch.

    PREFIX                        one indexed dataset, PREFIX.bin and PREFIX.idx
    WEIGHT PREFIX WEIGHT PREFIX   samples are drawn in proportion to the weights
    PREFIX PREFIX                 samples are drawn in proportion to the datasets' tokens
    NAME=PREFIX NAME=PREFIX       validation sets, each with a loss of its own

``--data-args-path`` names a file with such a value; ``--per-split-data-args-path`` a JSON object that has one under
"train", "valid" and "test", as text or as a list, where "valid" may be an object of named ones.

Not here: whether the datasets exist (``data.indexed``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from megatron.ltd.errors import UserError
from megatron.ltd.flags.ranges import ABOVE_ZERO, AMOUNT
from megatron.ltd.json_text import parse_json
from megatron.ltd.small_files import read_small

SPLIT_NAMES = ("train", "valid", "test")
_NAMED = re.compile(r"([\w.-]+)=(.+)")
_SHOWN_WORDS = 12


class Blend(NamedTuple):
    """Dataset prefixes, the weight of each (None: by their number of tokens), and where a message says they stand."""

    prefixes: tuple[str, ...]
    weights: tuple[float, ...] | None
    flag: str = "--data-path"


def parse_blend(flag_spelling: str, values: Sequence[str]) -> Blend:
    """Read the value of ``--data-path``: see the top of this file. Raises ``UserError`` naming ``flag_spelling``."""
    shown = f"{flag_spelling} {_shown(values)}"
    first, second = values[0::2], values[1::2]
    weights = [_weight(value) for value in first]
    if len(values) == 1 or all(weight is None for weight in weights):
        if any(_weight(value) is not None for value in second):
            raise UserError(f"{shown}: a weight comes before its prefix; write WEIGHT PREFIX WEIGHT PREFIX")
        result = Blend(tuple(values), None, flag_spelling)
    elif any(weight is None for weight in weights) or len(first) != len(second):
        raise UserError(f"{shown}: give a weight before every prefix, or no weights")
    else:
        if any(weight not in ABOVE_ZERO for weight in weights if weight is not None):
            raise UserError(
                f"{shown}: weights must be above 0 and at most {ABOVE_ZERO.most:g}; leave a dataset out to give it no "
                "weight"
            )
        result = Blend(tuple(second), tuple(weight for weight in weights if weight is not None), flag_spelling)
    for prefix in result.prefixes:
        if prefix.endswith((".bin", ".idx")):
            raise UserError(f"{flag_spelling} {prefix}: give the prefix without {prefix[-4:]}: {prefix[:-4]}")
    return result


def parse_sets(flag_spelling: str, values: Sequence[str]) -> dict[str, Blend]:
    """Validation sets by name, ``NAME=PREFIX NAME=PREFIX``; under "" a blend without names. Raises ``UserError``."""
    named = [_NAMED.fullmatch(value) for value in values]
    pairs = [match.groups() for match in named if match is not None]
    if not pairs:
        return {"": parse_blend(flag_spelling, values)}
    if len(pairs) < len(named):
        raise UserError(f"{flag_spelling} {_shown(values)}: give every set a name, NAME=PREFIX, or none")
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise UserError(f"{flag_spelling} {_shown(values)}: two sets have the same name; give each its own")
    return {name: parse_blend(f"{flag_spelling} {name}:", [prefix]) for name, prefix in pairs}


def blend_file(path: str) -> Blend:
    """The blend in the file of ``--data-args-path``: words between white space. Raises ``UserError``."""
    flag = f"--data-args-path {path}:"
    words = _read(flag, path).split()
    if not words:
        raise UserError(f"{flag} is empty; write the value of --data-path into it")
    return parse_blend(flag, words)


def split_file(path: str) -> dict[str, dict[str, Blend]]:
    """The blends in the JSON file of ``--per-split-data-args-path``, by split and by name of a set ("" without one).

    Raises ``UserError``.
    """
    flag = f"--per-split-data-args-path {path}:"
    try:
        content = parse_json(_read(flag, path))
    except ValueError as error:
        raise UserError(f"{flag} is not JSON ({error}); write an object with train, valid and test") from None
    if not isinstance(content, dict) or "train" not in content or not content.keys() <= {*SPLIT_NAMES}:
        raise UserError(f"{flag} must be an object with train, and also valid and test if they are read")
    blends: dict[str, dict[str, Blend]] = {}
    for split, value in content.items():
        if isinstance(value, Mapping) and split == "valid":
            if not value or not all(_NAMED.fullmatch(f"{name}=x") for name in value):
                raise UserError(f"{flag} valid: names of sets have letters, digits, dots and dashes only; rename them")
            blends[split] = {name: parse_blend(f"{flag} {name}:", _words(flag, one)) for name, one in value.items()}
        elif value is not None:
            blends[split] = {"": parse_blend(f"{flag} {split}:", _words(flag, value))}
    return blends


def plain_split(split: str) -> str:
    """The shares of train, valid and test as plain decimals, which is all that Megatron-Core reads: "1e2,1" is "100,1".

    Raises ``UserError`` naming ``--split``.
    """
    try:
        shares = [Decimal(part.strip()) for part in split.strip("'\"").split(",")]  # scripts quote twice
    except InvalidOperation:
        shares = []
    are_shares = 1 <= len(shares) <= 3 and all(share.is_finite() and float(share) in AMOUNT for share in shares)
    if not are_shares or not any(shares) or float(sum(shares)) not in AMOUNT:
        raise UserError(
            f"--split {split}: give one to three shares of train, valid, test that are not negative, such as 969,30,1"
        )
    return ",".join(f"{share:f}" for share in shares)


def _read(flag: str, path: str) -> str:
    try:
        return read_small(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{flag} cannot be read ({reason}); give a text file") from None


def _words(flag: str, value: Any) -> list[str]:
    """A blend in JSON as the words of a command line."""
    words = value.split() if isinstance(value, str) else value
    are_words = isinstance(words, list) and all(type(word) in (str, int, float) for word in words)
    if not are_words or not words:
        raise UserError(f"{flag} a split must be a list or a text of prefixes, each with a weight before it or none")
    return [str(word) for word in words]


def _shown(values: Sequence[str]) -> str:
    """The words as a message shows them: the first of many."""
    more = " ..." if len(values) > _SHOWN_WORDS else ""
    return " ".join(values[:_SHOWN_WORDS]) + more


def _weight(value: str) -> float | None:
    """``value`` as a number, or None: a prefix."""
    try:
        return float(value)
    except ValueError:
        return None

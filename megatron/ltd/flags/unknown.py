"""What to say about a flag or setting that does not exist: all of them at once, each with the names that mean the same.

Two names mean the same if they have the same words up to spelling mistakes, and both or neither are negated:
``--num-layer`` means ``--num-layers``, while ``--log-progress`` is the opposite of ``--no-progress`` and
``--num-experts`` is another thing than ``--num-layers``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

_NEGATIONS = {"no", "not", "without", "disable", "disabled"}
_FILLERS = {"num", "use", "enable", "with"}
_LEAST_RATIO = 0.75


def same_meaning(name: str, known: Iterable[str]) -> list[str]:
    """The names among ``known`` that ``name`` is a misspelling of, best first."""
    found = [other for other in known if _negated(name) == _negated(other) and _same_words(name, other)]
    return sorted(found, key=lambda other: (-_ratio(name, other), other))[:3]


Explain = Callable[[str], str | None]
"""Why there is no flag of this name, and what to use; None for a name that nobody knows."""


def about_unknown(
    names: Sequence[str], known: Iterable[str], what: str, otherwise: str, explain: Explain = lambda name: None
) -> str:
    """One line about ``names``, none of which is in ``known``. ``what``: "flag" or "setting"."""
    reasons: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        reasons.setdefault(explain(name) or "", []).append(name)
    nameless = reasons.pop("", [])
    explained = [f"{', '.join(found)}: {reason}" for reason, found in reasons.items()]
    return "; ".join([*explained, *([_about_nameless(nameless, list(known), what, otherwise)] if nameless else [])])


def _about_nameless(names: Sequence[str], known: Sequence[str], what: str, otherwise: str) -> str:
    hints = {name: " or ".join(same_meaning(name, known)) for name in names}
    if len(hints) == 1:
        ((name, hint),) = hints.items()
        return f"{name}: there is no such {what}; {f'use {hint}' if hint else otherwise}"
    listed = ", ".join(f"{name} (use {hint})" if hint else name for name, hint in hints.items())
    return f"{listed}: there are no such {what}s; {otherwise}"


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-_]+", name.lower()) if word]


def _negated(name: str) -> bool:
    return sum(word in _NEGATIONS for word in _words(name)) % 2 == 1


def _same_words(one: str, other: str) -> bool:
    if "".join(_words(one)) == "".join(_words(other)):
        return True
    left, right = ([word for word in _words(name) if word not in _NEGATIONS | _FILLERS] for name in (one, other))
    if not left or len(left) != len(right):
        return False
    for word in left:
        match = max(right, key=lambda candidate: _ratio(word, candidate))
        if not _same_word(word, match):
            return False
        right.remove(match)
    return True


def _same_word(one: str, other: str) -> bool:
    """Equal up to spelling. Words with digits (fp16, beta2) and with other first letters (encoder, decoder) differ."""
    if any(character.isdigit() for character in one + other) or one[0] != other[0]:
        return one == other
    return _ratio(one, other) >= _LEAST_RATIO


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()

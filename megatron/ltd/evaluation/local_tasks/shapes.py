"""The fields that a record of each task needs for lm-eval's official prompt, target and metric.

    SHAPES["piqa"] = {"goal": TEXT, "sol1": TEXT, "sol2": TEXT, "label": one_of(0, 1)}

Field names are those of the data sets that lm-eval 0.4.13 downloads: the fields that the ``doc_to_text``,
``doc_to_choice``, ``doc_to_target`` and ``process_docs`` of the task use. More fields do no harm. A record that differs
raises ``ShapeError``, which says what was expected and what was found.

Not here: tasks that are not the paper's.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class ShapeError(Exception):
    """A record in another format than the task's: what was expected, what was found."""


@dataclass(frozen=True)
class Kind:
    """The possible values of a field."""

    wanted: str
    """For messages."""
    holds: Callable[[Any], bool]


def one_of(*values: Any) -> Kind:
    """One of these values; 0 and 1 differ from false and true and from 0.0 and 1.0 here."""
    wanted = ", ".join(json.dumps(value) for value in values[:-1]) + f" or {json.dumps(values[-1])}"
    return Kind(wanted, lambda found: any(type(found) is type(value) and found == value for value in values))


def _is_any_text(found: Any) -> bool:
    if not isinstance(found, str):
        return False
    try:
        found.encode("utf-8")  # half of a surrogate pair is valid JSON, but not text
    except UnicodeEncodeError:
        return False
    return True


def _is_text(found: Any) -> bool:
    return _is_any_text(found) and bool(found.strip())


def _are_texts(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(map(_is_text, found))


TEXT = Kind("text", _is_text)
ANY_TEXT = Kind("text, which may be empty", _is_any_text)
TEXTS = Kind("a list of texts", _are_texts)
LIST = Kind("a list", lambda found: isinstance(found, list) and bool(found))
OBJECT = Kind("an object", lambda found: isinstance(found, dict))
INDEX = Kind("an integer from 0", lambda found: isinstance(found, int) and type(found) is not bool and found >= 0)
BOOLEAN = Kind("true or false", lambda found: isinstance(found, bool))
CHOICES = Kind(
    'an object with as many texts in "text" as in "label"',
    lambda found: (
        isinstance(found, dict)
        and _are_texts(found.get("text"))
        and _are_texts(found.get("label"))
        and len(found["text"]) == len(found["label"])
    ),
)
ANSWER = Kind(
    'an object with a list of texts in "aliases"',
    lambda found: (
        isinstance(found, dict) and LIST.holds(found.get("aliases")) and all(map(_is_any_text, found["aliases"]))
    ),
)

_ARC = {"question": TEXT, "choices": CHOICES, "answerKey": TEXT}
_ANLI = {"premise": TEXT, "hypothesis": TEXT, "label": one_of(0, 1, 2)}
SHAPES: Mapping[str, Mapping[str, Kind]] = {
    "hellaswag": {
        "activity_label": TEXT,
        "ctx_a": ANY_TEXT,
        "ctx_b": ANY_TEXT,
        "endings": Kind(
            "four texts", lambda found: isinstance(found, list) and len(found) == 4 and all(map(_is_text, found))
        ),
        "label": one_of("0", "1", "2", "3"),
    },
    "lambada_openai": {"text": TEXT},
    "triviaqa": {"question": TEXT, "answer": ANSWER},
    "webqs": {"question": TEXT, "answers": TEXTS},
    "winogrande": {"sentence": TEXT, "option1": TEXT, "option2": TEXT, "answer": one_of("1", "2")},
    "piqa": {"goal": ANY_TEXT, "sol1": TEXT, "sol2": TEXT, "label": one_of(0, 1)},
    "arc_challenge": _ARC,
    "arc_easy": _ARC,
    "anli_r1": _ANLI,
    "anli_r2": _ANLI,
    "anli_r3": _ANLI,
    "openbookqa": {"question_stem": TEXT, "choices": CHOICES, "answerKey": TEXT},
    "race": {"article": TEXT, "problems": TEXT},
    "boolq": {"passage": TEXT, "question": TEXT, "label": one_of(0, 1)},
    "copa": {
        "premise": TEXT,
        "choice1": TEXT,
        "choice2": TEXT,
        "question": one_of("cause", "effect"),
        "label": one_of(0, 1),
    },
    "rte": {"sentence1": TEXT, "sentence2": TEXT, "label": one_of(0, 1)},
    "wsc": {"text": TEXT, "span1_text": TEXT, "span2_text": TEXT, "span2_index": INDEX, "label": one_of(0, 1)},
    "multirc": {"paragraph": TEXT, "question": TEXT, "answer": ANY_TEXT, "label": one_of(0, 1)},
    "record": {"passage": TEXT, "query": TEXT, "entities": TEXTS, "answers": TEXTS},
    "wikitext": {"page": TEXT},
}


def take(record: Any, name: str, kind: Kind) -> Any:
    """The field ``name`` of ``record``; ``"a.b"`` is field b of field a. Raises ``ShapeError``."""
    outer, _, inner = name.partition(".")
    if not isinstance(record, dict):
        raise ShapeError(f'expected an object with "{outer}", found {_shown(record)}')
    if outer not in record:
        found = ", ".join(f'"{field}"' for field in record) or "none"
        raise ShapeError(f'expected "{outer}" ({OBJECT.wanted if inner else kind.wanted}), found the fields {found}')
    if inner:
        return take(record[outer], inner, kind)
    if not kind.holds(record[outer]):
        raise ShapeError(f'expected "{outer}" to be {kind.wanted}, found {_shown(record[outer])}')
    return record[outer]


def check_record(task: str, record: Any) -> None:
    """Raise ``ShapeError`` if lm-eval's ``task`` cannot read ``record``. Only the paper's tasks are checked."""
    for name, kind in SHAPES.get(task, {}).items():
        take(record, name, kind)
    rule = _RULES.get(task)
    if rule is not None:
        rule(record)


def _key_is_a_label(record: Any) -> None:
    labels, key = record["choices"]["label"], record["answerKey"]
    if key not in labels:
        raise ShapeError(f'expected "answerKey" to be one of the labels {", ".join(labels)}, found {_shown(key)}')


def _has_a_last_word(record: Any) -> None:
    words = record["text"].split(" ")
    if len(words) < 2 or not words[-1]:
        raise ShapeError(f'expected "text" to end in a space and a word, found ...{_shown(record["text"][-20:])}')


def _has_a_blank(record: Any) -> None:
    if "_" not in record["sentence"]:
        raise ShapeError(f'expected "sentence" to hold a blank, "_", found {_shown(record["sentence"])}')


def _has_problems(record: Any) -> None:
    try:
        problems = ast.literal_eval(record["problems"])
    except (ValueError, SyntaxError):
        problems = None
    if not LIST.holds(problems):
        raise ShapeError(f'expected "problems" to be a list written as text, found {_shown(record["problems"])}')
    for problem in problems:
        take(problem, "question", TEXT)
        take(problem, "answer", one_of("A", "B", "C", "D"))
        if len(take(problem, "options", LIST)) != 4:
            raise ShapeError(f'expected "options" to be four texts, found {_shown(problem["options"])}')


_RULES: Mapping[str, Callable[[Any], None]] = {
    "arc_challenge": _key_is_a_label,
    "arc_easy": _key_is_a_label,
    "openbookqa": _key_is_a_label,
    "lambada_openai": _has_a_last_word,
    "winogrande": _has_a_blank,
    "race": _has_problems,
}


def _shown(value: Any) -> str:
    """A value in a message: JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."

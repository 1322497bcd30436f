"""Reading JSON from untrusted files: the value, or one kind of error."""

from __future__ import annotations

import json

import pytest

from megatron.ltd.json_text import parse_json


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, "x", null, true]}', b'"\xc3\xa4"', "9" * 4300, "1e999"])
def test_valid_json_equals_that_of_json_loads(text: str | bytes) -> None:
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "without end"),
        ('{"a":' * 100_000, "without end"),
        ("1" * 4301, r"(4300 digits|\(4300\))"),
        (b'"\xff"', "utf-8"),
        ("", "Expecting value"),
        ("{'a': 1}", "double quotes"),
    ],
)
def test_everything_else_raises_the_same_error(text: str | bytes, said: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=said):
        parse_json(text)

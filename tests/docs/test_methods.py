"""The cards of the methods, and the table that is generated from them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from megatron.ltd.flags import flag_name
from megatron.ltd.methods import METHODS
from tools.methods_table import table


def test_the_table_is_made_of_the_cards(repository: Path) -> None:
    written = (repository / "megatron" / "ltd" / "methods" / "README.md").read_text(encoding="utf-8")
    assert written == table(), "run python tools/methods_table.py"
    assert all(f"({name}/README.md)" in written for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_card_lists_every_flag_and_no_other(repository: Path, name: str) -> None:
    card = (repository / "megatron" / "ltd" / "methods" / name / "README.md").read_text(encoding="utf-8")
    config_class = METHODS[name].config_class
    flags = [flag_name(config_class, field.name) for field in dataclasses.fields(config_class)]
    assert re.findall(r"^\| `(--[\w-]+)` \|", card, flags=re.MULTILINE) == flags
    assert METHODS[name].flag in flags

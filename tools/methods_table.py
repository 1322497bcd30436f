#!/usr/bin/env python3
"""Write megatron/ltd/methods/README.md, the table of methods, from their cards and the registry.

python tools/methods_table.py            write it
python tools/methods_table.py --print    print it instead
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron.ltd.errors import run_command  # noqa: E402
from megatron.ltd.flags import Settings, flag, read_command  # noqa: E402

FOLDER = REPOSITORY / "megatron" / "ltd" / "methods"
_INTRODUCTION = """# Methods

Each folder is a method: its card, its flags, its plan and its draw. A run has at most one that drops tokens and one
that drops layers; without any it is dense. Methods that drop tokens share their schedules of kept tokens, growing,
constant, shrinking or staged: [schedule_flags.py](schedule_flags.py). To add a method: a folder like these, a line in
`__init__.py`, and a line in `tests/methods/cases.py`, which buys it the tests that every method passes.

"""
_HEADER = ("method", "drops", "switch", "what it does", "source")
_DROPS = {"routing": "tokens", "depth": "layers"}


@dataclass(frozen=True)
class TableConfig(Settings):
    """methods table"""

    print: bool = flag(False, help="show the table instead of writing it")


def card_row(card: str) -> tuple[str, str, str]:
    """The title of a card, its first sentence, and the link to the source of its claim."""
    title, _, rest = card.partition("\n")
    first_sentence = re.split(r"[.;](?:\s|$)", " ".join(rest.split()), maxsplit=1)[0] + "."
    claim = re.search(r"\*\*Claim\*\* \((.*?), \[.*?\]\((.*?)\)\)", card, flags=re.DOTALL)
    assert claim is not None, f"the card of {title} claims nothing with a link"
    return title.removeprefix("# "), first_sentence, f"[{' '.join(claim[1].split())}]({claim[2]})"


def table() -> str:
    """The content of the file."""
    from megatron.ltd.format import markdown_table
    from megatron.ltd.methods import METHODS

    rows = []
    for name, entry in METHODS.items():
        title, sentence, source = card_row((FOLDER / name / "README.md").read_text(encoding="utf-8"))
        rows.append((f"[{title}]({name}/README.md)", _DROPS[entry.kind], f"`{entry.flag}`", sentence, source))
    table_of_methods = markdown_table(rows, _HEADER, num_labels=len(_HEADER))
    return f"{_INTRODUCTION}{table_of_methods}\n\nMade by `tools/methods_table.py`.\n"


def main() -> None:
    """Write the file, or print it."""
    (config,) = read_command(__doc__, TableConfig)
    if config.print:
        print(table(), end="")
    else:
        (FOLDER / "README.md").write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)

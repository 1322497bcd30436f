#!/usr/bin/env python3
"""Write docs/megatron-lm-flags.md: every flag of Megatron-LM's GPT pretraining, and what it is here.

python tools/megatron_lm_flags.py            write it
python tools/megatron_lm_flags.py --print    show it

The names are recorded in megatron/ltd/megatron_lm/flags.txt.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from megatron.ltd.errors import run_command  # noqa: E402
from megatron.ltd.flags import Settings, flag, read_command  # noqa: E402

PAGE = REPOSITORY / "docs" / "megatron-lm-flags.md"
_DIFFERENCES = REPOSITORY / "docs" / "coming-from-megatron-lm.md"
_TITLE = "Same name, with a difference"
_INTRODUCTION = """# Every flag of Megatron-LM

The {all} flags of Megatron-LM's `pretrain_gpt.py` in the groups of its own `--help`, and what each is for
`pretrain_gpt_ltd.py`: {works} work, {accepted} are accepted because what they ask for is so anyway (the run says so
with a line at its start), {renamed} have another name and are taken under it, and {refused} are refused with the reason
given here. What to know besides flags: [coming from Megatron-LM](coming-from-megatron-lm.md).

"""


@dataclass(frozen=True)
class PageConfig(Settings):
    """page of flags"""

    print: bool = flag(False, help="show the page instead of writing it")


def page() -> str:
    """The whole file."""
    from megatron.ltd.format import markdown_table
    from megatron.ltd.megatron_lm.refused import recorded

    differs = _flags_that_differ()
    counts: Counter[str] = Counter()
    sections = []
    for group, flags in recorded().items():
        rows = []
        for spellings in flags:
            kind, text = _answer(spellings, differs)
            counts[kind] += 1
            rows.append((", ".join(f"`{spelling}`" for spelling in spellings), kind, text))
        table = markdown_table(rows, ("flag", "here", ""), num_labels=3)
        sections.append(f"## {group[:1].upper()}{group[1:]}\n\n{table}\n")
    head = _INTRODUCTION.format(all=counts.total(), **{kind.partition(",")[0]: counts[kind] for kind in counts})
    return head + "\n".join(sections) + "\nMade by `tools/megatron_lm_flags.py`.\n"


def _answer(spellings: Sequence[str], differs: set[str]) -> tuple[str, str]:
    """What a flag is here: works, accepted, renamed or refused; and more about it."""
    from megatron.ltd.megatron_lm.accepted import ACCEPTED, RENAMED
    from megatron.ltd.megatron_lm.refused import refusal

    ours, *others = _flags_of_scripts().items()
    own = next((spelling for spelling in spellings if spelling in ours[1]), None)
    if own is not None:
        link = "[with a difference](coming-from-megatron-lm.md#same-name-with-a-difference)"
        return "works", link if own in differs else ""
    for spelling in spellings:
        if spelling in ACCEPTED:
            found = ACCEPTED[spelling]
            values = f"with the value {' or '.join(f'`{value}`' for value in found.values)}: " if found.values else ""
            unless = "" if found.unless is None else f", and refused with `{found.unless}`"
            return "accepted", values + _as_code(found.why) + unless
        if spelling in RENAMED:
            return "renamed", f"`{' '.join(RENAMED[spelling])}`"
    script = next((name for name, flags in others if spellings[0] in flags), None)
    return "refused", f"a flag of `{script}`" if script else _as_code(str(refusal(spellings[0])))


@cache
def _flags_of_scripts() -> dict[str, set[str]]:
    from megatron.ltd.arguments import build_parser
    from megatron.ltd.workloads import BERT, GPT, VIT

    scripts = {"pretrain_gpt_ltd.py": GPT, "pretrain_bert_ltd.py": BERT, "finetune_vit_ltd.py": VIT}
    return {name: set(build_parser(workload).flags) for name, workload in scripts.items()}


def _flags_that_differ() -> set[str]:
    section = _DIFFERENCES.read_text(encoding="utf-8").partition(f"\n## {_TITLE}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(--[\w-]+)` \|", section, flags=re.MULTILINE))


def _as_code(text: str) -> str:
    return re.sub(r"(--[a-z][\w-]*)", r"`\1`", text)


def main() -> None:
    """Write the file, or print it."""
    (config,) = read_command(__doc__, PageConfig)
    if config.print:
        print(page(), end="")
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)

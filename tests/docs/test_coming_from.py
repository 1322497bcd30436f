"""The pages for users of Megatron-LM and DeepSpeed: every flag listed as available exists, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.ltd.arguments import build_parser
from megatron.ltd.megatron_lm.accepted import ACCEPTED, RENAMED
from megatron.ltd.workloads import BERT, GPT, VIT
from tests.docs.documents import FLAG, section, table_rows
from tools.megatron_lm_flags import PAGE, page


@pytest.fixture(scope="module")
def training_flags() -> set[str]:
    """The flags of the commands that pretrain a GPT or a BERT or train a vision transformer."""
    parsers = [build_parser(workload) for workload in (GPT, BERT, VIT)]
    return {flag for parser in parsers for flag in parser._option_string_actions if flag.startswith("--")}


@pytest.fixture(scope="module")
def megatron_lm(repository: Path) -> str:
    return (repository / "docs" / "coming-from-megatron-lm.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("title", ["Same name, same meaning", "Same name, with a difference", "New flags"])
def test_available_flags_exist(megatron_lm: str, training_flags: set[str], title: str) -> None:
    named = set(FLAG.findall(section(megatron_lm, title)))
    assert len(named) >= 7
    assert not {name for name in named if not any(flag.startswith(name) for flag in training_flags)}
    assert not {name for name in named if not name.endswith("-") and name not in training_flags}


def test_flags_that_are_accepted_and_renamed(megatron_lm: str, training_flags: set[str]) -> None:
    rows = table_rows(section(megatron_lm, "Accepted and renamed"))
    theirs, ours = (set(FLAG.findall(" ".join(cells))) for cells in zip(*rows, strict=True))
    assert theirs - training_flags <= ACCEPTED.keys() | RENAMED.keys()
    assert len(theirs - training_flags) > 10 and ours <= training_flags


def test_the_page_of_every_flag_is_made_by_its_command() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/megatron_lm_flags.py"


def test_missing_flags_do_not_exist(megatron_lm: str, training_flags: set[str]) -> None:
    named = set(FLAG.findall(section(megatron_lm, "Not available")))
    assert len(named) >= 15 and not named & training_flags


def test_every_training_flag_is_on_the_page_for_megatron_lm(megatron_lm: str, training_flags: set[str]) -> None:
    """Flags for image statistics are exempt, because Megatron-LM has no counterpart."""
    named = set(FLAG.findall(megatron_lm))
    prefixes = tuple(name for name in named if name.endswith("-"))
    images = {"--image-mean", "--image-std"}
    assert not {flag for flag in training_flags - named - images - {"--help"} if not flag.startswith(prefixes)}


def test_flags_of_the_page_for_deepspeed(repository: Path, training_flags: set[str]) -> None:
    text = (repository / "docs" / "coming-from-deepspeed.md").read_text(encoding="utf-8")
    named = set(FLAG.findall(text))
    assert len(named) >= 30 and named <= training_flags
    methods = {flag for flag in training_flags if flag.startswith(("--ltd-min", "--ltd-growth", "--ltd-gran"))}
    assert methods <= named

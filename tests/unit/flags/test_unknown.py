"""Unknown flags: all are named at once, and a suggestion has the meaning that was intended."""

from __future__ import annotations

import itertools

import pytest

from megatron.ltd.arguments import build_parser, parse_run_config
from megatron.ltd.errors import UserError
from megatron.ltd.flags.unknown import about_unknown, same_meaning
from megatron.ltd.workloads import BERT, BERT_CLASSIFIER, VIT

WORKLOADS = {"bert": BERT, "classifier": BERT_CLASSIFIER, "vit": VIT}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("--num-layer", "--num-layers"), ("--numlayers", "--num-layers"), ("--num_layers", "--num-layers"),
        ("--hiden-size", "--hidden-size"), ("--attention-heads", "--num-attention-heads"),
        ("--no-mmap-bin-file", "--no-mmap-bin-files"), ("--micro-batchsize", "--micro-batch-size"),
        ("--use-bf16", "--bf16"), ("--random-lttd", "--random-ltd"), ("--xyz", None),
        ("--max-position-embedding", "--max-position-embeddings"),
    ],
)  # fmt: skip
def test_a_misspelling_finds_its_flag(name: str, meant: str | None) -> None:
    assert same_meaning(name, build_parser().flags)[:1] == ([] if meant is None else [meant])


@pytest.mark.parametrize(
    "name",
    [
        "--add-bias-linear", "--mmap-bin-files", "--log-progress", "--num-experts",
        "--no-bf16", "--fp8", "--decoder-num-layers", "--max-lr", "--progress", "--disable-random-ltd",
    ],
)  # fmt: skip
def test_a_flag_of_another_meaning_is_not_suggested(name: str) -> None:
    assert same_meaning(name, build_parser().flags) == []


@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_flag_suggests_another_one(workload: str) -> None:
    """No flag of a command is suggested for another, except for two flags that differ in one letter."""
    pairs = itertools.permutations(build_parser(WORKLOADS[workload]).flags, 2)
    found = {frozenset(pair) for pair in pairs if same_meaning(pair[0], [pair[1]])}
    assert found <= {frozenset({"--plan-gpu", "--plan-gpus"})}


def test_all_unknown_flags_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse_run_config(["--swiglo", "--num-experts", "-8", "--lr", "1", "--num-layer=3", "--swiglo", "words"])
    assert str(caught.value) == (
        "--num-experts: there is no mixture of experts here; use a dense model; --swiglo (use --swiglu), --num-layer "
        "(use --num-layers): there are no such flags; --help lists them all"
    )


def test_one_unknown_name() -> None:
    assert about_unknown(["--x"], [], "flag", "see y") == "--x: there is no such flag; see y"

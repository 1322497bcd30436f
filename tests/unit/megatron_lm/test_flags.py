"""Every flag of Megatron-LM's GPT pretraining has one answer: ours, accepted, renamed or refused with a reason."""

from __future__ import annotations

import re

import pytest

from megatron.ltd.arguments import build_parser, parse_run_config
from megatron.ltd.megatron_lm.accepted import ACCEPTED, RENAMED, settled
from megatron.ltd.megatron_lm.refused import _GROUPS, _RULES, recorded, refusal
from tests.support_errors import refused

RUN = "--lr 1e-3 --train-iters 3".split()
SPELLINGS = [spelling for flags in recorded().values() for flag in flags for spelling in flag]
OURS = set(build_parser().flags)


def test_the_recorded_list() -> None:
    assert len(SPELLINGS) == len(set(SPELLINGS)) > 870
    assert {"--num-layers", "--use-mcore-models", "--moe-router-topk", "--no-rl-partial-rollouts"} <= set(SPELLINGS)


def test_no_flag_has_two_answers() -> None:
    """When a flag becomes one of ours, it must be removed from the tables."""
    assert not OURS & ACCEPTED.keys() and not OURS & RENAMED.keys() and not ACCEPTED.keys() & RENAMED.keys()
    assert ACCEPTED.keys() | RENAMED.keys() <= set(SPELLINGS)
    assert {words[0] for words in RENAMED.values()} <= OURS


def test_every_other_flag_is_refused_with_a_reason() -> None:
    answers = {flag: refusal(flag) for flag in SPELLINGS if flag not in OURS | ACCEPTED.keys() | RENAMED.keys()}
    assert all(answer and len(answer) > 10 for answer in answers.values())
    general = [flag for flag, answer in answers.items() if str(answer).startswith("there is no such flag")]
    assert len(general) < 60, general
    assert refusal("--no-such-flag") is None


def test_every_rule_answers_for_some_flag() -> None:
    first = {
        next((pattern for pattern, _ in _RULES if re.fullmatch(pattern, flag.removeprefix("--"))), None)
        for flag in SPELLINGS
        if flag not in OURS
    }
    assert {pattern for pattern, _ in _RULES} <= first
    assert _GROUPS.keys() <= recorded().keys()


def test_flags_that_a_refusal_advises_are_ours() -> None:
    texts = " ".join([*(text for _, text in _RULES), *_GROUPS.values(), *(found.why for found in ACCEPTED.values())])
    advised = {flag for flag in re.findall(r"--[a-z][\w-]*[a-z]", texts)}
    assert len(advised) > 20 and not {
        flag for flag in advised if not any(own.startswith(flag) for own in OURS | {"--config"})
    }


def test_accepted_flags_are_left_out_with_a_line_each() -> None:
    words = "--use-mcore-models --num-layers 4 --ckpt-format torch_dist --dataloader-type=single --bf16".split()
    kept, notes = settled(words, OURS)
    assert kept == ["--num-layers", "4", "--bf16"]
    assert [note.partition(" is accepted: ")[0] for note in notes] == [
        "--use-mcore-models", "--ckpt-format torch_dist", "--dataloader-type single",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [["--tokenizer-type", "TikTokenizer"], ["--tokenizer-type=TikTokenizer"]])
def test_a_flag_that_would_have_an_effect_is_refused(words: list[str]) -> None:
    pattern = ["--tiktoken-pattern", "v2"]
    assert settled([*words, *pattern], OURS) == ([*words, *pattern], [])
    kept, (note,) = settled(["--tokenizer-type", "NullTokenizer", *pattern], OURS)
    assert kept == ["--tokenizer-type", "NullTokenizer"] and note.startswith("--tiktoken-pattern v2 is accepted")


def test_memory_and_parallel_saving_are_so_anyway() -> None:
    words = "--log-memory-to-tensorboard --log-memory-interval 10 --log-device-memory-used --ckpt-fully-parallel-save"
    assert len(parse_run_config([*RUN, *words.split()]).notes) == 4


def test_renamed_flags() -> None:
    config = parse_run_config([*RUN, "--use-rotary-position-embeddings", "--batch-size=3"])
    assert (config.model.position_embedding_type, config.training.micro_batch_size) == ("rope", 3)
    assert config.notes == (
        "--use-rotary-position-embeddings is --position-embedding-type rope here",
        "--batch-size is --micro-batch-size here",
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--ckpt-format torch", ["--ckpt-format torch", "torch_dist"]),
        ("--ckpt-format", ["--ckpt-format", "expected one argument"]),
        ("--use-mcore-models=yes", ["--use-mcore-models", "'yes'", "a switch takes no value"]),
        ("--optimizer muon", ["--optimizer muon", "adam", "emerging-optimizers"]),
        ("--optimizer sgd", ["--optimizer sgd", "adam"]),
        ("--muon-momentum 0.9", ["--muon-momentum", "emerging-optimizers"]),
        ("--num-experts 8 --moe-router-topk 2", ["--num-experts, --moe-router-topk: there is no mixture of experts"]),
        ("--fp4-format e2m1 --swiglo", ["--fp4-format: 4-bit", "--swiglo: there is no such flag"]),
        ("--ckpt-fully-parallel-load-exchange-algo broadcast", ["use --ckpt-fully-parallel-load alone"]),
        ("--fp8-format hybrid --fp8-param-gather", ["--fp8-param-gather: weights stay in bfloat16"]),
    ],
)
def test_what_is_refused(flags: str, said: list[str]) -> None:
    with refused(*said):
        parse_run_config([*RUN, *flags.split()])


def test_sequence_parallelism_of_one_process() -> None:
    config = parse_run_config([*RUN, "--sequence-parallel"])
    assert config.parallel.sequence_parallel is False and "--sequence-parallel" in config.notes[0]
    split = parse_run_config([*RUN, "--sequence-parallel", "--tensor-model-parallel-size", "2"])
    assert split.parallel.sequence_parallel is True and not split.notes


def test_the_files_of_gpt2_name_their_tokenizer() -> None:
    config = parse_run_config([*RUN, "--vocab-file", "v.json", "--merge-file", "m.txt"])
    assert config.tokenizer.tokenizer_type == "GPT2BPETokenizer" and "--tokenizer-type" in config.notes[0]

"""Requests of lm-eval to the model, answered like Hugging Face's model with the same weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from megatron.ltd.evaluation.lm_eval.harness import HarnessModel
from megatron.ltd.evaluation.scoring import BatchSize
from megatron.ltd.tokenizers.base import Tokenizer
from tests.support import VOCAB_SIZE, world
from tests.support_errors import refused
from tests.support_evaluation import LENGTH, Pair, gpt2_pair


class Letters(Tokenizer):
    """A tokenizer in which "a" is 1, "b" 2, ... "z" 26, a space 27; 0 ends a document."""

    name, vocab_size, eod, fingerprint = "Letters", VOCAB_SIZE, 0, "f" * 64

    def encode(self, text: str) -> list[int]:
        return [27 if letter == " " else ord(letter) - 96 for letter in text]

    def decode(self, ids: Any) -> str:
        return "".join(chr(token + 96) if 0 < token < 27 else " " for token in ids)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with world() as mesh:
        yield gpt2_pair(mesh)


@pytest.fixture
def harness(pair: Pair) -> HarnessModel:
    return HarnessModel(pair.ours, Letters(), BatchSize(100), facts={"iteration": 7})


def request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def log_likelihood(pair: Pair, context: list[int], end: list[int]) -> float:
    """log p(end | context) of Hugging Face's model, which sees only the last tokens of a text that is too long."""
    inputs = (context + end)[-(LENGTH + 1) : -1]
    log_softmax_SV = pair.log_softmax(inputs)[-len(end) :]
    return float(log_softmax_SV.gather(1, torch.tensor(end)[:, None]).sum())


def test_loglikelihood(pair: Pair, harness: HarnessModel, caplog: pytest.LogCaptureFixture) -> None:
    """An empty context is the end of a document, and a space at the context's end belongs to the continuation."""
    encode = Letters().encode
    texts = [
        ("how are", " you"),
        ("", "word"),
        ("the tokens ", "skip"),
        ("x" * 40, "yz"),
        ("x" * 22, "yz"),
        (" ", "word"),
    ]
    with caplog.at_level(logging.WARNING):
        found = harness.loglikelihood([request(*text) for text in texts], disable_tqdm=True)
    expected = [
        log_likelihood(pair, encode(context.rstrip(" ")) or [0], encode(" " * context.endswith(" ") + end))
        for context, end in texts
    ]
    assert [value for value, _ in found] == pytest.approx(expected, abs=1e-4)
    assert harness.num_truncated == 1 and "1 of 6 requests are longer than the model (24 tokens)" in caplog.text
    info = harness.get_model_info()
    assert info == {"model": "megatron-ltd", "iteration": 7, "max_length": LENGTH, "num_truncated": 1}
    assert json.dumps(info) and str(harness) == "megatron-ltd"


def test_rolling_windows(pair: Pair, harness: HarnessModel) -> None:
    """Each token is scored once: 60 tokens in windows of 24, 24 and 12, each after as many tokens as fit."""
    tokens = torch.randint(1, 27, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [Letters().decode(tokens), "short", ""]
    windows = [([0], tokens[:24]), (tokens[23:24], tokens[24:48]), (tokens[35:48], tokens[48:])]
    found = harness.loglikelihood_rolling([request(text) for text in texts], disable_tqdm=True)
    expected = sum(log_likelihood(pair, context, end) for context, end in windows)
    assert found == pytest.approx([expected, log_likelihood(pair, [0], Letters().encode("short")), 0.0], abs=1e-3)
    assert harness.num_truncated == 0


def test_generation_up_to_a_stop_sequence(pair: Pair, harness: HarnessModel) -> None:
    contexts = ["how", "the tokens", "abcdefghijklmnopqrstuvwxyz"]
    plain = []
    for context in contexts:
        prompt = Letters().encode(context)[-(LENGTH - 8) :]
        new = pair.greedy(prompt, 8)
        plain.append(Letters().decode(new[: new.index(0)] if 0 in new else new))
    arguments: dict[str, Any] = {"max_gen_toks": 8, "do_sample": False, "temperature": 0.0}
    found = harness.generate_until([request(context, {**arguments, "until": []}) for context in contexts], True)
    assert found == plain and harness.num_truncated == 1
    stop = plain[0][2:4]
    until = harness.generate_until(
        [request(context, {**arguments, "until": [stop, "#"]}) for context in contexts], True
    )
    assert until == [text.split(stop)[0] for text in plain] != plain


def test_repeated_requests_have_different_but_reproducible_texts(harness: HarnessModel) -> None:
    arguments = {"max_gen_toks": 8, "do_sample": True, "temperature": 2.0, "top_k": 20, "top_p": 0.95, "until": []}
    requests = [request("how", arguments)] * 3
    first, again = (harness.generate_until(requests, disable_tqdm=True) for _ in range(2))
    assert first == again and len(set(first)) == 3


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"max_gen_toks": LENGTH}, [f"max_gen_toks={LENGTH}"]),
        ({}, ["--gen_kwargs max_gen_toks=256", LENGTH]),
        ({"max_gen_toks": -1}, ["--gen_kwargs max_gen_toks=-1"]),
        ({"max_gen_toks": 1, "do_sample": True, "temperature": -1.0}, ["temperature=-1.0"]),
        ({"max_gen_toks": 1, "do_sample": True, "top_k": -1}, ["top_k=-1"]),
        ({"max_gen_toks": 1, "do_sample": True, "top_p": 0.0}, ["top_p=0.0"]),
        ({"max_gen_toks": 1, "do_sample": True, "top_p": 2.0}, ["top_p=2.0"]),
        ({"num_beams": 4, "max_gen_toks": 1}, ["num_beams=4", "--gen_kwargs"]),
    ],
)
def test_bad_generation_settings_are_refused(harness: HarnessModel, arguments: dict, names: list) -> None:
    with refused(*names):
        harness.generate_until([request("how", arguments)], disable_tqdm=True)


def test_settings_of_other_libraries_are_accepted_at_their_defaults(harness: HarnessModel) -> None:
    arguments = {"max_gen_toks": 2, "num_beams": 1, "until": "x"}
    assert len(harness.generate_until([request("how", arguments)], disable_tqdm=True)) == 1


def test_a_continuation_longer_than_the_model_is_refused(harness: HarnessModel) -> None:
    with refused(25, LENGTH):
        harness.loglikelihood([request("a", "b" * 25)], disable_tqdm=True)


@pytest.mark.parametrize("wrong", [None, {"a": 1}, ["a"], 1.5])
def test_prompts_and_answers_that_are_no_text_are_refused(harness: HarnessModel, wrong: Any) -> None:
    """lm-eval hands on what a record holds in the place of a text."""
    settings = {"until": ["x"], "max_gen_toks": 2}
    for ask, arguments in (
        (harness.loglikelihood, ("a", wrong)),
        (harness.loglikelihood, (wrong, "a")),
        (harness.loglikelihood_rolling, (wrong,)),
        (harness.generate_until, (wrong, settings)),
    ):
        with refused("--tasks", type(wrong).__name__, "not text"):
            ask([request(*arguments)], disable_tqdm=True)


@pytest.mark.parametrize("context", ["how are", ""])
def test_a_continuation_without_tokens_is_refused_as_by_lm_evals_hf(
    pair: Pair, harness: HarnessModel, context: str
) -> None:
    """lm-eval's hf fails on an assertion, or on an index."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = {"<e>": 0, **{chr(96 + token): token for token in range(1, 27)}, " ": 27}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Backend(BPE(letters, [])), eos_token="<e>")
    theirs = HFLM(pretrained=pair.theirs, tokenizer=tokenizer, device="cpu")
    full, empty = request(context, " you"), request(context, "")
    (found,), (expected,) = (one.loglikelihood([full], disable_tqdm=True) for one in (harness, theirs))
    assert found == pytest.approx(expected, abs=1e-4)
    with pytest.raises((AssertionError, IndexError)):
        theirs.loglikelihood([full, empty], disable_tqdm=True)
    with refused("--tasks", context):
        harness.loglikelihood([full, empty], disable_tqdm=True)


def test_one_process_is_all_of_them(harness: HarnessModel) -> None:
    assert (harness.rank, harness.world_size) == (0, 1)
    assert harness.all_gather(torch.tensor(3)).tolist() == [3]
    assert harness.gather_object({"a": 1}) == [{"a": 1}]
    with refused("--apply_chat_template"):
        harness.apply_chat_template([])

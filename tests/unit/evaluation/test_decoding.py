"""Generated tokens equal those of Hugging Face's models with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from megatron.ltd.evaluation.causal_lm import CausalLM
from megatron.ltd.evaluation.decoding import generate
from megatron.ltd.evaluation.sampler import Sampler, text_seed
from megatron.ltd.parallel.mesh import Mesh
from tests.support import VOCAB_SIZE
from tests.support_evaluation import LENGTH, Pair, gpt2_pair, llama_pair, random_texts

NO_TOKEN = -1
PROMPTS = random_texts([1, 12, 5, 5, LENGTH, 19])


@pytest.fixture(scope="module", params=[gpt2_pair, llama_pair], ids=["GPT-2", "Llama"])
def pair(request: pytest.FixtureRequest, mesh: Mesh) -> Pair:
    make: Callable[[Mesh], Pair] = request.param
    return make(mesh)


def greedy(model: CausalLM, prompts: Sequence[Sequence[int]], most: Sequence[int], eod: int = NO_TOKEN) -> list:
    return generate(model, prompts, [Sampler.build(0, 0.0)] * len(prompts), max_new_tokens=most, eod=eod)


def test_greedy_decoding_equals_hugging_faces(pair: Pair) -> None:
    """Prompts of different lengths in one batch, up to the model's length, get different numbers of new tokens."""
    most = [LENGTH - 1, LENGTH - 12, 7, 0, 1, LENGTH - 19]
    found = greedy(pair.ours, PROMPTS, most)
    assert found == [
        pair.greedy(prompt, number) if number else [] for prompt, number in zip(PROMPTS, most, strict=True)
    ]
    assert len({token for tokens in found for token in tokens}) > 4  # not the same token over and over


def test_beyond_the_models_length_its_last_tokens_are_the_context(pair: Pair) -> None:
    (found,) = greedy(pair.ours, [PROMPTS[5]], [LENGTH])
    text = list(PROMPTS[5])
    for token in found:
        assert token == int(pair.log_softmax(text[-LENGTH:])[-1].argmax())
        text.append(token)
    assert len(text) == 19 + LENGTH


def test_decoding_without_a_cache_is_the_same(pair: Pair, mesh: Mesh) -> None:
    """Models whose attention has no cache are decoded this way."""
    uncached = CausalLM(pair.ours.model, pair.config, VOCAB_SIZE, mesh)
    uncached.can_cache = False
    most = [9] * len(PROMPTS)
    assert greedy(uncached, PROMPTS, most) == greedy(pair.ours, PROMPTS, most)


def test_the_end_of_the_document_ends_the_text(pair: Pair) -> None:
    """The third token generated for the first prompt is made the end of document; texts stop before its first use."""
    plain = greedy(pair.ours, PROMPTS[:4], [9] * 4)
    eod = plain[0][2]
    ended = [tokens[: tokens.index(eod)] if eod in tokens else tokens for tokens in plain]
    assert greedy(pair.ours, PROMPTS[:4], [9] * 4, eod) == ended != plain


def test_the_caller_may_end_a_text(pair: Pair) -> None:
    asked: list[tuple[int, int]] = []

    def has_ended(place: int, new: Sequence[int]) -> bool:
        asked.append((place, len(new)))
        return len(new) == place + 1

    samplers = [Sampler.build(0, 0.0)] * 3
    found = generate(pair.ours, PROMPTS[:3], samplers, max_new_tokens=[9] * 3, eod=NO_TOKEN, has_ended=has_ended)
    plain = greedy(pair.ours, PROMPTS[:3], [9] * 3)
    assert found == [tokens[: place + 1] for place, tokens in enumerate(plain)]
    assert asked == [(0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (2, 3)]


def test_sampling_does_not_depend_on_the_batch(pair: Pair) -> None:
    def samplers(places: Sequence[int]) -> list[Sampler]:
        return [Sampler.build(text_seed(1, PROMPTS[place], 0), 1.5, 8) for place in places]

    def drawn(*places: int) -> list:
        prompts = [PROMPTS[place] for place in places]
        return generate(pair.ours, prompts, samplers(places), max_new_tokens=[8] * len(places), eod=NO_TOKEN)

    together = drawn(0, 1, 2)
    assert together == [*drawn(0), *drawn(2, 1)[::-1]]
    assert together != greedy(pair.ours, PROMPTS[:3], [8] * 3)


def test_every_prompt_has_its_own_seed() -> None:
    seeds = {text_seed(seed, prompt, draw) for seed in (1, 2) for prompt in ((1, 2), (12,)) for draw in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert text_seed(1, [1, 2], 0) == text_seed(1, (1, 2), 0)


def test_only_the_tokenizers_ids_are_generated(pair: Pair, mesh: Mesh) -> None:
    """A model with a padded vocabulary may prefer padding ids, which the tokenizer cannot decode."""
    known = 5
    model = CausalLM(pair.ours.model, pair.config, VOCAB_SIZE, mesh, num_text_ids=known)
    (found,) = greedy(model, [PROMPTS[1]], [5])
    text = list(PROMPTS[1])
    for token in found:
        assert token == int(pair.log_softmax(text)[-1, :known].argmax())
        text.append(token)
    assert found != greedy(pair.ours, [PROMPTS[1]], [5])[0]

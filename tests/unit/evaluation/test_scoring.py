"""Log-likelihoods equal those of Hugging Face's models with the same weights, however texts are batched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from megatron.ltd.evaluation.causal_lm import CausalLM
from megatron.ltd.evaluation.scoring import BatchSize, Text, score
from megatron.ltd.models.execution_config import PrecisionConfig
from megatron.ltd.parallel.mesh import Mesh
from tests.support import VOCAB_SIZE, build_core_model
from tests.support_errors import refused
from tests.support_evaluation import LENGTH, Pair, gpt2_pair, llama_pair, random_texts

LENGTHS = [2, LENGTH + 1, 9, 17, 5, 9, LENGTH + 1]
SCORED = [1, LENGTH, 3, 16, 1, 8, 1]


@pytest.fixture(scope="module", params=[gpt2_pair, llama_pair], ids=["GPT-2", "Llama"])
def pair(request: pytest.FixtureRequest, mesh: Mesh) -> Pair:
    make: Callable[[Mesh], Pair] = request.param
    return make(mesh)


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    return [Text(tokens, scored) for tokens, scored in zip(random_texts(LENGTHS), SCORED, strict=True)]


def expected(pair: Pair, text: Text) -> float:
    log_softmax_SV = pair.log_softmax(text.tokens[:-1])[-text.num_scored :]
    return float(log_softmax_SV.gather(1, torch.tensor(text.tokens[-text.num_scored :])[:, None]).sum())


@pytest.mark.parametrize("batch_size", [BatchSize(10_000), BatchSize(1), BatchSize(40), BatchSize(10_000, 3)])
def test_equal_to_hugging_face(pair: Pair, texts: list[Text], batch_size: BatchSize) -> None:
    scores = score(pair.ours, texts, batch_size)
    for text, found in zip(texts, scores, strict=True):
        assert found.log_likelihood == pytest.approx(expected(pair, text), abs=1e-4)


def test_is_greedy_agrees_with_greedy_decoding(pair: Pair, texts: list[Text]) -> None:
    prompts = [text.tokens[:4] for text in texts if len(text.tokens) > 4]
    likeliest = [Text((*prompt, *pair.greedy(prompt, 5)), 5) for prompt in prompts]
    others = [Text((*text.tokens[:-1], (text.tokens[-1] + 1) % VOCAB_SIZE), 5) for text in likeliest]
    assert [found.is_greedy for found in score(pair.ours, likeliest, BatchSize(100))] == [True] * len(prompts)
    assert [found.is_greedy for found in score(pair.ours, others, BatchSize(100))] == [False] * len(prompts)


def test_equal_inputs_are_computed_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four answers to a question differ only in the last token, so their inputs are equal; one scores two tokens."""
    computed: list[int] = []
    inner = CausalLM.hidden_states

    def counted(self: CausalLM, tokens_BS: torch.Tensor) -> torch.Tensor:
        computed.append(len(tokens_BS))
        return inner(self, tokens_BS)

    monkeypatch.setattr(CausalLM, "hidden_states", counted)
    settled: list[int] = []
    texts = [Text((3, 1, 4, 1, answer), scored) for answer, scored in ((5, 1), (6, 1), (7, 2), (8, 1))]
    scores = score(pair.ours, texts, BatchSize(100), settled.append)
    assert (computed, settled) == ([1], [4])
    for text, found in zip(texts, scores, strict=True):
        assert found.log_likelihood == pytest.approx(expected(pair, text), abs=1e-4)


@pytest.mark.parametrize("batch_size", [BatchSize(10_000), BatchSize(60), BatchSize(10_000, 2), BatchSize(1)])
def test_equal_contexts_are_read_once(pair: Pair, batch_size: BatchSize, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three questions, one as long as the model allows, have answers of 1 to 4 tokens, some of them equal."""
    contexts = random_texts([16, 11, LENGTH - 3], seed=1)
    answers = [[(1, 2, 3), (4,), (5,), (1, 2, 4)], [(7, 8), (9, 8, 7, 6), (7, 8)], [(3, 2, 1, 0), (2,), (4, 4, 4, 4)]]
    texts = [Text(context + end, len(end)) for context, ends in zip(contexts, answers, strict=True) for end in ends]
    texts.append(Text(contexts[0][:9], 3))
    read: list[int] = []
    inner = CausalLM.next_hidden_states

    def counted(self: CausalLM, tokens_BS: torch.Tensor, *arguments: Any) -> torch.Tensor:
        read.append(tokens_BS.numel())
        return inner(self, tokens_BS, *arguments)

    monkeypatch.setattr(CausalLM, "next_hidden_states", counted)
    scores = score(pair.ours, texts, batch_size)
    for text, found in zip(texts, scores, strict=True):
        assert found.log_likelihood == pytest.approx(expected(pair, text), abs=1e-4)
    if batch_size == BatchSize(10_000):  # three contexts, then the different answers without their last tokens
        assert read == [3 * (LENGTH - 3), 7 * 3]
    assert bool(read) == (batch_size.tokens > 1)


def test_without_a_cache_scores_are_the_same(pair: Pair, mesh: Mesh) -> None:
    uncached = CausalLM(pair.ours.model, pair.config, VOCAB_SIZE, mesh)
    uncached.can_cache = False
    context = random_texts([16])[0]
    texts = [Text((*context, 3, token), 2) for token in range(5)] + [Text((*context, 4, 5), 2)]
    first, second = (score(model, texts, BatchSize(100)) for model in (uncached, pair.ours))
    assert [one.log_likelihood for one in first] == pytest.approx([one.log_likelihood for one in second], abs=1e-4)


def test_padding_ids_of_the_vocabulary_are_ignored(pair: Pair, mesh: Mesh) -> None:
    """The last 3 of 32 ids are padding, and the scores are as if the model had no such rows."""
    known = VOCAB_SIZE - 3
    model = CausalLM(pair.ours.model, pair.config, known, mesh)
    tokens = (1, 2, 3, 4)
    with torch.no_grad():
        logits_V = pair.theirs(torch.tensor([tokens])).logits[0, -1, :known]
    found = score(model, [Text((*tokens, token), 1) for token in range(known)], BatchSize(100))
    assert torch.allclose(
        torch.tensor([one.log_likelihood for one in found]), logits_V.log_softmax(-1), atol=1e-4, rtol=0
    )
    assert [one.is_greedy for one in found].index(True) == int(logits_V.argmax())
    assert sum(one.is_greedy for one in found) == 1


def test_half_precision_is_close(mesh: Mesh, pair: Pair, texts: list[Text]) -> None:
    """Scores in bfloat16, which has 8 bits of mantissa, with a softmax in fp32, are close to those in fp32."""
    rounded = build_core_model(pair.config, mesh, precision=PrecisionConfig(bf16=True)).to(torch.bfloat16)
    rounded.load_state_dict(pair.ours.model.state_dict())
    found = score(CausalLM(rounded, pair.config, VOCAB_SIZE, mesh), texts, BatchSize(100))
    for text, one in zip(texts, found, strict=True):
        assert one.log_likelihood == pytest.approx(expected(pair, text), rel=0.02, abs=0.1)


def test_the_training_mode_is_restored(pair: Pair, texts: list[Text]) -> None:
    pair.ours.model.train()
    score(pair.ours, texts[:1], BatchSize(100))
    assert pair.ours.model.training and torch.is_grad_enabled()
    pair.ours.model.eval()


def test_batches_respect_their_limits() -> None:
    lengths = [9, 9, 8, 4, 4, 4, 1]
    assert [list(run) for run in BatchSize(18).split(lengths)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [len(run) for run in BatchSize(5).split(lengths)] == [1, 1, 1, 1, 1, 1, 1]
    assert [len(run) for run in BatchSize(1000, 3).split(lengths)] == [3, 3, 1]
    assert list(BatchSize(5).split([])) == []
    lengths = [500, 450, 440, 430, 420, 10]  # 450 is 0.9 of 500; 430 is less, and 3 x 500 tokens are a batch
    assert [list(run) for run in BatchSize(9000).split(lengths, alike=True)] == [[0, 1, 2], [3, 4, 5]]
    assert [list(run) for run in BatchSize(9000).split(lengths)] == [[0, 1, 2, 3, 4, 5]]
    assert [list(run) for run in BatchSize(40).split([9, 5, 5, 5], [4, 4, 3, 4])] == [[0], [1, 2], [3]]


def test_pipeline_and_context_parallelism_are_refused(pair: Pair, mesh: Mesh) -> None:
    import dataclasses

    for name, flag in (("pipeline", "--pipeline-model-parallel-size"), ("context", "--context-parallel-size")):
        parts = dataclasses.replace(mesh, **{f"{name}_parallel_size": 2})
        with refused(flag, "tools/evaluate.py"):
            CausalLM(pair.ours.model, pair.config, VOCAB_SIZE, parts)

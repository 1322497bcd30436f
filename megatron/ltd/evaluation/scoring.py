"""Log-likelihoods of continuations, many at a time.

    text        t0 t1 t2 t3 t4 t5         inputs    t0 t1 t2 t3 t4
    scored               ▲  ▲  ▲          targets            t3 t4 t5        log p = sum of log p(target)

What texts share is computed once:

    equal inputs     the one-token answers to a question: all of them from one row
    equal contexts   longer answers to a question: the context is read into a cache, which each answer continues

The longest texts come first. The texts of a batch have similar lengths and at most ``BatchSize.tokens`` tokens, padding
included, so the first batch needs the most memory. Not here: which texts, and metrics (``lm_eval.harness``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.ltd.evaluation.causal_lm import CausalLM
from megatron.ltd.layers.key_value_cache import KeyValueCache

Inputs = tuple[int, ...]
"""The tokens of a text that the model reads: all but the last."""


_FULL_ENOUGH_TOKENS = 1024
_ALIKE = 0.9
"""A batch of 1024 tokens costs no more per token than a larger one; a text shorter than 0.9 of the longest text in its
batch would be padded by more than a tenth."""


@dataclass(frozen=True)
class BatchSize:
    """The largest batch: at most this many tokens, padding included, and this many texts."""

    tokens: int
    texts: int | None = None
    """None: as many as ``tokens`` allows."""

    def split(
        self, lengths: Sequence[int], numbers: Sequence[int] | None = None, *, alike: bool = False
    ) -> Iterator[range]:
        """Batches as ranges of places in ``lengths``, where a place is one text or ``numbers`` of them.

        A single place may exceed the largest batch. With ``alike``, for texts whose padding is computed too, a batch
        that is full enough takes no text that is much shorter.
        """
        start = texts = longest = 0
        for place, length in enumerate(lengths):
            number = 1 if numbers is None else numbers[place]
            is_full_enough = alike and texts * longest >= _FULL_ENOUGH_TOKENS and length < _ALIKE * longest
            texts, longest = texts + number, max(longest, length)
            is_over = texts * longest > self.tokens or texts > (self.texts or texts)
            if place > start and (is_over or is_full_enough):
                yield range(start, place)
                start, texts, longest = place, number, length
        if start < len(lengths):
            yield range(start, len(lengths))


@dataclass(frozen=True)
class Text:
    """Token ids, of which the last ``num_scored`` are scored; at least one token is before them."""

    tokens: tuple[int, ...]
    num_scored: int

    def __post_init__(self) -> None:
        assert 0 < self.num_scored < len(self.tokens), (self.num_scored, len(self.tokens))

    @property
    def inputs(self) -> Inputs:
        return self.tokens[:-1]

    @property
    def context(self) -> Inputs:
        return self.tokens[: -self.num_scored]


@dataclass(frozen=True)
class Score:
    """The score of the last tokens of a text."""

    log_likelihood: float
    """Sum of their log-probabilities [nat]."""
    is_greedy: bool
    """Whether greedy decoding would produce them."""


@dataclass(frozen=True)
class _Group:
    """Inputs with the same context."""

    context: Inputs
    inputs: tuple[Inputs, ...]

    @property
    def longest_end(self) -> int:
        """Tokens after the context."""
        return max(map(len, self.inputs)) - len(self.context)

    @property
    def is_worth_it(self) -> bool:
        """Whether the cache saves more tokens than there are after the context."""
        ends = sum(map(len, self.inputs)) - len(self.inputs) * len(self.context)
        return (len(self.inputs) - 1) * len(self.context) > ends

    def parts(self, batch_size: BatchSize) -> Iterator[_Group]:
        """The group in parts that fit into a batch each: a cache has room for whole texts."""
        for batch in batch_size.split([len(inputs) for inputs in self.inputs]):
            yield _Group(self.context, tuple(self.inputs[place] for place in batch))


def score(
    model: CausalLM, texts: Sequence[Text], batch_size: BatchSize, on_progress: Callable[[int], object] | None = None
) -> list[Score]:
    """The score of each text, which may have at most ``model.max_length`` inputs.

    ``on_progress`` is called after each batch with the number of texts that it scored.
    """
    same_inputs: dict[Inputs, list[int]] = {}
    same_context: dict[Inputs, dict[Inputs, None]] = {}
    for place, text in enumerate(texts):
        if text.inputs not in same_inputs:
            same_context.setdefault(text.context, {})[text.inputs] = None
        same_inputs.setdefault(text.inputs, []).append(place)
    found = [_Group(context, tuple(inputs)) for context, inputs in same_context.items() if model.can_cache]
    groups = [group for whole in found for group in whole.parts(batch_size) if group.is_worth_it]
    shared = {inputs for group in groups for inputs in group.inputs}
    alone = sorted(same_inputs.keys() - shared, key=lambda inputs: (-len(inputs), inputs))
    groups.sort(key=lambda group: (-len(group.context), group.context))

    scores: list[Score | None] = [None] * len(texts)

    def settle(hidden_MH: Tensor, rows: Mapping[Inputs, Sequence[int]]) -> None:
        places = [place for inputs in rows for place in same_inputs[inputs]]
        asked = [(texts[place], rows[texts[place].inputs]) for place in places]
        for place, one in zip(places, _scores(model, hidden_MH, asked), strict=True):
            scores[place] = one
        if on_progress is not None:
            on_progress(len(places))

    with model.evaluating():
        for batch in batch_size.split([len(inputs) for inputs in alone], alike=True):
            settle(*_read(model, [alone[place] for place in batch]))
        lengths = [len(group.context) + group.longest_end for group in groups]
        for batch in batch_size.split(lengths, [len(group.inputs) for group in groups], alike=True):
            settle(*_read_groups(model, [groups[place] for place in batch]))
    return [one for one in scores if one is not None]


def _read(model: CausalLM, batch: Sequence[Inputs]) -> tuple[Tensor, dict[Inputs, Sequence[int]]]:
    """Hidden states [M, H], and for each of the inputs the rows of its tokens."""
    hidden_SBH = model.hidden_states(model.padded(batch))
    number = len(batch)
    rows: dict[Inputs, Sequence[int]] = {
        inputs: range(sample, len(inputs) * number, number) for sample, inputs in enumerate(batch)
    }
    return hidden_SBH.flatten(0, 1), rows


def _read_groups(model: CausalLM, groups: Sequence[_Group]) -> tuple[Tensor, dict[Inputs, Sequence[int]]]:
    """The same for groups: first their contexts, one per sample, then the rest, one of the inputs per sample."""
    contexts = [group.context for group in groups]
    inputs = [one for group in groups for one in group.inputs]
    samples = [sample for sample, group in enumerate(groups) for _ in group.inputs]
    ends = [one[len(contexts[sample]) :] for sample, one in zip(samples, inputs, strict=True)]
    longest_end = max(map(len, ends))
    cache = KeyValueCache(max(map(len, contexts)) + longest_end)
    tokens_BS = model.padded(contexts)
    positions_BS = torch.arange(tokens_BS.shape[1], device=model.device).expand(len(contexts), -1)
    hidden_MH = model.next_hidden_states(tokens_BS, positions_BS, cache).flatten(0, 1)
    rows: dict[Inputs, Sequence[int]] = {}
    for number, (one, sample) in enumerate(zip(inputs, samples, strict=True)):
        length = len(contexts[sample])
        of_end = range(len(hidden_MH) + number, len(hidden_MH) + longest_end * len(inputs), len(inputs))
        rows[one] = [*range(sample, length * len(contexts), len(contexts)), *of_end[: len(one) - length]]
    if longest_end:
        cache.keep(torch.tensor(samples, device=model.device))
        starts_B = torch.tensor([len(contexts[sample]) for sample in samples], device=model.device)
        positions_BS = starts_B[:, None] + torch.arange(longest_end, device=model.device)
        of_ends_SBH = model.next_hidden_states(model.padded(ends), positions_BS, cache)
        hidden_MH = torch.cat([hidden_MH, of_ends_SBH.flatten(0, 1)])
    return hidden_MH, rows


def _scores(model: CausalLM, hidden_MH: Tensor, asked: Sequence[tuple[Text, Sequence[int]]]) -> list[Score]:
    """Scores of texts, each with the rows of its inputs."""
    rows = [row for text, own in asked for row in own[len(own) - text.num_scored :]]
    targets = [token for text, _ in asked for token in text.tokens[len(text.tokens) - text.num_scored :]]
    rows_N, targets_N = torch.tensor([rows, targets], device=model.device)
    found = model.log_probabilities(hidden_MH[rows_N], targets_N)
    log_probabilities, are_likeliest = (part.tolist() for part in found)
    scores, start = [], 0
    for text, _ in asked:
        own = slice(start, start := start + text.num_scored)
        scores.append(Score(sum(log_probabilities[own]), all(are_likeliest[own])))
    return scores

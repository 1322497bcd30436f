"""Text generation: many prompts at a time, one token of each per step, from the logits after its last token.

    prompts ──► all of them at once ──► cache ─┐
                 ┌── next token of each ◄──────┤ one new token per text and step
                 └──► unfinished texts ────────┘

A text ends with the end-of-document token, at its largest number of new tokens, or when the caller ends it. Keys and
values are cached while a text fits the model. Beyond that the context is its last tokens, counted from position 0, and
is recomputed for each token, as for models whose attention has no cache (``CausalLM.can_cache``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron.ltd.evaluation.causal_lm import CausalLM
from megatron.ltd.evaluation.sampler import Sampler, pick_all
from megatron.ltd.layers.key_value_cache import KeyValueCache

if TYPE_CHECKING:
    from megatron.ltd.evaluation.load import LoadedModel
    from megatron.ltd.evaluation.sampling_config import SamplingConfig


def generate_text(loaded: LoadedModel, config: SamplingConfig) -> str:
    """The continuation of ``--prompt``, without the prompt."""
    tokenizer = loaded.tokenizer
    sampler = Sampler.build(config.seed, config.temperature, config.top_k, config.top_p)
    prompts, most = [tokenizer.encode(config.prompt)], [config.num_tokens_to_generate]
    (tokens,) = generate(loaded.causal_lm, prompts, [sampler], max_new_tokens=most, eod=tokenizer.eod)
    return tokenizer.decode(tokens)


def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    samplers: Sequence[Sampler],
    *,
    max_new_tokens: Sequence[int],
    eod: int,
    has_ended: Callable[[int, Sequence[int]], bool] = lambda place, new_tokens: False,
) -> list[list[int]]:
    """The token ids that follow each prompt (of one token or more), without the end-of-document token.

    ``has_ended(place, new_tokens)`` is called after each token and returns whether the text of the prompt at that place
    ends here. Each prompt has its own sampler and largest number of new tokens.
    """
    new: list[list[int]] = [[] for _ in prompts]
    unfinished = [place for place in range(len(prompts)) if max_new_tokens[place] > 0]
    with model.evaluating():
        reader = _Reader(model, [list(prompt) for prompt in prompts], max_new_tokens)
        while unfinished:
            tokens = pick_all([samplers[place] for place in unfinished], reader.next_logits(unfinished))
            still_unfinished = []
            for place, token in zip(unfinished, tokens, strict=True):
                if token == eod:
                    continue
                new[place].append(token)
                reader.texts[place].append(token)
                if len(new[place]) < max_new_tokens[place] and not has_ended(place, new[place]):
                    still_unfinished.append(place)
            unfinished = still_unfinished
    return new


class _Reader:
    """Logits after the last token of texts that grow by one token per step."""

    def __init__(self, model: CausalLM, texts: list[list[int]], max_new_tokens: Sequence[int]) -> None:
        self.model = model
        self.texts = texts
        self._cached = [place for place in range(len(texts)) if model.can_cache and self._fits(place)]
        most_tokens = max((len(texts[place]) + max_new_tokens[place] for place in self._cached), default=0)
        self._cache = KeyValueCache(min(model.max_length, most_tokens))
        self._has_read_prompts = False

    def next_logits(self, places: Sequence[int]) -> Tensor:
        """Logits [N, V] of the texts at ``places``, ascending. A text that is left out once may not return."""
        unfinished = set(places)
        cached = [place for place in self._cached if place in unfinished and self._fits(place)]
        others = sorted(unfinished.difference(cached))
        hidden_of: dict[int, Tensor] = {}
        if cached:
            hidden_of |= dict(zip(cached, self._next_hidden(cached), strict=True))
        if others:
            hidden_of |= dict(zip(others, self._reread_hidden(others), strict=True))
        return self.model.logits(torch.stack([hidden_of[place] for place in places]))

    def _fits(self, place: int) -> bool:
        return len(self.texts[place]) <= self.model.max_length

    def _next_hidden(self, places: list[int]) -> Tensor:
        """[N, H], with the cache."""
        lengths_N = torch.tensor([len(self.texts[place]) for place in places], device=self.model.device)
        if not self._has_read_prompts:
            self._has_read_prompts, self._cached = True, places
            tokens_NS = self.model.padded([self.texts[place] for place in places])
            positions_NS = torch.arange(tokens_NS.shape[1], device=self.model.device).expand(len(places), -1)
            hidden_SNH = self.model.next_hidden_states(tokens_NS, positions_NS, self._cache)
            return _last(hidden_SNH, lengths_N)
        if len(places) < len(self._cached):
            self._cache.keep(torch.tensor([self._cached.index(place) for place in places], device=self.model.device))
            self._cached = places
        last_N1 = torch.tensor([[self.texts[place][-1]] for place in places], device=self.model.device)
        return self.model.next_hidden_states(last_N1, lengths_N[:, None] - 1, self._cache)[0]

    def _reread_hidden(self, places: list[int]) -> Tensor:
        """[N, H], without a cache, from as many last tokens as fit the model."""
        contexts = [self.texts[place][-self.model.max_length :] for place in places]
        lengths_N = torch.tensor([len(context) for context in contexts], device=self.model.device)
        return _last(self.model.hidden_states(self.model.padded(contexts)), lengths_N)


def _last(hidden_SNH: Tensor, lengths_N: Tensor) -> Tensor:
    """The hidden state [N, H] of the last token of each sample."""
    return hidden_SNH[lengths_N - 1, torch.arange(len(lengths_N), device=lengths_N.device)]

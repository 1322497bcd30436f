"""Text from a model: one token after another, each from the logits of the last position.

B = 1 sample, S tokens so far, V vocabulary.

    context = the last tokens that the model has positions for
    logits_V = model(context)[last]
    temperature 0:  the likeliest token
    otherwise:      a draw from softmax(logits_V / temperature), over the --top-k likeliest

The whole context is computed anew for each token: right for short samples, and nothing is cached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.ltd.evaluation.load import LoadedModel
from megatron.ltd.evaluation.sampling_config import SamplingConfig


@dataclass(frozen=True)
class Sampler:
    """Picks the next token; its draws come from a stream of their own, started at ``--seed``."""

    temperature: float
    top_k: int | None
    generator: torch.Generator

    @classmethod
    def build(cls, config: SamplingConfig) -> Sampler:
        return cls(config.temperature, config.top_k, torch.Generator().manual_seed(config.seed))

    def pick(self, logits_V: Tensor) -> int:
        """A token id. ``logits_V`` holds ids that may be picked and no others."""
        logits_V = logits_V.float().cpu()
        if self.temperature == 0.0:
            return int(logits_V.argmax())
        if self.top_k is not None and self.top_k < logits_V.numel():
            least = logits_V.topk(self.top_k).values[-1]
            logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
        probabilities_V = torch.softmax(logits_V / self.temperature, dim=0)
        return int(torch.multinomial(probabilities_V, 1, generator=self.generator))


def generate_tokens(loaded: LoadedModel, prompt: Sequence[int], sampler: Sampler, max_new_tokens: int) -> Iterator[int]:
    """Token ids that follow ``prompt``: at most ``max_new_tokens``, and none after the end of the document."""
    tokens = list(prompt)
    max_context = loaded.config.learned_positions or loaded.config.seq_length
    device = next(loaded.model.parameters()).device
    for _ in range(max_new_tokens):
        context_BS = torch.tensor([tokens[-max_context:]], device=device)
        positions_BS = torch.arange(context_BS.shape[1], device=device).unsqueeze(0)
        with torch.no_grad():
            logits_BSV = loaded.model(context_BS, positions_BS, None)
        # Ids above the tokenizer's are padding of the vocabulary: they stand for nothing.
        token = sampler.pick(logits_BSV[0, -1, : loaded.tokenizer.vocab_size])
        if token == loaded.tokenizer.eod:
            return
        tokens.append(token)
        yield token


def generate_text(loaded: LoadedModel, config: SamplingConfig) -> str:
    """The text that follows ``--prompt``, without it."""
    prompt = loaded.tokenizer.encode(str(config.prompt))
    tokens = generate_tokens(loaded, prompt, Sampler.build(config), config.num_tokens_to_generate)
    return loaded.tokenizer.decode(list(tokens))

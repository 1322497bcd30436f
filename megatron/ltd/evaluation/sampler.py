"""Sampling: the next token, from the logits.

    temperature 0:  the likeliest token
    otherwise:      a sample from softmax(logits_V / temperature), among the top k tokens, and among the likeliest of
                    those that together have the probability top p

N texts, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.ltd.errors import UserError


@dataclass(frozen=True)
class Sampler:
    """Picks the next tokens of one text, with its own random generator."""

    temperature: float
    top_k: int | None
    top_p: float
    generator: torch.Generator

    @classmethod
    def build(cls, seed: int, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Sampler:
        return cls(temperature, top_k, top_p, torch.Generator().manual_seed(seed))

    def pick(self, logits_V: Tensor) -> int:
        """A token id. ``logits_V`` has the ids that may be picked. Raises ``UserError`` if a logit is not finite."""
        logits_V = logits_V.float().cpu()
        largest = logits_V.max().item()
        _check_finite(largest)
        if self.temperature == 0.0:
            return int(logits_V.argmax())
        logits_V = (logits_V.double() - largest) / self.temperature  # 0 for the likeliest, at any temperature
        if self.top_k is not None and self.top_k < logits_V.numel():
            least = logits_V.topk(self.top_k).values[-1]
            logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
        probabilities_V = torch.softmax(logits_V, dim=0)
        if self.top_p < 1.0:
            descending_V, ids_V = probabilities_V.sort(descending=True)
            likelier_V = descending_V.cumsum(0) - descending_V
            probabilities_V = probabilities_V.index_fill(0, ids_V[likelier_V >= self.top_p], 0.0)
        return int(torch.multinomial(probabilities_V, 1, generator=self.generator))


def pick_all(samplers: Sequence[Sampler], logits_NV: Tensor) -> list[int]:
    """The next token of each text, by its own sampler. Raises ``UserError`` if a logit is not finite."""
    if all(sampler.temperature == 0.0 for sampler in samplers):
        largest_N, tokens_N = logits_NV.max(dim=1)
        for largest in largest_N.tolist():
            _check_finite(largest)
        return tokens_N.tolist()
    return [sampler.pick(logits_V) for sampler, logits_V in zip(samplers, logits_NV.cpu(), strict=True)]


def _check_finite(largest_logit: float) -> None:
    """If any logit is NaN, the largest is NaN."""
    if not math.isfinite(largest_logit):
        raise UserError(
            f"--load: the largest logit of the model is {largest_logit}, so its weights are damaged or its training "
            "diverged; give another checkpoint"
        )


def text_seed(seed: int, tokens: Sequence[int], draw: int) -> int:
    """The seed of the ``draw``-th continuation of a prompt: the same in every batch and on every rank."""
    digest = hashlib.sha256(repr((seed, list(tokens), draw)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1

"""Text from a loaded model: continues the prompt of a command line (``decoding``)."""

from __future__ import annotations

from megatron.ltd.evaluation.decoding import generate
from megatron.ltd.evaluation.load import LoadedModel
from megatron.ltd.evaluation.sampler import Sampler
from megatron.ltd.evaluation.sampling_config import SamplingConfig


def generate_text(loaded: LoadedModel, config: SamplingConfig) -> str:
    """The continuation of ``--prompt``, without the prompt."""
    tokenizer = loaded.tokenizer
    sampler = Sampler.build(config.seed, config.temperature, config.top_k, config.top_p)
    (tokens,) = generate(
        loaded.causal_lm,
        [tokenizer.encode(config.prompt)],
        [sampler],
        max_new_tokens=[config.num_tokens_to_generate],
        eod=tokenizer.eod,
    )
    return tokenizer.decode(tokens)

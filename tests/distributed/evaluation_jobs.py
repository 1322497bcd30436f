"""Jobs of one rank in tests of evaluation: run the evaluation command, or call the model directly."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import initialize
from megatron.ltd.tokenizers.config import TokenizerFiles


def evaluate_command(flags: Sequence[str]) -> str:
    """Run ``tools/evaluate.py`` with these flags and return what it printed."""
    from megatron.ltd.evaluation.lm_eval.harness_command import evaluate

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluate(flags, None)
    return printed.getvalue()


def figures(folder: str, parallel: dict[str, Any], prompts: Sequence[Sequence[int]], new_tokens: int) -> Any:
    """The log-likelihoods of each prompt's second half, the greedy continuations, and whether the model can cache."""
    config = ParallelConfig(device="cpu", **parallel)
    with initialize(config) as mesh:
        from megatron.ltd.evaluation.decoding import generate
        from megatron.ltd.evaluation.load import load_model
        from megatron.ltd.evaluation.sampler import Sampler
        from megatron.ltd.evaluation.scoring import BatchSize, Text, score

        loaded = load_model(Path(folder), TokenizerFiles(), config, mesh)
        texts = [Text(tuple(prompt), len(prompt) // 2) for prompt in prompts]
        scores = score(loaded.causal_lm, texts, BatchSize(64))
        new = generate(
            loaded.causal_lm, prompts, [Sampler.build(0, 0.0)] * len(prompts),
            max_new_tokens=[new_tokens] * len(prompts), eod=-1,
        )  # fmt: skip
        return [(one.log_likelihood, one.is_greedy) for one in scores], new, loaded.causal_lm.can_cache

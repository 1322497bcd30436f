"""Checks that the numbers in a checkpoint's run.json are plausible for its tensor files. No torch.

A model of these sizes is built before any tensor is read, so that they are first compared with the bytes of the
tensors. The bound is low: it counts the largest matrices only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.ltd.small_files import bytes_of_files

PROGRESS = ("iteration", "consumed_samples", "consumed_layer_tokens")
ADDED_PROGRESS = ("consumed_tokens", "data_first_sample")
"""Counts that older checkpoints do not have."""
_FEWEST_BYTES = 2
"""Smallest size of a stored weight."""
_PARTS = ("model", "tokenizer", "parallel", "precision", "optimizer")
_SIZES = (
    *("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "kv_channels", "seq_length"),
    *("max_position_embeddings", "vocab_size", "make_vocab_size_divisible_by", "tensor_model_parallel_size"),
)
_NEEDED = ("num_layers", "hidden_size", "bf16", "fp16")
_MOST_LAYERS, _MOST_BYTES = 1 << 16, 1 << 44
_COUNT_LIMIT, _SIZE_LIMIT = 1 << 63, 1 << 31


def run_problem(checkpoint: Path, record: Mapping[str, Any]) -> str | None:
    """What is wrong with the numbers of a run.json, or None."""
    progress, config = record["progress"], record["config"]
    are_counts = all(_is_count(value, 0, _COUNT_LIMIT) for value in progress.values())
    if not are_counts or progress.keys() not in (set(PROGRESS), {*PROGRESS, *ADDED_PROGRESS}):
        return f"its progress must have the counts {', '.join(PROGRESS)}"
    if progress.get("data_first_sample", 0) > progress["consumed_samples"]:
        return "its data began at a sample that was not reached"
    if checkpoint.name.startswith("iter_") and int(checkpoint.name[5:]) != progress["iteration"]:
        return f"it is of iteration {progress['iteration']}, and its folder is named after another one"
    problem = settings_problem(checkpoint, config)
    if problem is not None:
        return problem
    missing = next((name for name in _NEEDED if name not in _settings(config)), None)
    return None if missing is None else f"its setting {missing} is missing"


def settings_problem(checkpoint: Path, config: Mapping[str, Any]) -> str | None:
    """What is wrong with the sizes in the flags of the run that wrote ``checkpoint``, or None."""
    wrong = next((part for part in _PARTS if not isinstance(config.get(part), dict | None)), None)
    if wrong is not None:
        return f"its settings of the {wrong} are not a dictionary"
    settings = _settings(config)
    sizes = {name: settings[name] for name in _SIZES if settings.get(name) is not None}
    if sizes.get("max_position_embeddings") == 0:  # a model without learned positions
        del sizes["max_position_embeddings"]
    wrong = next((name for name, value in sizes.items() if not _is_count(value, 1, _SIZE_LIMIT)), None)
    if wrong is not None:
        return f"its {wrong} must be an integer from 1 to {_SIZE_LIMIT - 1:,}"
    if sizes.get("num_layers", 1) > _MOST_LAYERS:
        return f"it has {sizes['num_layers']:,} layers, more than the limit of {_MOST_LAYERS:,}"
    num_weights = _num_weights(sizes, learned_positions=settings.get("position_embedding_type") == "learned_absolute")
    num_bytes = bytes_of_files(checkpoint, "*.distcp") or _MOST_BYTES
    if num_weights * _FEWEST_BYTES > num_bytes:
        return f"a model of its sizes has at least {num_weights:,} weights, but its tensors have {num_bytes:,} bytes"
    return None


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for part in _PARTS for name, value in (config.get(part) or {}).items()}


def _num_weights(sizes: Mapping[str, int], *, learned_positions: bool) -> int:
    """The weights of the largest matrices; a size that follows from others counts with its smallest value."""
    hidden = sizes.get("hidden_size", 1)
    mlp = 2 * sizes.get("ffn_hidden_size", hidden)
    attention = 2 * sizes.get("num_attention_heads", 1) * sizes.get("kv_channels", 0)
    multiple = math.lcm(sizes.get("make_vocab_size_divisible_by", 1), sizes.get("tensor_model_parallel_size", 1))
    rows = max(sizes.get("vocab_size", 1), multiple)
    if learned_positions:
        rows += sizes.get("max_position_embeddings", sizes.get("seq_length", 1))
    return (sizes.get("num_layers", 1) * (mlp + attention) + rows) * hidden


def _is_count(value: Any, least: int, limit: int) -> bool:
    return type(value) is int and least <= value < limit

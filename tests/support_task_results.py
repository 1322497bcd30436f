"""Result files like those that lm-eval writes, and their comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron.ltd.reports.task_table import CompareConfig, Comparison, compare

Write = Callable[..., Path]
"""A function such as ``write_results("run", piqa=task(acc=(0.5, 0.05)))``; it returns the folder of the file it wrote.
"""


def task(num_samples: int = 100, *, shots: int = 0, version: float = 1.0, of: int | None = None, **scores: Any) -> Any:
    """The entry of one task in a result file; ``acc=(0.5, 0.05)`` is a value and its standard error."""
    return {
        "scores": scores,
        "effective": num_samples,
        "original": of or num_samples,
        "n-shot": shots,
        "version": version,
    }


def comparison(*folders: Path, **flags: Any) -> Comparison:
    return compare(CompareConfig(results=tuple(map(str, folders)), **flags))


WIKITEXT = {"word_perplexity": (20.0, "N/A"), "bits_per_byte": (0.9, "N/A")}

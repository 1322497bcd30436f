"""The registry: which tasks there are, and which flags each has of its own. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.ltd.data.config import DataConfig
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.tasks.base import Entry, Task
from megatron.ltd.tokenizers.config import TokenizerConfig

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig


def _open_gpt(config: RunConfig) -> Task:
    from megatron.ltd.tasks.gpt import GPT

    return GPT(config)


GPT = Entry(
    name="GPT",
    description="Pretrain a GPT on Megatron-Core: dense, or with a method that computes less.",
    parts={"model": ModelConfig, "tokenizer": TokenizerConfig, "data": DataConfig},
    open=_open_gpt,
)

TASKS = {entry.name: entry for entry in (GPT,)}

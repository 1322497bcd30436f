"""The registry: which tasks there are, and which flags each has of its own. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.ltd.data.config import DataConfig, ImageDataConfig
from megatron.ltd.models.config import ModelConfig, ViTConfig
from megatron.ltd.tasks.base import Entry, Task
from megatron.ltd.tokenizers.config import TokenizerConfig

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig


def _open_gpt(config: RunConfig) -> Task:
    from megatron.ltd.tasks.gpt import GPT

    return GPT(config)


def _open_vit(config: RunConfig) -> Task:
    from megatron.ltd.tasks.vit import ViT

    return ViT(config)


GPT = Entry(
    name="GPT",
    description="Pretrain a GPT on Megatron-Core: dense, or with a method that computes less.",
    parts={"model": ModelConfig, "tokenizer": TokenizerConfig, "data": DataConfig},
    open=_open_gpt,
)

VIT = Entry(
    name="ViT",
    description="Finetune a vision transformer on Megatron-Core: dense, or with a method that computes less.",
    parts={"model": ViTConfig, "data": ImageDataConfig},
    open=_open_vit,
)

TASKS = {entry.name: entry for entry in (GPT, VIT)}

"""Counts of parameters by part of the model, against published totals; tests of the models compare with modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.encoder_config import BertModelConfig, ViTConfig
from megatron.ltd.plan.parameters import ModelParameters, ModelSizes, Parameters
from megatron.ltd.workloads.sizes import bert_sizes, classifier_sizes, gpt_sizes, vit_sizes

SHAPE = {"num_layers": 3, "hidden_size": 24, "ffn_hidden_size": 40, "num_attention_heads": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "Llama": {
        "swiglu": True, "normalization": "RMSNorm", "add_bias_linear": False, "group_query_attention": True,
        "num_query_groups": 2,
    },
}  # fmt: skip
OF_TEXT = {"untied": {"tied_embeddings": False}, "rotary": {"position_embedding_type": "rope"}}
MODELS: list[Callable[..., ModelSizes]] = [
    lambda **options: gpt_sizes(ModelConfig(**SHAPE, seq_length=16, **options), 128),
    lambda **options: bert_sizes(BertModelConfig(**SHAPE, seq_length=16, **options), 128),
    lambda **options: bert_sizes(BertModelConfig(**SHAPE, seq_length=16, bert_binary_head=False, **options), 128),
    lambda **options: classifier_sizes(BertModelConfig(**SHAPE, seq_length=16, **options), 128, 5),
    lambda **options: vit_sizes(ViTConfig(**SHAPE, img_h=8, img_w=8, patch_dim=2, **options), 10),
]
CASES = [(model, name) for model in range(4) for name in OPTIONS | OF_TEXT] + [(4, name) for name in OPTIONS]


@pytest.mark.parametrize(("model", "options"), CASES)
def test_pipeline_stages_add_up(model: int, options: str) -> None:
    """A first and a last stage hold the whole model, and the last one also a copy of a shared embedding."""
    parameters = MODELS[model](**(OPTIONS | OF_TEXT)[options]).parameters
    stages = [parameters.on_stage(1, first=True, last=False), parameters.on_stage(2, first=False, last=True)]
    assert sum(stage.total for stage in stages) == parameters.total + parameters.shared.total
    assert parameters.on_stage(3, first=True, last=True).total == parameters.total


GPT2: dict[str, Any] = {"num_layers": 12, "hidden_size": 768, "num_attention_heads": 12}
LLAMA: dict[str, Any] = {
    "num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "seq_length": 4096, "swiglu": True,
    "normalization": "RMSNorm", "add_bias_linear": False, "position_embedding_type": "rope", "tied_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "vocab_size", "published"),
    [
        (ModelConfig(**GPT2), 50257, 124_439_808),
        (ModelConfig(num_layers=48, hidden_size=1600, num_attention_heads=25), 50257, 1_557_611_200),
        (ModelConfig(**LLAMA, ffn_hidden_size=11008), 32000, 6_738_415_616),
        (
            ModelConfig(**LLAMA, ffn_hidden_size=14336, group_query_attention=True, num_query_groups=8),
            32000,
            7_241_732_096,
        ),
    ],
    ids=["GPT-2", "GPT-2 XL", "Llama 2 7B", "Mistral 7B"],
)
def test_published_gpts(model: ModelConfig, vocab_size: int, published: int) -> None:
    assert gpt_sizes(model, vocab_size).num_parameters == published


def test_published_vision_transformers() -> None:
    """ViT-B/16 and ViT-L/16 at 224 x 224 with ImageNet's 1,000 classes."""
    large = ViTConfig(num_layers=24, hidden_size=1024, num_attention_heads=16)
    assert vit_sizes(ViTConfig(**GPT2), 1000).num_parameters == 86_567_656
    assert vit_sizes(large, 1000).num_parameters == 304_326_632


def test_published_bert() -> None:
    """BERT-large with both heads: it has as many norms as ours (one after the embeddings instead of a last one)."""
    from transformers import BertConfig, BertForPreTraining

    ours = BertModelConfig(num_layers=24, hidden_size=1024, num_attention_heads=16)
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    with torch.device("meta"):
        published = BertForPreTraining(BertConfig(**large))
    counted = bert_sizes(ours, 30522).num_parameters
    assert counted == sum(parameter.numel() for parameter in published.parameters()) == 336_226_108


def test_a_separate_last_stage_has_a_copy_of_a_shared_embedding() -> None:
    parts = ModelParameters(
        4, embedding=Parameters(100, 10), layer=Parameters(20, 2), end=Parameters(0, 1), shared=Parameters(100)
    )
    assert parts.total == 110 + 4 * 22 + 1
    assert parts.on_stage(4, first=True, last=True).total == parts.total
    first, last = parts.on_stage(2, first=True, last=False), parts.on_stage(2, first=False, last=True)
    assert first.total + last.total == parts.total + 100
    assert first.on_process(2) == 50 + 10 + 2 * (10 + 2) and last.on_process(4) == 25 + 1 + 2 * (5 + 2)

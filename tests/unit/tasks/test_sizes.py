"""Parameters by place add up to those of the whole model, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.encoder_config import BertModelConfig, ViTConfig
from megatron.ltd.plan.parameters import ModelParameters, ModelSizes, Parameters
from megatron.ltd.tasks.sizes import bert_sizes, classifier_sizes, gpt_sizes, vit_sizes

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
def test_places_add_up(model: int, options: str) -> None:
    """The number itself is held against real models by the tests of each task."""
    sizes = MODELS[model](**(OPTIONS | OF_TEXT)[options])
    assert sizes.parameters.total == sizes.num_parameters


def test_a_shared_embedding_is_copied_to_a_last_stage_of_its_own() -> None:
    parts = ModelParameters(
        4, embedding=Parameters(100, 10), layer=Parameters(20, 2), end=Parameters(0, 1), shared=Parameters(100)
    )
    assert parts.total == 110 + 4 * 22 + 1
    assert parts.on_stage(4, first=True, last=True).total == parts.total
    first, last = parts.on_stage(2, first=True, last=False), parts.on_stage(2, first=False, last=True)
    assert first.total + last.total == parts.total + 100
    assert first.on_process(2) == 50 + 10 + 2 * (10 + 2) and last.on_process(4) == 25 + 1 + 2 * (5 + 2)

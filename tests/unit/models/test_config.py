"""The flags of a model: values derived from them, values that are refused, and the model's identity."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.execution_config import PrecisionConfig, RecomputeConfig
from megatron.ltd.parallel.config import ParallelConfig
from tests.support_errors import refused

ODD = {"hidden_size": 60, "num_attention_heads": 4, "position_embedding_type": "rope"}
REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (ModelConfig, {"num_layers": 0}, ("--num-layers 0", 1)),
    (ModelConfig, {"seq_length": -1}, ("--seq-length -1",)),
    (ModelConfig, {"ffn_hidden_size": 0}, ("--ffn-hidden-size 0",)),
    (ModelConfig, {"kv_channels": 0}, ("--kv-channels 0",)),
    (ModelConfig, {"hidden_size": 10, "num_attention_heads": 3}, ("--hidden-size 10", 3, "--kv-channels")),
    (ModelConfig, {"group_query_attention": True, "num_query_groups": 3}, ("--num-query-groups 3", 16)),
    (ModelConfig, {"num_query_groups": 4}, ("--num-query-groups 4", "--group-query-attention")),
    (ModelConfig, {"max_position_embeddings": 8, "seq_length": 16}, ("--max-position-embeddings 8", "--seq-length 16")),
    (ModelConfig, {"swiglu": True, "hidden_size": 16}, ("--hidden-size 16", "--swiglu", 0)),
    (ModelConfig, {"swiglu": True, "openai_gelu": True}, ("--swiglu", "--openai-gelu")),
    (ModelConfig, {"hidden_dropout": 1.0}, ("--hidden-dropout 1.0", 0, 1)),
    (ModelConfig, {"norm_epsilon": 0.0}, ("--norm-epsilon 0.0", 0)),
    (ModelConfig, {"init_method_std": -0.1}, ("--init-method-std -0.1",)),
    (ModelConfig, {"rotary_percent": 1.5}, ("--rotary-percent 1.5",)),
    (ModelConfig, ODD, ("--position-embedding-type rope", 15, "--kv-channels")),
    (ModelConfig, {**ODD, "kv_channels": 16, "rotary_percent": 0.2}, ("--rotary-percent 0.2", 3)),
    (ModelConfig, {**ODD, "kv_channels": 4, "rotary_percent": 0.2}, ("--rotary-percent 0.2", 0)),
    (PrecisionConfig, {"bf16": True, "fp16": True}, ("--bf16", "--fp16")),
    (PrecisionConfig, {"fp16": True, "loss_scale": 0.0}, ("--loss-scale 0.0",)),
    (PrecisionConfig, {"fp16": True, "hysteresis": 0}, ("--hysteresis 0",)),
    (PrecisionConfig, {"min_loss_scale": 8.0, "initial_loss_scale": 4.0}, ("--min-loss-scale 8", 4)),
    (ParallelConfig, {"ddp_bucket_size": 9}, ("--ddp-bucket-size 9", "--overlap-grad-reduce")),
    (ParallelConfig, {"ddp_num_buckets": 9}, ("--ddp-num-buckets 9", "--overlap-grad-reduce")),
    (
        ParallelConfig,
        {"ddp_num_buckets": 9, "ddp_bucket_size": 9, "overlap_grad_reduce": True},
        ("--ddp-bucket-size", "--ddp-num-buckets"),
    ),
    (
        ParallelConfig,
        {"ddp_pad_buckets_for_high_nccl_busbw": True},
        ("--ddp-pad-buckets-for-high-nccl-busbw", "--use-distributed-optimizer"),
    ),
    (RecomputeConfig, {"recompute_granularity": "full"}, ("--recompute-granularity",)),
    (RecomputeConfig, {"recompute_num_layers": 1}, ("--recompute-granularity",)),
    (
        RecomputeConfig,
        {"recompute_granularity": "selective", "recompute_modules": ("mlp", "layernorm")},
        ("--recompute-modules layernorm", "part of the product after them"),
    ),
    (RecomputeConfig, {"recompute_modules": ("mlp",)}, ("--recompute-modules", "--recompute-granularity")),
]


@pytest.mark.parametrize(("config_class", "values", "message"), REFUSED)
def test_bad_values_are_refused(config_class: type, values: dict[str, Any], message: tuple[object, ...]) -> None:
    with refused(*message) as caught:
        config_class(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "derived"),
    [
        ({}, {"head_size": 64, "query_groups": 16, "mlp_size": 4096, "learned_positions": 1024}),
        ({"swiglu": True}, {"mlp_size": 2688}),  # 8/3 x 1024 = 2730.7, rounded down to a multiple of 64
        ({"ffn_hidden_size": 100, "swiglu": True}, {"mlp_size": 100}),
        ({"group_query_attention": True, "num_query_groups": 4}, {"query_groups": 4}),
        ({"kv_channels": 48}, {"head_size": 48}),
        ({"position_embedding_type": "rope"}, {"learned_positions": 0}),
        ({"max_position_embeddings": 2048}, {"learned_positions": 2048}),
    ],
)
def test_derived_values(values: dict[str, Any], derived: dict[str, int]) -> None:
    model = ModelConfig(**values)
    assert {name: getattr(model, name) for name in derived} == derived


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 3}, {"hidden_size": 2048}, {"num_attention_heads": 8}, {"kv_channels": 32}, {"swiglu": True},
        {"position_embedding_type": "rope"}, {"normalization": "RMSNorm"}, {"add_bias_linear": False},
        {"tied_embeddings": False}, {"seq_length": 512}, {"openai_gelu": True}, {"rotary_base": 500},
    ],
)  # fmt: skip
def test_the_identity_changes_with_the_weights_or_their_meaning(change: dict[str, Any]) -> None:
    assert ModelConfig(**change).identity(128) != ModelConfig().identity(128)


def test_the_identity_ignores_other_settings() -> None:
    assert ModelConfig(hidden_dropout=0.0, init_method_std=0.5).identity(128) == ModelConfig().identity(128)
    assert ModelConfig().identity(128) != ModelConfig().identity(256)


@pytest.mark.parametrize(
    ("values", "dtype"), [({}, "float32"), ({"bf16": True}, "bfloat16"), ({"fp16": True}, "float16")]
)
def test_dtype(values: dict[str, bool], dtype: str) -> None:
    assert PrecisionConfig(**values).dtype == dtype

"""Conversion of tensors in both directions, against the plain GPT's weights in our layout and in Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron.ltd.hugging_face.architecture import Architecture, Arrangement, Heads, Joined, Transposed
from megatron.ltd.hugging_face.config_file import ConfigFile
from megatron.ltd.hugging_face.gpt2 import GPT2
from megatron.ltd.hugging_face.llama import LLAMA
from megatron.ltd.hugging_face.model import architecture_of
from megatron.ltd.models.config import ModelConfig
from tests.reference.gpt2_folder import random_plain
from tests.reference.llama_folder import LLAMA as LLAMA_SHAPE
from tests.reference.names import gpt2_tensors, llama_tensors, megatron_tensors
from tests.reference.plain_gpt import PlainConfig
from tests.support import small_model
from tests.support_errors import refused

ROPE = {"position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True}
MODELS: dict[str, tuple[Architecture, ModelConfig]] = {
    "GPT-2": (GPT2, small_model(openai_gelu=True)),
    "GPT-2, untied, exact GELU, more positions": (
        GPT2, small_model(tied_embeddings=False, max_position_embeddings=32, norm_epsilon=1e-3),
    ),
    "Llama": (LLAMA, small_model(**ROPE, add_bias_linear=False, tied_embeddings=False)),
    "Llama, grouped, tied, biases, a head of its own": (
        LLAMA,
        small_model(**ROPE, group_query_attention=True, num_query_groups=2, kv_channels=8, rotary_base=500000),
    ),
    "Llama, one key-value head": (LLAMA, small_model(**ROPE, group_query_attention=True)),
}  # fmt: skip
PLAIN: dict[str, tuple[Architecture, PlainConfig, Callable[..., dict[str, Tensor]], ModelConfig]] = {
    "GPT-2": (GPT2, PlainConfig(learned_positions=16), gpt2_tensors, small_model()),
    "Llama": (
        LLAMA,
        LLAMA_SHAPE,
        llama_tensors,
        small_model(
            **ROPE, group_query_attention=True, num_query_groups=2, add_bias_linear=False, tied_embeddings=False
        ),
    ),
}
CHECKPOINT_NAMES = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm",
    "pre_mlp_layernorm": "mlp.linear_fc1.layer_norm",
}


def in_a_checkpoint(name: str) -> str:
    """The name that a checkpoint gives to a parameter of a module."""
    for module, stored in CHECKPOINT_NAMES.items():
        name = name.replace(f".{module}.", f".{stored}_")
    return name


@pytest.mark.parametrize("case", PLAIN)
def test_tensors_are_converted_in_both_directions(case: str) -> None:
    architecture, config, names, model = PLAIN[case]
    plain = random_plain(config).state_dict()
    ours = {in_a_checkpoint(name): tensor for name, tensor in megatron_tensors(plain, config).items()}
    theirs = names(plain, config)
    table = architecture.counterparts(model, config.vocab_size)
    assert table.keys() == ours.keys()
    assert {architecture.full_name(name) for found in table.values() for name in found.names} == theirs.keys()
    for name, found in table.items():
        expected = [theirs[architecture.full_name(their_name)] for their_name in found.names]
        assert tuple(tuple(tensor.shape) for tensor in expected) == found.shapes
        assert tuple(ours[name].shape) == found.shape
        assert torch.equal(found.arrangement.to_ours(expected), ours[name])
        for tensor, their_tensor in zip(found.arrangement.to_theirs(ours[name]), expected, strict=True):
            assert torch.equal(tensor, their_tensor)


ARRANGEMENTS: list[tuple[Arrangement, int]] = [
    (Heads(3, 2, 5), 60),
    (Heads(1, 4, 2), 12),
    (Heads(4, 1, 3, are_joined=True), 36),
    (Joined((4, 7, 1)), 12),
    (Transposed(Heads(2, 2, 3, are_joined=True)), 24),
]


@pytest.mark.parametrize(("arrangement", "num_rows"), ARRANGEMENTS, ids=str)
def test_each_direction_inverts_the_other(arrangement: Arrangement, num_rows: int) -> None:
    ours = torch.randn(num_rows, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(arrangement.to_ours(arrangement.to_theirs(ours)), ours)


@pytest.mark.parametrize("case", MODELS)
def test_a_config_file_describes_the_model(case: str) -> None:
    architecture, model = MODELS[case]
    assert architecture_of(model) is architecture
    entries = architecture.config_entries(model)
    read = ModelConfig(**architecture.model_flags(ConfigFile(Path("x"), entries)))
    assert read.identity(32) == model.identity(32)
    assert (read.norm_epsilon, read.learned_positions) == (model.norm_epsilon, model.learned_positions)


IN_THE_WAY: dict[str, tuple[dict[str, object], str]] = {
    "RoPE alone": ({"position_embedding_type": "rope"}, "Llama needs --normalization RMSNorm, --swiglu"),
    "RMSNorm alone": ({"normalization": "RMSNorm"}, "GPT-2 needs --normalization LayerNorm;"),
    "SwiGLU alone": ({"swiglu": True}, "GPT-2 needs no --swiglu;"),
    "no positions": ({"position_embedding_type": "none"}, "GPT-2 needs --position-embedding-type learned_absolute;"),
    "no biases": ({"add_bias_linear": False}, "GPT-2 needs no --disable-bias-linear;"),
    "key-value heads": ({"group_query_attention": True}, "GPT-2 needs no --group-query-attention;"),
    "heads of another size": ({"kv_channels": 8}, "GPT-2 needs no --kv-channels but hidden / heads;"),
    "partly rotated heads": ({**ROPE, "rotary_percent": 0.34}, "Llama needs --rotary-percent 1.0)"),
    "LayerNorm in a Llama": ({**ROPE, "normalization": "LayerNorm"}, "Llama needs --normalization RMSNorm)"),
    "GELU in a Llama": ({**ROPE, "swiglu": False}, "Llama needs --swiglu)"),
    "odd heads": ({**ROPE, "num_attention_heads": 5, "kv_channels": 8}, "--num-attention-heads divides)"),
}


@pytest.mark.parametrize(("changes", "fragment"), IN_THE_WAY.values(), ids=IN_THE_WAY.keys())
def test_a_model_without_a_hugging_face_class_is_refused(changes: dict[str, object], fragment: str) -> None:
    with refused() as caught:
        architecture_of(small_model(**changes))
    assert fragment in str(caught.value)

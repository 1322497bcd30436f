"""Our GPT against a plain PyTorch GPT and against Hugging Face's models, all with the same weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from megatron.ltd.data.batch import Batch
from megatron.ltd.methods.base import Composed, Method, Samples
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.parallel.mesh import Mesh
from tests.reference.gpt2_folder import gpt2_config
from tests.reference.llama_folder import llama_config
from tests.reference.names import gpt2_tensors, llama_tensors, megatron_tensors
from tests.reference.plain_gpt import PlainConfig, PlainGPT
from tests.support import (
    VOCAB_SIZE,
    assert_gradients,
    assert_gradients_close,
    build_core_model,
    build_stepper,
    dense,
    gradients_of,
    kept_positions,
    layer_drop,
    learned,
    random_batches,
    random_ltd,
    small_model,
    sublayer_scales,
    token_bypass,
)

SEQ_LENGTH = 16


def plain_config(model: ModelConfig) -> PlainConfig:
    return PlainConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        heads=model.num_attention_heads,
        groups=model.query_groups,
        head_size=model.head_size,
        mlp_size=model.mlp_size,
        vocab_size=VOCAB_SIZE,
        learned_positions=model.learned_positions,
        rotary_base=float(model.rotary_base),
        rms_norm=model.normalization == "RMSNorm",
        swiglu=model.swiglu,
        tanh_gelu=model.openai_gelu,
        bias=model.add_bias_linear,
        tied=model.tied_embeddings,
        epsilon=model.norm_epsilon,
    )


def plain_step(
    plain: PlainGPT, batches: Sequence[Batch], method: Method, learned_V: Tensor | None
) -> tuple[float, Tensor]:
    """Loss of a step by the formula in training/objective.py, and sums and counts of losses by token id; gradients are
    left in ``plain``.
    """
    losses, masks = [], []
    by_token = torch.zeros(2, VOCAB_SIZE, dtype=torch.float64)
    for microbatch, batch in enumerate(batches):
        samples = Samples(batch.sample_ids_B, batch.tokens_BS, learned_V)
        for row, tokens_S in enumerate(batch.tokens_BS):
            document_S = None
            if batch.document_starts_BS is not None:
                ends = tokens_S == 0
                document_S = ends.cumsum(0) - ends.long()
            logits_SV = plain(
                tokens_S,
                position_ids_S=batch.position_ids_BS[row],
                document_S=document_S,
                kept=kept_positions(method, samples, row),
                entry_layers=method.plan(0).entry_layers,
                scale=sublayer_scales(method, microbatch),
            )
            losses.append(plain.token_losses(batch.labels_BS[row], logits_SV))
            masks.append(batch.loss_mask_BS[row])
            for token, loss, weight in zip(tokens_S, losses[-1].detach(), masks[-1], strict=True):
                by_token[:, token] += torch.stack([loss * weight, weight])
    mask = torch.cat(masks)
    loss = (torch.cat(losses) * mask).sum() / mask.sum()
    loss.backward()
    return loss.item(), by_token


GPT2_LIKE: dict[str, Any] = {}
ROPE = {"position_embedding_type": "rope"}
LLAMA_LIKE = {
    "position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True, "add_bias_linear": False,
    "tied_embeddings": False, "group_query_attention": True, "num_query_groups": 2,
}  # fmt: skip
VARIANTS = {
    "learned positions, LayerNorm, GELU, tied, biases": GPT2_LIKE,
    "tanh GELU": {"openai_gelu": True},
    "untied": {"tied_embeddings": False},
    "no biases": {"add_bias_linear": False},
    "RoPE": ROPE,
    "RMSNorm": {"normalization": "RMSNorm"},
    "SwiGLU with biases": {"swiglu": True},
    "one key-value head": {"group_query_attention": True, "num_query_groups": 1},
    "RoPE, RMSNorm, SwiGLU, two key-value heads, untied, no biases": LLAMA_LIKE,
}


METHODS: dict[str, Callable[[ModelConfig], Method]] = {
    "dense": dense,
    "random-LTD": lambda model: random_ltd(model, 6),
    "random-LTD in all layers": lambda model: random_ltd(model, 5, ltd_layers="1-3", ltd_allow_edge_layers=True),
    "random-LTD in blocks of 4": lambda model: random_ltd(model, 8, ltd_block_size=4, ltd_granularity=4),
    "layer dropping": lambda model: layer_drop(model, 0.6),
    "random-LTD + layer dropping": lambda model: Composed(random_ltd(model, 6), layer_drop(model, 0.6)),
    "TokenBypass, importance": lambda model: token_bypass(model, 6, "2-4", special_ids=(4,)),
    "TokenBypass, random": lambda model: token_bypass(model, 6, "2-4", selector="random"),
    "TokenBypass, kept tokens among themselves": lambda model: token_bypass(
        model, 6, "2-4", selector="random", entry="kept"
    ),
}
CASES = [
    (variant, name)
    for variant, name in itertools.product(VARIANTS, METHODS)
    if name in ("dense", "random-LTD") or VARIANTS[variant] in (GPT2_LIKE, ROPE, LLAMA_LIKE)
]


def test_the_seeds_of_these_tests_open_and_close_every_gate() -> None:
    method = layer_drop(small_model(), 0.6)
    for layer in (1, 2, 3):
        assert {method.executes(0, microbatch, layer, 0.6) for microbatch in range(3)} == {True, False}


@pytest.mark.parametrize("documents", [False, True], ids=["", "separate documents"])
@pytest.mark.parametrize(("variant", "name"), CASES)
def test_loss_and_every_gradient_equal_the_plain_gpt(mesh: Mesh, variant: str, name: str, documents: bool) -> None:
    model = small_model(num_layers=5 if "TokenBypass" in name else 3, **VARIANTS[variant])
    method, config = METHODS[name](model), plain_config(model)
    plan, plain, learned_V = method.plan(0), PlainGPT(config), learned(method)
    assert (min(plan.kept_tokens) < SEQ_LENGTH) == (name not in ("dense", "layer dropping"))
    assert (min(plan.keep_probability) < 1.0) == ("layer dropping" in name)
    stepper = build_stepper(model, mesh, method, weights=megatron_tensors(plain.state_dict(), config))
    batches = random_batches(3, 2, SEQ_LENGTH, documents=documents)

    result = stepper.train(iter(batches), plan, 0, len(batches), learned_V)
    expected_loss, by_token = plain_step(plain, batches, method, learned_V)

    assert result.loss == pytest.approx(expected_loss, rel=1e-6)
    expected = megatron_tensors(gradients_of(plain), config)
    assert_gradients(stepper, expected)
    norm = torch.cat([gradient.flatten() for gradient in expected.values()]).norm().item()
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    assert (result.token_losses_2V is None) == (learned_V is None)
    if learned_V is not None:
        torch.testing.assert_close(result.token_losses_2V, by_token, rtol=1e-6, atol=1e-6)


def hugging_face_gpt2(config: PlainConfig) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**gpt2_config(config)))


def hugging_face_llama(config: PlainConfig) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**llama_config(config)))


@pytest.mark.parametrize(
    ("variant", "build", "translate"),
    [
        ({"openai_gelu": True}, hugging_face_gpt2, gpt2_tensors),
        (LLAMA_LIKE, hugging_face_llama, llama_tensors),
    ],
    ids=["GPT2LMHeadModel", "LlamaForCausalLM"],
)
def test_logits_and_gradients_equal_hugging_face(mesh: Mesh, variant: Any, build: Any, translate: Any) -> None:
    """Both models compute with the same leaf tensors, so that autograd gives both gradients for the same tensors."""
    model = small_model(**variant)
    config = plain_config(model)
    ours, theirs = build_core_model(model, mesh), build(config)
    (batch,) = random_batches(1, 3, SEQ_LENGTH)
    logits, gradients = [], []
    for network, names, inputs in (
        (ours, megatron_tensors, (batch.tokens_BS, batch.position_ids_BS, None)),
        (theirs, translate, (batch.tokens_BS,)),
    ):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in PlainGPT(config).state_dict().items()}
        output = functional_call(network, names(leaves, config), inputs, strict=False)
        logits_BSV = output if isinstance(output, Tensor) else output.logits
        F.cross_entropy(logits_BSV.flatten(0, 1), batch.labels_BS.flatten()).backward()
        logits.append(logits_BSV.detach())
        gradients.append({name: leaf.grad for name, leaf in leaves.items()})

    assert (logits[0] - logits[1]).abs().max() < 1e-5 * logits[1].abs().max()
    assert_gradients_close(*gradients, 1e-5)

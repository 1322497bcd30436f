"""Our GPT against a plain PyTorch GPT and against Hugging Face's models, all with the same weights."""

from __future__ import annotations

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
from megatron.ltd.routing.sampling import kept_indices
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
    layer_drop,
    load_weights,
    random_batches,
    random_ltd,
    small_model,
    sublayer_scales,
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


def plain_step(plain: PlainGPT, batches: Sequence[Batch], method: Method, blocks: int = 1) -> float:
    """Loss of a step over ``batches`` by the formula in training/objective.py; gradients are left in ``plain``.

    ``blocks`` is the size of the blocks that random-LTD keeps.
    """
    plan = method.plan(0)
    losses, masks = [], []
    for microbatch, batch in enumerate(batches):
        scale = sublayer_scales(method, microbatch)
        for row, sample_id in enumerate(batch.sample_ids_B):
            kept = {
                layer: kept_indices(7, sample_id[None], layer, SEQ_LENGTH, num_kept_tokens, block_size=blocks)[0]
                for layer, num_kept_tokens in enumerate(plan.kept_tokens, start=1)
                if num_kept_tokens < SEQ_LENGTH
            }
            document_S = None
            if batch.document_starts_BS is not None:
                ends = batch.tokens_BS[row] == 0
                document_S = ends.cumsum(0) - ends.long()
            logits_SV = plain(
                batch.tokens_BS[row],
                position_ids_S=batch.position_ids_BS[row],
                document_S=document_S,
                kept=kept,
                scale=scale,
            )
            losses.append(plain.token_losses(batch.labels_BS[row], logits_SV))
            masks.append(batch.loss_mask_BS[row])
    mask = torch.cat(masks)
    loss = (torch.cat(losses) * mask).sum() / mask.sum()
    loss.backward()
    return loss.item()


GPT2_LIKE: dict[str, Any] = {}
LLAMA_LIKE = {
    "position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True, "add_bias_linear": False,
    "tied_embeddings": False, "group_query_attention": True, "num_query_groups": 2,
}  # fmt: skip
VARIANTS = {
    "learned positions, LayerNorm, GELU, tied, biases": GPT2_LIKE,
    "tanh GELU": {"openai_gelu": True},
    "untied": {"tied_embeddings": False},
    "no biases": {"add_bias_linear": False},
    "RoPE": {"position_embedding_type": "rope"},
    "RMSNorm": {"normalization": "RMSNorm"},
    "SwiGLU with biases": {"swiglu": True},
    "one key-value head": {"group_query_attention": True, "num_query_groups": 1},
    "RoPE, RMSNorm, SwiGLU, two key-value heads, untied, no biases": LLAMA_LIKE,
}


METHODS: dict[str, Callable[[ModelConfig], Method]] = {
    "dense": dense,
    "random-LTD": lambda model: random_ltd(model, 6),
    "random-LTD in blocks of 4": lambda model: random_ltd(model, 8, ltd_block_size=4, ltd_granularity=4),
    "layer dropping": lambda model: layer_drop(model, 0.6),
    "random-LTD + layer dropping": lambda model: Composed(random_ltd(model, 6), layer_drop(model, 0.6)),
}


def test_the_seeds_of_these_tests_open_and_close_every_gate() -> None:
    method = layer_drop(small_model(), 0.6)
    for layer in (1, 2, 3):
        assert {method.executes(0, microbatch, layer, 0.6) for microbatch in range(3)} == {True, False}


@pytest.mark.parametrize("documents", [False, True], ids=["", "separate documents"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_every_gradient_equal_the_plain_gpt(mesh: Mesh, variant: str, name: str, documents: bool) -> None:
    model = small_model(**VARIANTS[variant])
    method = METHODS[name](model)
    plan = method.plan(0)
    assert (min(plan.kept_tokens) < SEQ_LENGTH) == ("random-LTD" in name)
    assert (min(plan.keep_probability) < 1.0) == ("layer dropping" in name)
    config = plain_config(model)
    plain = PlainGPT(config)
    stepper = build_stepper(model, mesh, method, weights=megatron_tensors(plain.state_dict(), config))
    batches = random_batches(3, 2, SEQ_LENGTH, documents=documents)

    result = stepper.train(iter(batches), method.plan(0), 0, len(batches))
    expected_loss = plain_step(plain, batches, method, blocks=4 if "blocks of 4" in name else 1)

    assert result.loss == pytest.approx(expected_loss, rel=1e-6)
    expected = megatron_tensors(gradients_of(plain), config)
    assert_gradients(stepper, expected)
    norm = torch.cat([gradient.flatten() for gradient in expected.values()]).norm().item()
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)


def test_edge_layers_can_drop_too(mesh: Mesh) -> None:
    """Every layer drops tokens, including the first, whose input is the output of the embedding."""
    model = small_model(position_embedding_type="rope")
    method = random_ltd(model, 5, ltd_layers="1-3", ltd_allow_edge_layers=True)
    config = plain_config(model)
    plain = PlainGPT(config)
    stepper = build_stepper(model, mesh, method, weights=megatron_tensors(plain.state_dict(), config))
    batches = random_batches(2, 2, SEQ_LENGTH)
    result = stepper.train(iter(batches), method.plan(0), 0, len(batches))
    assert result.loss == pytest.approx(plain_step(plain, batches, method), rel=1e-6)
    assert_gradients(stepper, megatron_tensors(gradients_of(plain), config))


def test_evaluation_ignores_the_plan(mesh: Mesh) -> None:
    """In evaluation, the loss is that of the plain dense model, although the current route drops tokens."""
    from megatron.ltd.layers.route import Route, use_route

    model = small_model()
    method, config = random_ltd(model, 4), plain_config(model)
    plain = PlainGPT(config)
    core = build_core_model(model, mesh)
    load_weights(core, megatron_tensors(plain.state_dict(), config))
    core.eval()
    (batch,) = random_batches(1, 2, SEQ_LENGTH)
    with torch.no_grad(), use_route(Route(method.plan(0), method, Samples(batch.sample_ids_B))):
        found = core(batch.tokens_BS, batch.position_ids_BS, None, labels=batch.labels_BS)
    for row in range(2):
        expected = plain.token_losses(batch.labels_BS[row], plain(batch.tokens_BS[row]))
        torch.testing.assert_close(found[row], expected.detach(), rtol=1e-5, atol=1e-5)


def hugging_face_gpt2(config: PlainConfig) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB_SIZE, n_positions=SEQ_LENGTH, n_embd=config.hidden_size, n_layer=config.num_layers,
            n_head=config.heads, n_inner=config.mlp_size, activation_function="gelu_new", layer_norm_epsilon=1e-5,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def hugging_face_llama(config: PlainConfig) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE, max_position_embeddings=SEQ_LENGTH, hidden_size=config.hidden_size,
            intermediate_size=config.mlp_size, num_hidden_layers=config.num_layers, num_attention_heads=config.heads,
            num_key_value_heads=config.groups, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=0,
            eos_token_id=0, pad_token_id=None,
        )
    )  # fmt: skip


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

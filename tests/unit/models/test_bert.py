"""Our BERT against a plain PyTorch BERT with the same weights, with padding, dropped tokens and dropped layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.ltd.data.bert_batch import BertBatch
from megatron.ltd.methods.base import Composed, Method, Samples
from megatron.ltd.models.bert import BertModel, build_bert_chunks, padding_mask
from megatron.ltd.models.encoder_config import BertModelConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.routing.gather_scatter import entry_mask, gather_mask
from megatron.ltd.training.objective import MaskedLM
from megatron.ltd.training.step import Stepper
from megatron.ltd.workloads.sizes import bert_sizes
from tests.reference.plain_bert import PlainBERT, megatron_bert_tensors
from tests.reference.plain_gpt import PlainConfig
from tests.support import (
    VOCAB_SIZE,
    assert_gradients,
    core_config,
    dense,
    gradients_of,
    kept_positions,
    layer_drop,
    learned,
    load_weights,
    random_ltd,
    small_model,
    step_gradients,
    stepper_of,
    sublayer_scales,
    token_bypass,
)

S = 16
SPECIAL = (1, 2)


def small_bert(**changes: Any) -> BertModelConfig:
    return BertModelConfig(**{**vars(small_model(num_layers=5)), "bert_binary_head": True, **changes})


METHODS: dict[str, Callable[[BertModelConfig], Method]] = {
    "dense": dense,
    "random-LTD": lambda model: random_ltd(model, 6),
    "TokenBypass, importance": lambda model: token_bypass(model, 7, "2-4", special_ids=SPECIAL),
    "TokenBypass, random": lambda model: token_bypass(model, 7, "2-4", selector="random"),
    "layer dropping": lambda model: layer_drop(model, 0.6),
    "random-LTD + layer dropping": lambda model: Composed(random_ltd(model, 6), layer_drop(model, 0.6)),
}


def masked_batches(num_batches: int) -> list[BertBatch]:
    """Batches of two samples of 5 to 16 real tokens, then padding (id 0); one sample has no masked tokens."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for number in range(num_batches):
        lengths = torch.tensor([[5 + 4 * number], [16 - 3 * number]])
        padding_BS = torch.arange(S) >= lengths
        tokens_BS = torch.randint(1, VOCAB_SIZE, (2, S), generator=generator).masked_fill(padding_BS, 0)
        hidden_BS = (torch.rand(2, S, generator=generator) < 0.4) & ~padding_BS
        hidden_BS[1] &= number != 1
        labels_BS = torch.randint(1, VOCAB_SIZE, (2, S), generator=generator)
        batches.append(
            BertBatch(
                tokens_BS=tokens_BS,
                types_BS=((torch.arange(S) >= 3) & ~padding_BS).long(),
                labels_BS=labels_BS.masked_fill(~hidden_BS, 0),
                loss_mask_BS=hidden_BS.float(),
                padding_BS=padding_BS,
                is_swapped_B=torch.tensor([number % 2, 1]),
                sample_ids_B=torch.arange(2 * number, 2 * number + 2) + 1000,
                whole_tokens_BS=tokens_BS,
            )
        )
    return batches


def build(model: BertModelConfig, mesh: Mesh) -> BertModel:
    (core,) = build_bert_chunks(BertModel, model, core_config(model, mesh), VOCAB_SIZE, mesh, seed=1)
    return core


def build_stepper(model: BertModelConfig, mesh: Mesh, method: Method, weights: dict[str, Tensor]) -> Stepper:
    core = build(model, mesh)
    load_weights(core, weights)
    return stepper_of(core, method, mesh, MaskedLM(sentence_order=model.bert_binary_head))


def plain_step(
    plain: PlainBERT, batches: Sequence[BertBatch], method: Method, learned_V: Tensor | None
) -> tuple[float, Tensor]:
    """Loss by ``MaskedLM``'s formula, and sums and counts of losses by masked id; gradients are left in ``plain``."""
    plan, total, number = method.plan(0), torch.zeros(()), 0.0
    by_token = torch.zeros(2, VOCAB_SIZE, dtype=torch.float64)
    for microbatch, batch in enumerate(batches):
        scale = sublayer_scales(method, microbatch)
        samples = Samples(batch.sample_ids_B, batch.tokens_BS, learned_V, batch.padding_BS)
        for row in range(2):
            real = int((~batch.padding_BS[row]).sum())
            kept = {layer: kept_K[kept_K < real] for layer, kept_K in kept_positions(method, samples, row).items()}
            logits_SV, order_2 = plain(
                batch.tokens_BS[row, :real],
                batch.types_BS[row, :real],
                kept=kept,
                entry_layers=plan.entry_layers,
                scale=scale,
            )
            hidden = batch.loss_mask_BS[row, :real].nonzero()[:, 0]
            labels = batch.labels_BS[row, hidden]
            losses = F.cross_entropy(logits_SV[hidden], labels, reduction="none")
            total = total + losses.sum()
            if order_2 is not None:
                total = total + len(hidden) * F.cross_entropy(order_2[None], batch.is_swapped_B[row : row + 1])
            number += len(hidden)
            for token, loss in zip(labels, losses, strict=True):
                by_token[:, token] += torch.tensor([float(loss.detach()), 1.0], dtype=torch.float64)
    (total / number).backward()
    return float(total.detach()) / number, by_token


LLAMA = {
    "position_embedding_type": "rope", "rotary_base": 500, "normalization": "RMSNorm", "swiglu": True,
    "tied_embeddings": False, "group_query_attention": True, "num_query_groups": 2,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "sentence order": {},
    "masked tokens alone": {"bert_binary_head": False},
    "RoPE of another base, RMSNorm, SwiGLU, two key-value heads, untied": LLAMA,
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_every_gradient_equal_the_plain_bert(mesh: Mesh, variant: str, name: str) -> None:
    model = small_bert(**VARIANTS[variant])
    method = METHODS[name](model)
    config = PlainConfig(
        num_layers=5, groups=model.query_groups, mlp_size=model.mlp_size, vocab_size=VOCAB_SIZE,
        learned_positions=model.learned_positions, rotary_base=float(model.rotary_base),
        rms_norm=model.normalization == "RMSNorm", swiglu=model.swiglu, tied=model.tied_embeddings,
    )  # fmt: skip
    plain, learned_V = PlainBERT(config, sentence_order=model.bert_binary_head), learned(method)
    stepper = build_stepper(model, mesh, method, megatron_bert_tensors(plain.state_dict(), config))
    batches = masked_batches(3)

    result = stepper.train(iter(batches), method.plan(0), 0, len(batches), learned_V)
    expected_loss, by_token = plain_step(plain, batches, method, learned_V)

    assert result.loss == pytest.approx(expected_loss, rel=1e-6)
    assert_gradients(stepper, megatron_bert_tensors(gradients_of(plain), config))
    if learned_V is not None:
        torch.testing.assert_close(result.token_losses_2V, by_token, rtol=1e-6, atol=1e-6)


def test_importance_keeps_special_tokens_first_and_padding_last() -> None:
    method, (batch, _, _) = METHODS["TokenBypass, importance"](small_bert()), masked_batches(3)
    tokens_BS = batch.tokens_BS.clone()
    tokens_BS[1, 9] = SPECIAL[1]
    importance_V = torch.zeros(VOCAB_SIZE, dtype=torch.float64)
    importance_V[0] = 100.0  # of padding's id, which the loss never meets
    (kept_BK,) = method.select(Samples(batch.sample_ids_B, tokens_BS, importance_V, batch.padding_BS), [3], 7)
    assert set(range(5)) <= set(kept_BK[0].tolist()), "five real tokens before any padding"
    assert 9 in kept_BK[1]


def test_no_row_of_a_mask_is_empty_and_real_tokens_never_see_padding() -> None:
    padding_BS = torch.arange(8) >= torch.tensor([[3], [8], [0]])
    mask = padding_mask(padding_BS)
    kept_BK = torch.tensor([[1, 4, 6], [0, 3, 7], [2, 5, 6]])
    for found, rows_BQ, columns_BT in (
        (mask, torch.arange(8).expand(3, 8), torch.arange(8).expand(3, 8)),
        (gather_mask(mask, kept_BK), kept_BK, kept_BK),
        (entry_mask(mask, kept_BK, kept_BK, 8), kept_BK, torch.arange(8).expand(3, 8)),
    ):
        assert found is not None and not found.all(dim=-1).any()
        for sample in range(3):
            for q, row in enumerate(rows_BQ[sample].tolist()):
                for k, column in enumerate(columns_BT[sample].tolist()):
                    assert bool(found[sample, 0, q, k]) == (bool(padding_BS[sample, column]) and row != column)


def test_the_content_of_padding_has_no_influence(mesh: Mesh) -> None:
    """With other token ids at padding, the loss and all gradients are bit-equal."""
    model = small_bert()
    method = METHODS["random-LTD"](model)
    plain = PlainBERT(PlainConfig(num_layers=5, vocab_size=VOCAB_SIZE, learned_positions=S), sentence_order=True)
    weights = megatron_bert_tensors(plain.state_dict(), plain.config)
    results = []
    for padding_id in (0, 9):
        batch = masked_batches(1)[0]
        batch.tokens_BS.masked_fill_(batch.padding_BS, padding_id)
        stepper = build_stepper(model, mesh, method, weights)
        results.append((stepper.train(iter([batch]), method.plan(0), 0, 1).loss, step_gradients(stepper)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[1][1][name], gradient) for name, gradient in results[0][1].items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_exactly(mesh: Mesh, variant: str) -> None:
    model = small_bert(**VARIANTS[variant])
    counted = bert_sizes(model, VOCAB_SIZE).num_parameters
    assert counted == sum(parameter.numel() for parameter in build(model, mesh).parameters())

"""GPT with TokenBypass against the plain PyTorch GPT: loss, every gradient, and the losses by token id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron.ltd.data.batch import Batch
from megatron.ltd.methods.base import ModelFacts, Samples
from megatron.ltd.methods.token_bypass.method import TokenBypass, TokenBypassConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.routing.sampling import kept_indices
from tests.reference.names import megatron_tensors
from tests.reference.plain_gpt import PlainConfig, PlainGPT
from tests.support import (
    VOCAB_SIZE,
    assert_gradients,
    build_stepper,
    gradients_of,
    learned,
    random_batches,
    small_model,
)
from tests.unit.models.test_gpt import LLAMA_LIKE, plain_config

S, K, SEED = 16, 6, 7
SPAN = (2, 3, 4)  # of five layers
SPECIAL = 4


def bypass(**flags: Any) -> TokenBypass:
    flags = {f"token_bypass_{name}": value for name, value in flags.items()}
    config = TokenBypassConfig(token_bypass=True, token_bypass_kept_tokens=K, token_bypass_layers="2-4", **flags)
    return TokenBypass.build(config, ModelFacts(5, S, SEED))


def kept_by_hand(method: TokenBypass, batch: Batch, row: int, importance_V: Tensor | None) -> Tensor:
    """The positions of one sample that the span keeps, ascending."""
    if importance_V is None:
        return kept_indices(SEED, batch.sample_ids_B[row : row + 1], SPAN[0], S, K)[0]
    value = {
        i: torch.inf if int(token) == SPECIAL else float(importance_V[token])
        for i, token in enumerate(batch.tokens_BS[row])
    }
    sample = Samples(batch.sample_ids_B[row : row + 1], batch.tokens_BS[row : row + 1], importance_V)
    chosen = method.select(sample, [3], K)[0, 0]
    bound = sorted(value.values(), reverse=True)[K - 1]  # ties at the bound are the hash's affair
    assert {i for i in value if value[i] > bound} <= set(chosen.tolist()) <= {i for i in value if value[i] >= bound}
    return chosen


def plain_step(
    plain: PlainGPT, batches: Sequence[Batch], method: TokenBypass, importance_V: Tensor | None
) -> tuple[float, Tensor]:
    """Loss of a step, and sums and counts of losses by token id; gradients are left in ``plain``."""
    losses, weights = [], []
    by_token = torch.zeros(2, VOCAB_SIZE, dtype=torch.float64)
    for batch in batches:
        for row in range(len(batch.sample_ids_B)):
            kept_K = kept_by_hand(method, batch, row, importance_V)
            document_S = None
            if batch.document_starts_BS is not None:
                ends = batch.tokens_BS[row] == 0
                document_S = ends.cumsum(0) - ends.long()
            logits_SV = plain(
                batch.tokens_BS[row],
                position_ids_S=batch.position_ids_BS[row],
                document_S=document_S,
                kept=dict.fromkeys(SPAN, kept_K),
                entry_layers=(SPAN[0],) if method.config.token_bypass_entry == "all" else (),
            )
            losses.append(plain.token_losses(batch.labels_BS[row], logits_SV))
            weights.append(batch.loss_mask_BS[row])
            for token, loss, weight in zip(batch.tokens_BS[row], losses[-1], weights[-1], strict=True):
                by_token[:, token] += torch.stack([loss.detach() * weight, weight])
    mask = torch.cat(weights)
    loss = (torch.cat(losses) * mask).sum() / mask.sum()
    loss.backward()
    return loss.item(), by_token


VARIANTS: dict[str, dict[str, Any]] = {
    "learned positions": {},
    "RoPE": {"position_embedding_type": "rope"},
    "RoPE, RMSNorm, SwiGLU, two key-value heads, untied, no biases": LLAMA_LIKE,
}
FLAGS: dict[str, dict[str, Any]] = {
    "importance": {"special_ids": (SPECIAL,)},
    "random": {"selector": "random"},
    "random, kept tokens among themselves": {"selector": "random", "entry": "kept"},
}


@pytest.mark.parametrize("documents", [False, True], ids=["", "separate documents"])
@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_every_gradient_equal_the_plain_gpt(mesh: Mesh, variant: str, flags: str, documents: bool) -> None:
    model, method = small_model(num_layers=5, **VARIANTS[variant]), bypass(**FLAGS[flags])
    config: PlainConfig = plain_config(model)
    plain, importance_V = PlainGPT(config), learned(method)
    stepper = build_stepper(model, mesh, method, weights=megatron_tensors(plain.state_dict(), config))
    batches = random_batches(3, 2, S, documents=documents)

    result = stepper.train(iter(batches), method.plan(0), 0, len(batches), importance_V)
    expected_loss, by_token = plain_step(plain, batches, method, importance_V)

    assert result.loss == pytest.approx(expected_loss, rel=1e-6)
    assert_gradients(stepper, megatron_tensors(gradients_of(plain), config))
    if importance_V is None:
        assert result.token_losses_2V is None
    else:
        torch.testing.assert_close(result.token_losses_2V, by_token, rtol=1e-6, atol=1e-6)


def test_the_tokens_that_the_entry_layer_reads_matter(mesh: Mesh) -> None:
    """The two values of ``entry`` give different losses, so that the comparison above can tell them apart."""
    batches, losses = random_batches(1, 2, S), []
    for entry in ("all", "kept"):
        method = bypass(selector="random", entry=entry)
        losses.append(build_stepper(small_model(num_layers=5), mesh, method).train(iter(batches), method.plan(0), 0, 1))
    assert losses[0].loss != losses[1].loss

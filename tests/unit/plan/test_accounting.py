"""FLOPs against torch's own counter on a plain layer, and against published savings."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from megatron.ltd.models.encoder_config import ViTConfig
from megatron.ltd.plan.accounting import (
    ModelShape,
    dense_step_flops,
    head_flops,
    layer_flops,
    layer_tokens,
    step_flops,
)
from megatron.ltd.schedules.step_plan import StepPlan

SMALL = ModelShape(
    num_layers=12, hidden_size=384, ffn_hidden_size=1536, num_attention_heads=6, num_query_groups=6, kv_channels=64,
    gated_mlp=False, vocab_size=8192, seq_length=512,
)  # fmt: skip


def keeping(*kept_tokens: int, seq_length: int = 512) -> StepPlan:
    """The plan of a step in which every layer runs, on this many tokens each."""
    return StepPlan(seq_length, kept_tokens, (1.0,) * len(kept_tokens))


class PlainLayer(nn.Module):
    """A transformer layer of plain matrix products, without norms: full attention, grouped queries, gated MLP."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
        queries = shape.num_attention_heads * shape.kv_channels
        keys = shape.num_query_groups * shape.kv_channels
        self.project = nn.ModuleList([nn.Linear(hidden, size, bias=False) for size in (queries, keys, keys)])
        self.output = nn.Linear(queries, hidden, bias=False)
        self.up = nn.ModuleList([nn.Linear(hidden, ffn, bias=False) for _ in range(1 + shape.gated_mlp)])
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x_BNH: Tensor) -> Tensor:
        shape, (batch, tokens, _) = self.shape, x_BNH.shape
        queries, keys, values = (
            linear(x_BNH).view(batch, tokens, -1, shape.kv_channels).transpose(1, 2) for linear in self.project
        )
        repeats = shape.num_attention_heads // shape.num_query_groups
        keys, values = keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
        weights = (queries @ keys.transpose(2, 3)).softmax(-1)
        mixed = (weights @ values).transpose(1, 2).reshape(batch, tokens, -1)
        x_BNH = x_BNH + self.output(mixed)
        gate = self.up[1](x_BNH) if shape.gated_mlp else 1.0
        return x_BNH + self.down(self.up[0](x_BNH).relu() * gate)


@pytest.mark.parametrize("gated_mlp", [False, True])
@pytest.mark.parametrize("num_query_groups", [4, 2])
def test_flops_equal_torchs_count(gated_mlp: bool, num_query_groups: int) -> None:
    shape = ModelShape(2, 48, 80, 4, num_query_groups, 16, gated_mlp, 96, 24, causal=False)
    layers = [PlainLayer(shape) for _ in range(shape.num_layers)]
    head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
    kept_tokens_per_layer, num_samples = (24, 10), 3
    x_BNH = torch.randn(num_samples, 24, shape.hidden_size, requires_grad=True)
    forward = FlopCounterMode(display=False)
    whole = FlopCounterMode(display=False)
    with whole:
        with forward:
            x_BNH = layers[0](x_BNH)
            x_BNH = torch.cat([layers[1](x_BNH[:, :10]), x_BNH[:, 10:]], dim=1)
            logits = head(x_BNH)
        logits.sum().backward()
    layers_flops = layer_flops(shape, 24) + layer_flops(shape, 10)
    assert forward.get_total_flops() == num_samples * (layers_flops + head_flops(shape))
    assert whole.get_total_flops() == step_flops(shape, keeping(*kept_tokens_per_layer, seq_length=24), num_samples)


def test_flops_of_berts_head_equal_torchs_count() -> None:
    shape = ModelShape(1, 48, 80, 4, 4, 12, False, 96, 24, causal=False, head_layers=1)
    layer, dense, head = PlainLayer(shape), nn.Linear(48, 48), nn.Linear(48, 96)
    counter = FlopCounterMode(display=False)
    with counter:
        head(dense(layer(torch.randn(3, 24, 48, requires_grad=True))).tanh()).sum().backward()
    assert counter.get_total_flops() == dense_step_flops(shape, 3)


def test_causal_attention_counts_the_pairs_a_mask_leaves() -> None:
    full = dataclasses.replace(SMALL, causal=False)
    for tokens in (1, 2, 7, 512):
        hidden_pairs = int(torch.ones(tokens, tokens).triu(1).sum())
        assert layer_flops(full, tokens) - layer_flops(SMALL, tokens) == 4 * hidden_pairs * 6 * 64


@pytest.mark.parametrize(("kept_tokens", "saving"), [(256, 0.386), (128, 0.565)])
def test_savings_worked_out_elsewhere(kept_tokens: int, saving: float) -> None:
    kept_tokens_per_layer = [512, *[kept_tokens] * 10, 512]
    assert 1 - step_flops(SMALL, keeping(*kept_tokens_per_layer), 4) / dense_step_flops(SMALL, 4) == pytest.approx(
        saving, abs=5e-4
    )


def test_a_skipped_layer_costs_nothing() -> None:
    assert layer_flops(SMALL, 0) == 0
    assert step_flops(SMALL, keeping(*[0] * 12), 2) == 3 * 2 * head_flops(SMALL)
    never = StepPlan(512, (512,) * 12, (0.0,) * 12)
    assert step_flops(SMALL, never, 2) == 3 * 2 * head_flops(SMALL) and layer_tokens(never, 2) == 0


def test_a_layer_counts_in_proportion_to_its_keep_probability() -> None:
    plan = StepPlan(512, (512, 256, *[512] * 10), (1.0, 0.5, 0.25, *[1.0] * 9))
    expected = 10 * layer_flops(SMALL, 512) + layer_flops(SMALL, 256) / 2 + layer_flops(SMALL, 512) / 4
    assert step_flops(SMALL, plan, 8) == pytest.approx(3 * 8 * (expected + head_flops(SMALL)), rel=1e-12)
    assert layer_tokens(plan, 8) == 8 * (10 * 512 + 128 + 128)
    assert layer_tokens(StepPlan(512, (512,) * 3, (0.3, 0.3, 0.3)), 1) == 3 * 154  # rounded to whole tokens per layer


def test_flops_come_from_each_layers_tokens_and_not_from_the_mean() -> None:
    uneven, even = keeping(512, *[128] * 10, 512), keeping(*[192] * 12)
    assert layer_tokens(uneven, 4) == layer_tokens(even, 4)
    assert step_flops(SMALL, uneven, 4) > step_flops(SMALL, even, 4)


def test_vit_flops_equal_torchs_count_of_hugging_faces_model() -> None:
    """Torch counts every product of one image's forward and backward pass; the pixels need no gradient."""
    from transformers import ViTConfig as TheirConfig
    from transformers import ViTForImageClassification

    ours = ViTConfig(
        num_layers=3, hidden_size=48, num_attention_heads=4, img_h=24, img_w=24, patch_dim=4, num_channels=2
    )
    theirs = ViTForImageClassification(
        TheirConfig(
            hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=24,
            patch_size=4, num_channels=2, num_labels=7, attn_implementation="eager",
        )
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        theirs(torch.randn(1, 2, 24, 24)).logits.sum().backward()
    assert ours.seq_length == 37
    assert dense_step_flops(ours.shape(7), 1) == counter.get_total_flops()

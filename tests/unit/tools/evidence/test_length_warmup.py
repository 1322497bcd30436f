"""Sequence-length warm-up, the rival of all methods: its plan, its FLOPs and the samples that it cuts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from evidence import length_warmup
from evidence.length_warmup import LengthWarmup, LengthWarmupConfig, cut
from evidence.plan import Run, read_setting

from megatron.ltd.methods import METHODS
from megatron.ltd.methods.base import ModelFacts
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.accounting import dense_step_flops, step_flops
from megatron.ltd.schedules.step_plan import StepPlan
from tests.support import assert_gradients, build_stepper, random_batches, small_model, step_gradients


def test_a_short_sample_trains_as_a_whole_one_whose_later_tokens_have_no_loss(mesh: Mesh) -> None:
    model = small_model(seq_length=16)
    batches = random_batches(2, 2, 16)
    masked = [replace(batch, loss_mask_BS=batch.loss_mask_BS.clone()) for batch in batches]
    for batch in masked:
        batch.loss_mask_BS[:, 6:] = 0
    whole, shorter = build_stepper(model, mesh), build_stepper(model, mesh)
    expected = whole.train(iter(masked), StepPlan.dense(16, model.num_layers), 0, 2)
    found = shorter.train((cut(batch, 6) for batch in batches), StepPlan.dense(6, model.num_layers), 0, 2)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert_gradients(shorter, step_gradients(whole))


def test_lengths_grow_to_the_whole_sample_and_every_layer_computes_them() -> None:
    config = LengthWarmupConfig(length_warmup_from=64, length_warmup_steps=600)
    method = LengthWarmup.build(config, ModelFacts(num_layers=6, seq_length=256, seed=1))
    assert [method.plan(step) for step in (0, 300, 600)] == [StepPlan.dense(n, 6) for n in (64, 160, 256)]
    for first, steps, plan in method.stages(900):
        assert plan == method.plan(first) == method.plan(first + steps - 1)


def test_flops_are_those_of_a_dense_model_with_the_length_of_the_step() -> None:
    setting = read_setting("s256")
    run = Run("D", setting, "length-warmup", 900, 3e-3, 1)
    shape, (first, *_) = run.plan.shape, run.plan.stages
    shorter = replace(shape, seq_length=64)
    assert first.plan.seq_length == 64
    assert step_flops(shape, first.plan, 8) == dense_step_flops(shorter, 8) < dense_step_flops(shape, 8) / 4
    assert run.script == length_warmup.SCRIPT
    assert Run("D", setting, "dense", 900, 3e-3, 1).script == "pretrain_gpt_ltd.py"


def test_it_is_no_method_of_the_product() -> None:
    with length_warmup.installed():
        assert "length_warmup" in METHODS
    assert "length_warmup" not in METHODS

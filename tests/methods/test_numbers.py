"""The metrics of a run are right, and recompute, accumulation and precision do not change what it computes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from torch import Tensor

from megatron.ltd.data.batch import Batch
from megatron.ltd.layers.route import Route, use_route
from megatron.ltd.methods.base import Method, Samples
from megatron.ltd.models.execution_config import RecomputeConfig
from megatron.ltd.parallel.mesh import Mesh
from tests.methods.cases import CASES, MethodCase, on_every_model
from tests.support import (
    build_core_model,
    build_stepper,
    learned,
    pretrain,
    random_batches,
    relative_error,
    small_model,
    step_gradients,
)

MODEL = {"num_layers": 4, "seq_length": 32}


@on_every_model
def test_logged_layer_tokens_add_up_to_the_plan(flags: list[str], case: MethodCase, folder: Path) -> None:
    ramp = ("--rampup-batch-size", "4", "2", "24", "--global-batch-size", "8")
    run = pretrain([*flags, *case.dropping, *ramp], folder)
    batches, consumed = run.column("batch_size"), run.column("consumed_layer_tokens")
    assert run.column("consumed_samples") == [sum(batches[: n + 1]) for n in range(len(batches))]
    steps = [after - before for before, after in zip([0, *consumed], consumed, strict=False)]
    dense = [batch * 4 * 32 for batch in batches]
    assert all(0 < found < whole for found, whole in zip(steps[:6], dense[:6], strict=True))
    assert steps[10:] == dense[10:]
    saved = [
        whole - found for found, whole in zip(run.column("step_flops"), run.column("dense_step_flops"), strict=True)
    ]
    assert all(saving > 0 for saving in saved[:6]) and saved[10:] == [0, 0]


RECOMPUTE = {
    "none": None,
    "full, uniform, 1 layer": RecomputeConfig("full", "uniform", 1),
    "full, uniform, 2 layers": RecomputeConfig("full", "uniform", 2),
    "full, block, 3 layers": RecomputeConfig("full", "block", 3),
    "selective, attention": RecomputeConfig("selective"),
    "selective, mlp": RecomputeConfig("selective", recompute_modules=("mlp",)),
    "selective, mlp and attention": RecomputeConfig("selective", recompute_modules=("mlp", "core_attn")),
}


def test_recompute_changes_no_gradient(mesh: Mesh, method: Method) -> None:
    """A step over three microbatches with document masks is bit-equal with and without recompute, dropout included."""
    model = small_model(**MODEL, attention_dropout=0.1, hidden_dropout=0.1)
    batches, steps = random_batches(3, 2, 32, documents=True), {}
    for how, recompute in RECOMPUTE.items():
        stepper = build_stepper(model, mesh, method, recompute=recompute)
        loss = stepper.train(iter(batches), method.plan(0), 0, 3, learned(method)).loss
        steps[how] = {"loss": torch.tensor(loss), **step_gradients(stepper)}
        assert [name for name, value in steps["none"].items() if not torch.equal(steps[how][name], value)] == [], how


def test_recompute_uses_the_route_of_the_layers_own_microbatch(mesh: Mesh, method: Method) -> None:
    """As in a pipeline, both forward passes run first under different plans, then the backward passes under a third."""
    model = small_model(**MODEL)
    first, second, third = random_batches(3, 2, 32)
    routes = [
        Route(method.plan(step), method, Samples(batch.sample_ids_B, batch.whole_tokens_BS, learned(method)), step)
        for step, batch in ((0, first), (5, second), (3, third))
    ]
    assert routes[0].plan != routes[1].plan
    gradients: dict[str, list[Tensor]] = {}
    for how, recompute in RECOMPUTE.items():
        core = build_core_model(model, mesh, recompute)
        losses = []
        for route, batch in zip(routes[:2], (first, second), strict=True):
            with use_route(route):
                losses.append(core(batch.tokens_BS, batch.position_ids_BS, None, labels=batch.labels_BS).mean())
        with use_route(routes[2]):
            losses[0].backward()
            losses[1].backward()
        gradients[how] = [parameter.grad for parameter in core.parameters()]
        assert all(map(torch.equal, gradients[how], gradients["none"])), how


@pytest.mark.parametrize("method", [name for name in CASES if not CASES[name].per_microbatch], indirect=True)
def test_accumulated_microbatches_equal_one_batch(mesh: Mesh, method: Method) -> None:
    """Eight samples with different loss masks, as 8 x 1, 4 x 2 and 1 x 8, keep the same tokens and have the same mean
    loss.
    """
    model = small_model(**MODEL)
    samples = random_batches(8, 1, 32)
    results: list[tuple[Any, dict[str, Tensor]]] = []
    for size in (8, 2, 1):
        batches = [
            Batch(**{name: torch.cat([getattr(sample, name) for sample in samples[start : start + size]])
                     for name in ("tokens_BS", "labels_BS", "loss_mask_BS", "position_ids_BS", "sample_ids_B",
                                  "whole_tokens_BS")})
            for start in range(0, 8, size)
        ]  # fmt: skip
        stepper = build_stepper(model, mesh, method, micro_batch_size=size)
        result = stepper.train(iter(batches), method.plan(0), 0, len(batches), learned(method))
        results.append((result, step_gradients(stepper)))
    (whole, expected), *others = results
    for result, gradients in others:
        assert result.loss == pytest.approx(whole.loss, rel=1e-6)
        assert result.grad_norm == pytest.approx(whole.grad_norm, rel=1e-6)
        assert max(relative_error(gradients[name], expected[name]) for name in expected) < 1e-6


@pytest.mark.parametrize("flags", ["BERT"], indirect=True)
def test_bert_learns_with_every_method(
    flags: list[str], case: MethodCase, folder: Path, sentences: tuple[str, str]
) -> None:
    """The words are random, so only their frequencies can be learned, and nothing about the order of sentences."""
    tokens = IndexedDataset(sentences[0])
    share = numpy.bincount(numpy.concatenate([tokens[n] for n in range(len(tokens))])) / sum(tokens.sequence_lengths)
    least = -sum(p * math.log(p) for p in share if p) + math.log(2)
    more = "--train-iters 60 --micro-batch-size 16 --global-batch-size 16 --eval-iters 0 --lr 1e-2".split()
    losses = pretrain([*flags, *case.dropping, *more], folder).column("loss")
    assert sum(losses[:5]) / 5 > least + 0.3
    assert sum(losses[-10:]) / 10 < least + 0.1


def test_half_precision_follows_fp32(flags: list[str], case: MethodCase, folder: Path) -> None:
    """Over 40 steps without dropout, training in every precision learns and ends close to fp32."""
    flags = [
        *flags,
        *case.dropping,
        *"--train-iters 40 --attention-dropout 0 --hidden-dropout 0 --eval-iters 0".split(),
    ]
    half = {"fp32": (), "bf16": ("--bf16",), "fp16": ("--fp16", "--initial-loss-scale", "256")}
    losses = {name: pretrain([*flags, *precision], folder / name).column("loss") for name, precision in half.items()}
    for name, curve in losses.items():
        assert sum(curve[-5:]) / 5 < 0.7 * curve[0], name
        assert curve[-1] == pytest.approx(losses["fp32"][-1], rel=0.02), name
    assert losses["bf16"] != losses["fp32"] != losses["fp16"] != losses["bf16"]

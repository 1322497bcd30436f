"""The cost of a method besides the layers: operations for each routed layer and microbatch, none of which waits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from megatron.ltd.methods.base import Composed, Method, Samples
from megatron.ltd.models.execution_config import RecomputeConfig
from megatron.ltd.parallel.mesh import Mesh
from tests.support import (
    build_stepper,
    dense,
    layer_drop,
    learned,
    random_batches,
    random_ltd,
    small_model,
    step_gradients,
)
from tests.support_dispatch import Operations

MODEL = {"num_layers": 4, "seq_length": 32}


def operations_of(
    mesh: Mesh, method: Method, microbatches: int, recompute: RecomputeConfig | None = None, **changes: Any
) -> Operations:
    """The operations of the second step, in which the optimizer has its state."""
    model = small_model(**MODEL | changes)
    stepper = build_stepper(model, mesh, method, recompute=recompute)
    batches = random_batches(microbatches, 2, model.seq_length)

    def step() -> None:
        stepper.train(iter(batches), method.plan(0), 0, microbatches, learned(method))

    step()
    with Operations() as operations:
        step()
    return operations


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off the check of positions, which reads values and runs on the CPU only."""
    monkeypatch.setattr(Method, "check_positions", lambda *_: None)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("position_embedding_type", ["learned_absolute", "rope"])
def test_no_microbatch_waits_for_the_device(mesh: Mesh, method: Method, position_embedding_type: str) -> None:
    """A step reads values only at its end, however many microbatches it has."""
    few, many = (
        operations_of(mesh, method, microbatches, position_embedding_type=position_embedding_type)
        for microbatches in (2, 4)
    )
    assert few.names.total() < many.names.total()
    assert few.waiting["_local_scalar_dense"] > 0, "the loss of the step is read"
    # Megatron-Core's schedule makes one number for each microbatch, without a device: it stays on the host.
    assert many.waiting - few.waiting == {"lift_fresh": 2}


@pytest.mark.parametrize("recompute", [None, RecomputeConfig("full", "uniform", 1)], ids=["", "recompute"])
def test_a_method_selects_once_a_microbatch(
    mesh: Mesh, method: Method, recompute: RecomputeConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    select = type(method).select

    def counted(self: Method, samples: Samples, layer_numbers: Any, kept_tokens: int) -> torch.Tensor:
        asked.append(tuple(layer_numbers))
        return select(self, samples, layer_numbers, kept_tokens)

    monkeypatch.setattr(type(method), "select", counted)
    stepper = build_stepper(small_model(**MODEL), mesh, method, recompute=recompute)
    stepper.train(iter(random_batches(3, 2, 32)), method.plan(0), 0, 3, learned(method))
    drops_tokens = method.plan(0).min_kept_tokens < 32
    assert asked == [(2, 3)] * 3 * drops_tokens


def test_a_routed_layer_adds_four_operations_and_no_copy(mesh: Mesh) -> None:
    """Rows of all tokens are read and written, forward and backward; everything else is the dense layer's."""

    def of_one_layer(method: Any) -> tuple[Counter[str], int]:
        few, many = (
            operations_of(mesh, method(small_model(num_layers=n)), 1, num_layers=n, seq_length=16) for n in (4, 6)
        )
        return many.names - few.names, many.copied[16, 2, 24] - few.copied[16, 2, 24]

    (dropping, copies), (computing, _) = of_one_layer(lambda model: random_ltd(model, 5)), of_one_layer(dense)
    assert dropping - computing == {"index_select": 4, "index_copy_": 4}, "of two layers"
    assert not computing - dropping and copies == 0


@pytest.mark.usefixtures("unchecked")
def test_a_microbatch_adds_a_draw_and_four_operations_for_each_routed_layer(mesh: Mesh) -> None:
    """Over the dense model: 49 for the draw of all layers, 4 for what the layers share, and 4 for each."""

    def of_one_microbatch(method: Any) -> int:
        few, many = (operations_of(mesh, method(small_model(**MODEL)), number).names.total() for number in (1, 2))
        return many - few

    added = of_one_microbatch(lambda model: random_ltd(model, 5)) - of_one_microbatch(dense)
    assert added <= 49 + 4 + 2 * 4


@pytest.mark.parametrize(
    "recompute",
    [None, *(RecomputeConfig("full", *how) for how in (("uniform", 1), ("uniform", 2), ("block", 2)))],
    ids=lambda recompute: recompute and f"{recompute.recompute_method} {recompute.recompute_num_layers}",
)
def test_layers_that_are_skipped_between_routed_ones(mesh: Mesh, recompute: RecomputeConfig | None) -> None:
    """What a skipped layer passes on is overwritten by the next one; nothing that is recomputed may see that."""
    model = small_model(num_layers=8, hidden_dropout=0.1)
    method = Composed(random_ltd(model, 5), layer_drop(model, 0.5, seed=3))
    computed = ["".join("01"[method.executes(0, batch, layer, 0.5)] for layer in range(2, 8)) for batch in range(4)]
    assert any("101" in layers for layers in computed) and any("1001" in layers for layers in computed)
    gradients = []
    for config in (None, recompute):
        stepper = build_stepper(model, mesh, method, recompute=config)
        stepper.train(iter(random_batches(4, 2, 16)), method.plan(0), 0, 4)
        gradients.append(step_gradients(stepper))
    expected, found = gradients
    assert all(torch.equal(found[name], expected[name]) for name in expected)

"""Whole models with Triton's kernels, interpreted: the bits of torch's, and what they save."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.methods.base import Composed, Method
from megatron.ltd.models.execution_config import RecomputeConfig
from megatron.ltd.parallel.mesh import Mesh
from tests.methods.cases import CASES, DROPPING_TOKENS
from tests.support import (
    assert_gradients_close,
    build_stepper,
    dense,
    layer_drop,
    learned,
    pretrain,
    random_batches,
    random_ltd,
    small_model,
    step_gradients,
)
from tests.support_dispatch import Operations
from tests.support_triton import launches, on_triton

pytestmark = pytest.mark.usefixtures("triton_on_cpu")

MODEL = {"num_layers": 4, "seq_length": 32}
RECOMPUTE = {
    "": None,
    "full": RecomputeConfig("full", "uniform", 2),
    "mlp": RecomputeConfig("selective", recompute_modules=("mlp",)),
}
_NUMBERS = {"index_select": 2, "index_copy_": 2, "add": 3, "_write_sums": 3}
"""That an operation reads and writes for each one that it computes"""


def gradients(mesh: Mesh, method: Method, recompute: str = "", **changes: Any) -> dict[str, torch.Tensor]:
    stepper = build_stepper(small_model(**MODEL | changes), mesh, method, recompute=RECOMPUTE[recompute])
    stepper.train(iter(random_batches(2, 2, 32, documents=True)), method.plan(0), 0, 2, learned(method))
    return step_gradients(stepper)


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("method", DROPPING_TOKENS, indirect=True)
def test_gradients_are_torchs(mesh: Mesh, method: Method, recompute: str) -> None:
    expected = gradients(mesh, method)
    with launches() as launched:
        found = gradients(mesh, on_triton(method), recompute)
    assert launched["_write_sums"] > 0 and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("changes", "fewer"),
    [
        ({"hidden_dropout": 0.1, "position_embedding_type": "rope"}, 0),
        ({"hidden_dropout": 0.1, "bias_dropout_fusion": True}, 2),  # draws dropout where it adds the residual
        ({"bias_dropout_fusion": True, "add_bias_linear": False, "swiglu": True}, 0),
    ],
)
def test_other_layers(mesh: Mesh, changes: dict[str, Any], fewer: int) -> None:
    """Each of two microbatches has two routed layers, which write forward and backward."""
    method = random_ltd(small_model(**MODEL), 10)
    expected = gradients(mesh, method, **changes)
    with launches() as launched:
        found = gradients(mesh, on_triton(method), **changes)
    assert launched == {"_draw": 2, "_write_sums": 8 - 2 * fewer}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_norm_of_several_operations(mesh: Mesh) -> None:
    """Each of them has a gradient for the layer's input, and torch adds these up in another order."""
    method = random_ltd(small_model(**MODEL), 10)
    expected, found = (gradients(mesh, kind, normalization="RMSNorm") for kind in (method, on_triton(method)))
    assert_gradients_close(found, expected, 1e-6)


def test_layers_that_are_scaled_keep_torchs_sum(mesh: Mesh) -> None:
    model = small_model(**MODEL)
    method = Composed(random_ltd(model, 10), layer_drop(model, 0.5))
    expected, found = gradients(mesh, method), gradients(mesh, on_triton(method))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_half_precision(dataset: str, flags: list[str], tmp_path: Path) -> None:
    """Whole runs in bfloat16 log the same losses and norms."""
    runs = []
    for kernels in ("torch", "triton"):
        more = (*CASES["random_ltd"].dropping, "--bf16", "--hidden-dropout", 0, "--ltd-kernels", kernels)
        runs.append(pretrain([*flags, *map(str, more)], tmp_path / kernels))
    for name in ("loss", "grad_norm", "kept_tokens"):
        assert runs[0].column(name) == runs[1].column(name)


@pytest.mark.parametrize("blocks", [1, 2])
def test_launches_of_a_routed_layer_and_of_a_draw(mesh: Mesh, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's kernels add four launches a layer and microbatch to the dense model's, and 48 or 51 for the draw.

    Triton's add two, and one for the draw: those that write take the place of two additions. Numbers are read and
    written for each one of a kept token: 14 with these additions, and 10.
    """
    monkeypatch.setattr(Method, "check_positions", lambda *_: None)  # runs on a CPU only

    def operations(method: Any, num_layers: int) -> Counter[str]:
        model = small_model(num_layers=num_layers, add_bias_linear=False)
        stepper = build_stepper(model, mesh, method(model))
        batches = random_batches(1, 2, model.seq_length)
        stepper.train(iter(batches), method(model).plan(0), 0, 1)
        with Operations() as found, launches(found) as launched:
            stepper.train(iter(batches), method(model).plan(0), 0, 1)
        memory = {name: found.names[name] for name in ("empty", "new_empty")}  # which is no launch
        return found.names + launched - Counter(memory)

    def routed(model: Any) -> Method:
        return random_ltd(model, 4, ltd_block_size=blocks, ltd_granularity=blocks)

    def added(method: Any) -> tuple[Counter[str], int]:
        """Operations of a layer besides the dense ones, and of a microbatch besides those of its layers."""
        of_method, of_dense = ([operations(kind, layers) for layers in (4, 5)] for kind in (method, dense))
        a_layer = of_method[1].copy()
        a_layer.subtract(of_method[0])
        a_layer.subtract(of_dense[1])
        a_layer.update(of_dense[0])
        total = of_method[0].total() - of_dense[0].total() - 2 * a_layer.total()
        return Counter({name: count for name, count in a_layer.items() if count}), total

    by_torch, by_triton = added(routed), added(lambda model: on_triton(routed(model)))
    assert by_torch[0] == {"index_select": 2, "index_copy_": 2}
    assert by_triton[0] == {"index_select": 2, "_write_sums": 2, "add": -2}
    assert by_torch[1] - by_triton[1] == (47 if blocks == 1 else 50)
    moved = [sum(_NUMBERS[name] * count for name, count in layer.items()) for layer, _ in (by_torch, by_triton)]
    assert moved == [14 - 2 * _NUMBERS["add"], 10 - 2 * _NUMBERS["add"]]

"""What every method has in common with a dense run: bit-equal steps without dropping, parameters, and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.methods.cases import MethodCase, on_every_model
from tests.support import Finished, parse, world
from tests.support_errors import refused

NUMBERS = ("iteration", "loss", "grad_norm", "lr", "consumed_samples", "consumed_layer_tokens", "step_flops")
Trained = Callable[..., Finished]


def numbers(run: Finished) -> list[list[Any]]:
    return [run.column(name) for name in NUMBERS]


def without_learned(tensors: dict[str, Any]) -> dict[str, Any]:
    """All tensors except the method's learned state, which a dense run does not have."""
    return {name: tensor for name, tensor in tensors.items() if name != "method.learned"}


def assert_same_tensors(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different, different


def assert_same_run(found: Finished, dense: Finished) -> None:
    """Check the metrics and the checkpoint of five steps."""
    assert numbers(found) == numbers(dense)
    assert found.kind("validation") == dense.kind("validation") != []
    assert_same_tensors(without_learned(found.tensors(5)), dense.tensors(5))


@on_every_model
@pytest.mark.parametrize("how", ["off", "full"])
def test_without_dropping_bit_equal_to_dense(flags: list[str], case: MethodCase, how: str, trained: Trained) -> None:
    flags = [*flags, "--train-iters", "5"]
    assert_same_run(trained(*flags, *getattr(case, how)), trained(*flags))


@pytest.mark.parametrize(
    "more", ["--bf16", "--reset-position-ids --reset-attention-mask --eod-mask-loss"], ids=["bf16", "documents"]
)
def test_at_full_length_bit_equal_to_dense_with(
    flags: list[str], case: MethodCase, more: str, trained: Trained
) -> None:
    flags = [*flags, "--train-iters", "5", *more.split()]
    assert_same_run(trained(*flags, *case.full), trained(*flags))


@on_every_model
def test_dropping_differs_from_dense_and_keeps_its_parameters(
    flags: list[str], case: MethodCase, trained: Trained
) -> None:
    flags = [*flags, "--train-iters", "5"]
    dense, dropping = trained(*flags), trained(*flags, *case.dropping)
    assert dropping.column("loss")[0] != dense.column("loss")[0]
    assert sum(dropping.column("step_flops")) < sum(dense.column("step_flops"))
    shapes = {name: tensor.shape for name, tensor in dense.tensors(5).items()}
    assert {name: tensor.shape for name, tensor in without_learned(dropping.tensors(5)).items()} == shapes


@on_every_model
def test_evaluation_keeps_everything(flags: list[str], case: MethodCase, trained: Trained, folder: Path) -> None:
    """What a dropping run logs of its validation equals the evaluation of a dense model with the same weights."""
    from megatron.ltd.training.build import build_run
    from megatron.ltd.training.loop import evaluate

    dropping = trained(*flags, *case.dropping, "--exit-interval", "6")
    assert dropping.column("step_flops")[-1] < dropping.column("dense_step_flops")[-1]
    dense_flags = [*flags, "--load", str(dropping.folder), "--finetune", "--log-dir", str(folder)]
    with world() as mesh:
        run = build_run(parse(dense_flags), mesh)
        measures = evaluate(run)
        run.log.close()
    assert dropping.kind("validation") == [{"kind": "validation", "iteration": 6, **measures}]


@on_every_model
@pytest.mark.parametrize("direction", ["dense first", "dropping first"])
def test_a_checkpoint_continues_with_and_without_the_method(
    flags: list[str], case: MethodCase, direction: str, trained: Trained
) -> None:
    """``--lr-decay-tokens`` gives both runs the same learning rates, so the override changes only the method.

    In "dense first", the second run uses the method but keeps everything. It must equal the dense run bit for bit,
    because the steps before the restart must not matter.
    """
    flags = [*flags, *"--lr-decay-tokens 1536 --exit-interval 5".split()]
    first, second = ((), case.full) if direction == "dense first" else (case.dropping, ())
    started = trained(*flags, *first)
    before = started.column("consumed_layer_tokens")[-1]
    continued = trained(*flags, *second, "--override-opt-param-scheduler", "--load", str(started.folder))
    assert continued.column("iteration") == [6, 7, 8, 9, 10]
    assert continued.column("consumed_samples")[0] == 24
    dense_layer_tokens = 4 * 4 * 32
    assert continued.column("consumed_layer_tokens") == [before + n * dense_layer_tokens for n in range(1, 6)]
    if direction == "dense first":
        straight = trained(*flags, "--exit-interval", "10")
        assert [column[5:] for column in numbers(straight)] == numbers(continued)
        assert_same_tensors(without_learned(continued.tensors(10)), straight.tensors(10))


def test_another_schedule_needs_the_override(flags: list[str], case: MethodCase, trained: Trained) -> None:
    """The decay horizon of a dense run contains more layer tokens than that of a dropping run, so the override is
    needed.
    """
    dense = trained(*flags, "--exit-interval", "3")
    second = [*flags, *case.dropping, "--exit-interval", "6", "--load", str(dense.folder)]
    with refused("--override-opt-param-scheduler"):
        trained(*second)
    continued = trained(*second, "--override-opt-param-scheduler")
    assert continued.column("iteration") == [4, 5, 6]
    planned = trained(*flags, *case.dropping)
    kept = [planned.column(name)[3:6] for name in ("kept_tokens", "step_flops")]
    assert [continued.column(name) for name in ("kept_tokens", "step_flops")] == kept

"""What every method has in common with a dense run: bit-equal steps without dropping, parameters, and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.methods.cases import MethodCase, on_every_model
from tests.support import Finished, parse, pretrain, world
from tests.support_errors import refused

NUMBERS = ("iteration", "loss", "grad_norm", "lr", "consumed_samples", "consumed_layer_tokens", "step_flops")


def numbers(run: Finished) -> list[list[Any]]:
    return [run.column(name) for name in NUMBERS]


def without_learned(tensors: dict[str, Any]) -> dict[str, Any]:
    """All tensors except the method's learned state, which a dense run does not have."""
    return {name: tensor for name, tensor in tensors.items() if name != "method.learned"}


def assert_same_tensors(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different, different


@pytest.mark.parametrize(
    ("flags", "precision"), [("GPT", ()), ("GPT", ("--bf16",)), ("BERT", ())], indirect=["flags"],
    ids=["GPT-fp32", "GPT-bf16", "BERT-fp32"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["off", "full"])
def test_without_dropping_bit_equal_to_dense(
    flags: list[str], case: MethodCase, folder: Path, how: str, precision: tuple[str, ...]
) -> None:
    flags = [*flags, "--train-iters", "5", *precision]
    dense = pretrain(flags, folder / "dense")
    same = pretrain([*flags, *getattr(case, how)], folder / how)
    assert numbers(same) == numbers(dense)
    assert same.kind("validation") == dense.kind("validation") != []
    assert_same_tensors(without_learned(same.tensors(5)), dense.tensors(5))


def test_separate_documents_at_full_length_bit_equal_to_dense(flags: list[str], case: MethodCase, folder: Path) -> None:
    flags = [*flags, *"--train-iters 5 --reset-position-ids --reset-attention-mask --eod-mask-loss".split()]
    dense = pretrain(flags, folder / "dense")
    full = pretrain([*flags, *case.full], folder / "full")
    assert numbers(full) == numbers(dense)
    assert_same_tensors(without_learned(full.tensors(5)), dense.tensors(5))


@on_every_model
def test_dropping_differs_from_dense_and_keeps_its_parameters(flags: list[str], case: MethodCase, folder: Path) -> None:
    flags = [*flags, "--train-iters", "5"]
    dense, dropping = pretrain(flags, folder / "dense"), pretrain([*flags, *case.dropping], folder / "dropping")
    assert dropping.column("loss")[0] != dense.column("loss")[0]
    assert sum(dropping.column("step_flops")) < sum(dense.column("step_flops"))
    shapes = {name: tensor.shape for name, tensor in dense.tensors(5).items()}
    assert {name: tensor.shape for name, tensor in without_learned(dropping.tensors(5)).items()} == shapes


@on_every_model
def test_state_dict_keys_equal_the_dense_models(flags: list[str], case: MethodCase, folder: Path) -> None:
    from megatron.ltd.training.build import build_run

    keys = []
    for method_flags in ((), case.dropping):
        with world() as mesh:
            run = build_run(parse([*flags, *method_flags, "--log-dir", str(folder)]), mesh)
            keys.append(list(run.state.chunks[0].state_dict_for_save_checkpoint()))
            run.log.close()
    assert keys[0] == keys[1]


@on_every_model
def test_evaluation_keeps_everything(flags: list[str], case: MethodCase, folder: Path) -> None:
    """The validation loss logged by a dropping run equals that of a dense run with the same weights."""
    from megatron.ltd.training.build import build_run
    from megatron.ltd.training.loop import evaluate

    dropping = pretrain([*flags, *case.dropping, "--exit-interval", "6"], folder / "dropping")
    assert dropping.column("step_flops")[-1] < dropping.column("dense_step_flops")[-1]
    dense_flags = [*flags, "--load", str(folder / "dropping"), "--finetune", "--log-dir", str(folder / "dense")]
    with world() as mesh:
        run = build_run(parse(dense_flags), mesh)
        measures = evaluate(run)
        run.log.close()
    assert measures is not None
    assert [line["loss"] for line in dropping.kind("validation")] == [measures["loss"]]


@pytest.mark.parametrize("direction", ["dense first", "dropping first"])
@on_every_model
def test_a_checkpoint_continues_with_and_without_the_method(
    flags: list[str], case: MethodCase, folder: Path, direction: str
) -> None:
    """``--lr-decay-tokens`` gives both runs the same learning rates, so the override changes only the method.

    In "dense first", the second run uses the method but keeps everything. It must equal the dense run bit for bit,
    because the steps before the restart must not matter.
    """
    flags = [*flags, *"--lr-decay-tokens 1536 --exit-interval 5".split()]
    first, second = ((), case.full) if direction == "dense first" else (case.dropping, ())
    started = pretrain([*flags, *first], folder / "started")
    before = started.column("consumed_layer_tokens")[-1]
    second = (*second, "--override-opt-param-scheduler")
    continued = pretrain([*flags, *second, "--load", str(folder / "started")], folder / "continued")
    assert continued.column("iteration") == [6, 7, 8, 9, 10]
    assert continued.column("consumed_samples")[0] == 24
    dense_layer_tokens = 4 * 4 * 32
    assert continued.column("consumed_layer_tokens") == [before + n * dense_layer_tokens for n in range(1, 6)]
    if direction == "dense first":
        straight = pretrain([*flags, "--exit-interval", "10"], folder / "straight")
        assert [column[5:] for column in numbers(straight)] == numbers(continued)
        assert_same_tensors(without_learned(continued.tensors(10)), straight.tensors(10))


def test_another_schedule_needs_the_override(flags: list[str], case: MethodCase, folder: Path) -> None:
    """The decay horizon of a dense run contains more layer tokens than that of a dropping run, so the override is
    needed.
    """
    pretrain([*flags, "--exit-interval", "3"], folder / "dense")
    second = [*flags, *case.dropping, "--exit-interval", "6", "--load", str(folder / "dense")]
    with refused("--override-opt-param-scheduler"):
        pretrain(second, folder / "refused")
    continued = pretrain([*second, "--override-opt-param-scheduler"], folder / "continued")
    assert continued.column("iteration") == [4, 5, 6]
    planned = pretrain([*flags, *case.dropping], folder / "planned")
    kept = [planned.column(name)[3:6] for name in ("kept_tokens", "step_flops")]
    assert [continued.column(name) for name in ("kept_tokens", "step_flops")] == kept

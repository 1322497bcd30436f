"""The tests of every method on the vision transformer. Importance is refused, as images have no token ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.workloads import VIT
from tests.methods.cases import CASES, MethodCase
from tests.methods.test_equal_to_dense import assert_same_tensors, numbers
from tests.support import Finished, world
from tests.support_errors import refused
from tests.support_vit import finetune, vit_flags

NUM_STEPS = 12
IMPORTANCE = "token_bypass, importance"


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return vit_flags(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def dense(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finetune(flags, tmp_path_factory.mktemp("dense") / "run")


@pytest.fixture(scope="module")
def straight(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """The uninterrupted run with each method, by name of the case."""
    folder = tmp_path_factory.mktemp("straight")
    return {
        name: finetune([*flags, *case.dropping], folder / case.method / name)
        for name, case in CASES.items()
        if name != IMPORTANCE
    }


@pytest.fixture(params=[name for name in CASES if name != IMPORTANCE])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(name: str) -> MethodCase:
    return CASES[name]


@pytest.mark.parametrize("how", ["off", "full"])
def test_without_dropping_bit_equal_to_dense(
    flags: list[str], case: MethodCase, dense: Finished, tmp_path: Path, how: str
) -> None:
    same = finetune([*flags, *getattr(case, how)], tmp_path / "run")
    assert numbers(same) == numbers(dense)
    assert same.kind("validation") == dense.kind("validation") != []
    assert_same_tensors(same.tensors(NUM_STEPS), dense.tensors(NUM_STEPS))


def test_dropping_differs_from_dense_and_keeps_its_parameters(
    case: MethodCase, name: str, straight: dict[str, Finished], dense: Finished
) -> None:
    run = straight[name]
    assert run.column("loss")[0] != dense.column("loss")[0]
    found, expected = run.tensors(NUM_STEPS), dense.tensors(NUM_STEPS)
    assert {key: tensor.shape for key, tensor in found.items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }
    flops = run.column("step_flops")
    assert tuple(step for step in range(1, NUM_STEPS) if flops[step] != flops[step - 1]) == case.changes


def test_stop_and_resume_bit_equal(
    flags: list[str], case: MethodCase, name: str, straight: dict[str, Finished], tmp_path: Path
) -> None:
    """The run is stopped in the middle of a stage of the plan; the second epoch begins after the restart."""
    parts = tmp_path / "parts"
    finetune([*flags, *case.dropping, "--exit-interval", "5"], parts)
    resumed = finetune([*flags, *case.dropping, "--load", str(parts)], parts)
    assert resumed.kind("train") == straight[name].kind("train")
    assert resumed.kind("validation") == straight[name].kind("validation")
    assert_same_tensors(resumed.tensors(NUM_STEPS), straight[name].tensors(NUM_STEPS))


def test_evaluation_keeps_everything(
    flags: list[str], name: str, straight: dict[str, Finished], tmp_path: Path
) -> None:
    """The last validation of a dropping run equals the evaluation of a dense run with the same weights."""
    from megatron.ltd.training.build import build_run
    from megatron.ltd.training.loop import evaluate

    run = straight[name]
    dense_flags = [*flags, "--load", str(run.folder), "--finetune", "--log-dir", str(tmp_path)]
    with world() as mesh:
        built = build_run(parse_run_config(dense_flags, VIT), mesh)
        measures = evaluate(built)
        built.log.close()
    assert run.kind("validation")[-1] == {"kind": "validation", "iteration": NUM_STEPS, **(measures or {})}


def test_logged_layer_tokens_add_up(name: str, straight: dict[str, Finished]) -> None:
    run = straight[name]
    consumed = run.column("consumed_layer_tokens")
    steps = [after - before for before, after in zip([0, *consumed], consumed, strict=False)]
    plans = [run_plan.kept_tokens for run_plan in _plans(name)]
    if CASES[name].method != "layer_drop":
        assert steps == [4 * sum(kept) for kept in plans]
    assert all(0 < step < 4 * 4 * 32 for step in steps[:6]) and steps[10:] == [4 * 4 * 32] * 2


def _plans(name: str) -> list:  # type: ignore[type-arg]
    images = "--data-path digits --img-h 31 --img-w 1 --patch-dim 1 --num-channels 1 --num-layers 4 --lr 1 "
    config = parse_run_config([*images.split(), "--train-iters", "12", *CASES[name].dropping], VIT)
    method = config.build_method()
    return [method.plan(step) for step in range(NUM_STEPS)]


def test_vit_learns(flags: list[str], tmp_path: Path) -> None:
    """Accuracy and F1 improve, and each of the ten validation images counts once."""
    run = finetune([*flags, *CASES["random_ltd"].dropping, "--train-iters", "60"], tmp_path / "run")
    first, *_, last = run.kind("validation")
    assert last["loss"] < first["loss"] and last["accuracy"] >= 0.9 and last["f1"] >= 0.9
    assert (last["accuracy"] * 10) == pytest.approx(round(last["accuracy"] * 10))


def test_half_precision_follows_fp32(flags: list[str], dense: Finished, tmp_path: Path) -> None:
    run = finetune([*flags, *"--bf16 --attention-dropout 0 --hidden-dropout 0".split()], tmp_path / "bf16")
    exact = finetune([*flags, *"--attention-dropout 0 --hidden-dropout 0".split()], tmp_path / "fp32")
    assert run.column("loss") != exact.column("loss")
    assert run.column("loss") == pytest.approx(exact.column("loss"), rel=0.05)


def test_importance_is_refused_without_a_vocabulary(flags: list[str], tmp_path: Path) -> None:
    with refused("--token-bypass-selector"):
        finetune([*flags, *CASES[IMPORTANCE].dropping], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_classes_start_with_a_new_head(flags: list[str], dense: Finished, tmp_path: Path) -> None:
    """``--finetune`` loads all weights but the head, which it loads too if the classes are the same; resuming is
    refused.
    """
    from megatron.ltd.training.build import build_run

    before = {key: value for key, value in dense.tensors(NUM_STEPS).items() if not key.startswith("optimizer")}
    heads = {}
    for classes in ("3", "5"):
        again = [*flags, "--num-classes", classes, "--load", str(dense.folder), "--log-dir", str(tmp_path / classes)]
        with world() as mesh:
            run = build_run(parse_run_config([*again, "--finetune"], VIT), mesh)
            run.log.close()
            found = dict(run.state.chunks[0].module.named_parameters())
            heads[classes] = found.pop("head.weight").detach().clone()
            found.pop("head.bias")
            for key, parameter in found.items():
                if ".layers." not in key:  # a checkpoint holds all layers in one tensor
                    assert torch.equal(parameter, before[key]), key
    assert torch.equal(heads["3"], before["head.weight"])
    assert heads["5"].shape == (5, 32) and heads["5"].std() > 0.05
    with refused(5, 3, "--finetune"):
        finetune(again, tmp_path / "resumed")

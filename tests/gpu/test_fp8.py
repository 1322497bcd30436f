"""fp8 on a GPU that has it, with Transformer Engine; on a CPU the same bodies run on its stand-in.

The stand-in rounds nothing: rounding, and which sizes the kernels take, only a GPU shows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megatron.ltd.errors import UserError
from tests.gpu.runs import IMPLEMENTATIONS, column, train, train_apart

SIZES = ("--ltd-granularity", 16, "--bf16", "--transformer-impl", "transformer_engine")
DELAYED = "--fp8-format hybrid --fp8-amax-history-len 16 --fp8-amax-compute-algo max".split()
RECIPES = {
    "delayed": DELAYED,
    "tensorwise": "--fp8-format hybrid --fp8-recipe tensorwise --first-last-layers-bf16".split(),
    "blockwise": "--fp8-format e4m3 --fp8-recipe blockwise".split(),
    "mxfp8": "--fp8-format e4m3 --fp8-recipe mxfp8".split(),
}
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1".split()


STOP = {"cuda": 10, "cpu": 2}
"""The step at which the run that is resumed stops, by device"""
LEARNED = {"cuda": 0.8, "cpu": 1.0}
"""How far the loss falls, by device: a run on a CPU has four steps"""

Run = Callable[..., None]


@pytest.fixture
def run(device: str, request: pytest.FixtureRequest) -> Run:
    """Calls ``body(device, ...)`` where Transformer Engine is, or, for a CPU, its stand-in: in another process."""
    if device == "cpu":
        engine = request.getfixturevalue("engine")
        return lambda body, *more: engine.run(body, device, *more, world_size=1)
    if "transformer_engine" not in IMPLEMENTATIONS:
        pytest.skip("needs Transformer Engine")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with fp8")
    return lambda body, *more: body(device, *more)


def end_where_bfloat16_does(device: str, recipe: str, data: Path, folder: Path) -> None:
    try:
        fp8 = train(device, data, folder / "fp8", *SIZES, *RECIPES[recipe])
    except UserError as error:
        assert device == "cuda" and recipe in ("blockwise", "mxfp8"), error
        assert str(error).startswith(f"--fp8-recipe {recipe}: ")
        pytest.skip(str(error))
    bf16 = train(device, data, folder / "bf16", *SIZES)
    assert fp8[-1]["loss"] == pytest.approx(bf16[-1]["loss"], rel=5e-2)
    assert (column(fp8, "loss") == column(bf16, "loss")) == (device == "cpu")
    assert fp8[-1]["loss"] < LEARNED[device] * fp8[0]["loss"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_ends_where_bfloat16_does(run: Run, recipe: str, data: Path, tmp_path: Path) -> None:
    """Or is refused, where the GPU lacks the recipe."""
    run(end_where_bfloat16_does, recipe, data, tmp_path)


def recompute(device: str, recipe: str, data: Path, folder: Path) -> None:
    flags = (*RECIPES[recipe], "--layer-drop", "--layer-drop-gamma", 0.5)
    stored = train(device, data, folder / "stored", *SIZES, *flags)
    again = train(device, data, folder / "again", *SIZES, *flags, *FULL)
    for name in ("loss", "grad_norm"):
        assert again[0][name] == pytest.approx(stored[0][name], rel=1e-3)
    assert column(again, "loss") == pytest.approx(column(stored, "loss"), rel=2e-2)


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_recompute_changes_nothing(run: Run, recipe: str, data: Path, tmp_path: Path) -> None:
    """Layers keep some tokens, and microbatches skip some layers."""
    run(recompute, recipe, data, tmp_path)


def resume(device: str, data: Path, folder: Path) -> None:
    stop = STOP[device]
    flags = (*SIZES, *DELAYED, "--deterministic-mode", "--eval-interval", stop // 2)
    straight = train_apart(device, data, folder / "straight", *flags)
    train_apart(device, data, folder / "run", *flags, "--save", folder / "run", "--exit-interval", stop)
    rest = train_apart(device, data, folder / "rest", *flags, "--load", folder / "run")
    assert column(rest, "loss") == column(straight, "loss")[stop:] and len(rest) == len(straight) - stop > 0


def test_a_resumed_run_has_the_scales_of_one_that_did_not_stop(run: Run, data: Path, tmp_path: Path) -> None:
    run(resume, data, tmp_path)


@pytest.mark.parametrize("device", ["cpu"])
def test_a_cpu_without_a_stand_in_refuses_it(device: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--fp8-format|--transformer-impl"):
        train(device, data, tmp_path, *SIZES, *DELAYED)

"""fp8 on a GPU that has it, with Transformer Engine; on a CPU that it is refused. What no stand-in shows is the
rounding of its kernels, and which sizes they take.
"""

from __future__ import annotations

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


@pytest.fixture
def gpu(device: str) -> str:
    """A GPU with fp8."""
    if device == "cuda" and "transformer_engine" not in IMPLEMENTATIONS:
        pytest.skip("needs Transformer Engine")
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with fp8")
    return device


def refused_on_cpu(device: str, data: Path, folder: Path, *more: object) -> bool:
    """Whether the device is a CPU; there the run is refused."""
    if device == "cuda":
        return False
    with pytest.raises(UserError, match="--fp8-format|--transformer-impl"):
        train(device, data, folder, *SIZES, *more)
    return True


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_ends_where_bfloat16_does(gpu: str, recipe: str, data: Path, tmp_path: Path) -> None:
    """Or is refused, where the GPU lacks the recipe."""
    flags = RECIPES[recipe]
    if refused_on_cpu(gpu, data, tmp_path, *flags):
        return
    try:
        fp8 = train(gpu, data, tmp_path / "fp8", *SIZES, *flags)
    except UserError as error:
        assert str(error).startswith(f"--fp8-recipe {recipe}: ") and recipe in ("blockwise", "mxfp8")
        pytest.skip(str(error))
    bf16 = train(gpu, data, tmp_path / "bf16", *SIZES)
    assert fp8[-1]["loss"] == pytest.approx(bf16[-1]["loss"], rel=5e-2)
    assert column(fp8, "loss") != column(bf16, "loss") and fp8[-1]["loss"] < 0.8 * fp8[0]["loss"]


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_recompute_changes_nothing(gpu: str, recipe: str, data: Path, tmp_path: Path) -> None:
    """Layers keep some tokens, and microbatches skip some layers."""
    flags = (*RECIPES[recipe], "--layer-drop", "--layer-drop-gamma", 0.5)
    if refused_on_cpu(gpu, data, tmp_path, *flags):
        return
    stored = train(gpu, data, tmp_path / "stored", *SIZES, *flags)
    again = train(gpu, data, tmp_path / "again", *SIZES, *flags, *FULL)
    for name in ("loss", "grad_norm"):
        assert again[0][name] == pytest.approx(stored[0][name], rel=1e-3)
    assert column(again, "loss") == pytest.approx(column(stored, "loss"), rel=2e-2)


def test_a_resumed_run_has_the_scales_of_one_that_did_not_stop(gpu: str, data: Path, tmp_path: Path) -> None:
    flags = (*DELAYED, "--deterministic-mode", "--eval-interval", 5)
    if refused_on_cpu(gpu, data, tmp_path, *flags):
        return
    straight = train_apart(gpu, data, tmp_path / "straight", *SIZES, *flags)
    train_apart(gpu, data, tmp_path / "run", *SIZES, *flags, "--save", tmp_path / "run", "--exit-interval", 10)
    rest = train_apart(gpu, data, tmp_path / "rest", *SIZES, *flags, "--load", tmp_path / "run")
    assert column(rest, "loss") == column(straight, "loss")[10:] and len(rest) == 10

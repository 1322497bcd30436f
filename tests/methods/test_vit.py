"""Runs of the vision transformer beside those of every method: it learns, also in bfloat16, and on other classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.methods.cases import CASES
from tests.methods.test_equal_to_dense import Trained
from tests.support import parse, pretrain, world
from tests.support_errors import refused

pytestmark = pytest.mark.parametrize("flags", ["ViT"], indirect=True)


def test_vit_learns(flags: list[str], trained: Trained) -> None:
    """Accuracy and F1 improve, and each of the ten validation images counts once."""
    run = trained(*flags, *CASES["random_ltd"].dropping, "--train-iters", "60")
    first, *_, last = run.kind("validation")
    assert last["loss"] < first["loss"] and last["accuracy"] >= 0.9 and last["f1"] >= 0.9
    assert (last["accuracy"] * 10) == pytest.approx(round(last["accuracy"] * 10))


def test_half_precision_follows_fp32(flags: list[str], trained: Trained) -> None:
    flags = [*flags, *"--attention-dropout 0 --hidden-dropout 0".split()]
    run, exact = trained(*flags, "--bf16"), trained(*flags)
    assert run.column("loss") != exact.column("loss")
    assert run.column("loss") == pytest.approx(exact.column("loss"), rel=0.05)


def test_importance_is_refused_without_a_vocabulary(flags: list[str], folder: Path) -> None:
    with refused("--token-bypass-selector"):
        pretrain([*flags, *CASES["token_bypass, importance"].dropping], folder)
    assert not folder.exists()


def test_other_classes_start_with_a_new_head(flags: list[str], trained: Trained, folder: Path) -> None:
    """``--finetune`` loads all weights but the head, which it loads too if the classes are the same; resuming is
    refused.
    """
    from megatron.ltd.training.build import build_run

    dense = trained(*flags)
    before = {key: value for key, value in dense.tensors(12).items() if not key.startswith("optimizer")}
    heads = {}
    for classes in ("3", "5"):
        again = [*flags, "--num-classes", classes, "--load", str(dense.folder), "--log-dir", str(folder / classes)]
        with world() as mesh:
            run = build_run(parse([*again, "--finetune"]), mesh)
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
        trained(*again)

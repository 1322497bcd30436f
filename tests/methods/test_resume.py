"""A run that is stopped and resumed is bit-equal to an uninterrupted run: metrics, weights and optimizer state."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.methods.cases import MethodCase, on_models
from tests.methods.test_equal_to_dense import assert_same_tensors
from tests.support import Finished, pretrain

NUM_STEPS = 12
RAMP = ("--rampup-batch-size", "4", "2", "24", "--global-batch-size", "8")
DOCUMENTS = ("--reset-position-ids", "--reset-attention-mask", "--eod-mask-loss")
LLAMA = tuple("--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear".split())


def assert_resume_equals_straight(flags: list[str], folder: Path, stops: tuple[int, ...]) -> Finished:
    straight = pretrain(flags, folder / "straight")
    assert straight.column("iteration") == list(range(1, NUM_STEPS + 1))
    for stop in stops:
        parts = folder / f"stopped-{stop}"
        pretrain([*flags, "--exit-interval", str(stop)], parts)
        resumed = pretrain([*flags, "--load", str(parts)], parts)
        assert resumed.kind("train") == straight.kind("train"), stop
        assert resumed.kind("validation") == straight.kind("validation"), stop
        assert_same_tensors(resumed.tensors(NUM_STEPS), straight.tensors(NUM_STEPS))
    return straight


def test_at_any_step(flags: list[str], case: MethodCase, folder: Path) -> None:
    """Stop after the first step, just before and just after the plan changes, and in the middle of a stage."""
    straight = assert_resume_equals_straight([*flags, *case.dropping], folder, stops=(1, 4, 5, 7))
    flops = straight.column("step_flops")
    assert tuple(step for step in range(1, NUM_STEPS) if flops[step] != flops[step - 1]) == case.changes


@on_models("BERT", "ViT")
def test_on_other_models(flags: list[str], case: MethodCase, folder: Path) -> None:
    """Images begin their second epoch after the restart."""
    assert_resume_equals_straight([*flags, *case.dropping], folder, stops=(5,))


def test_in_the_middle_of_batch_ramp_up(flags: list[str], case: MethodCase, folder: Path) -> None:
    """Stop while the global batch size is 4, and while it is 6."""
    straight = assert_resume_equals_straight([*flags, *case.dropping, *RAMP], folder, stops=(2, 4))
    assert straight.column("batch_size")[:6] == [4, 4, 4, 6, 6, 8]


@pytest.mark.parametrize(
    "variant",
    [
        ("--bf16",),
        ("--fp16", "--initial-loss-scale", "16", "--loss-scale-window", "3"),
        ("--fp16", "--initial-loss-scale", "65536"),
        (*DOCUMENTS, *LLAMA),
    ],
    ids=["bf16", "fp16, scale doubling", "fp16, first updates skipped", "documents, RoPE, SwiGLU"],
)
def test_with_other_settings(flags: list[str], case: MethodCase, folder: Path, variant: tuple[str, ...]) -> None:
    assert_resume_equals_straight([*flags, *case.dropping, *variant], folder, stops=(5,))


def test_twice_with_the_length_in_tokens(flags: list[str], case: MethodCase, folder: Path) -> None:
    """``--train-tokens`` ends the run by the layer-token clock; resuming must not change the plan."""
    position = flags.index("--train-iters")
    flags = [*flags[:position], *flags[position + 2 :], "--train-tokens", "900", *case.dropping]
    straight = pretrain(flags, folder / "straight")
    parts = folder / "parts"
    pretrain([*flags, "--exit-interval", "3"], parts)
    pretrain([*flags, "--load", str(parts), "--exit-interval", "7"], parts)
    resumed = pretrain([*flags, "--load", str(parts)], parts)
    assert resumed.kind("train") == straight.kind("train")
    last = straight.column("iteration")[-1]
    assert straight.column("consumed_layer_tokens")[-1] >= 900 * 4 > straight.column("consumed_layer_tokens")[-2]
    assert_same_tensors(resumed.tensors(last), straight.tensors(last))

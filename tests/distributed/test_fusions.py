"""Runs with fused kernels against the same runs without: losses and every gradient, up to rounding.

Megatron-Core's fused functions run on a CPU as they are written, not compiled; those of Transformer Engine are its
stand-in's (``engine``), whose rotation refuses angles that differ between samples, and whose products return garbage as
the gradient of a weight that they have added to the sum themselves.
"""

from __future__ import annotations

import pytest

from tests.distributed.engine import Engine
from tests.distributed.engine_jobs import printed_by
from tests.distributed.layouts import LAYOUTS, RECOMPUTE, VARIANTS, one_process
from tests.distributed.runs import Runs, assert_same
from tests.methods.cases import CASES, MethodCase

pytestmark = pytest.mark.distributed

ONE = one_process(1)
_DROPOUT = ("--hidden-dropout", "0.2")
_ROPE = ("--position-embedding-type", "rope")
COMPILED = {
    "GELU": (("--openai-gelu", *_DROPOUT), ("--bias-gelu-fusion", "--bias-dropout-fusion")),
    "SwiGLU": (("--swiglu", *_DROPOUT), ("--bias-swiglu-fusion", "--bias-dropout-fusion")),
}
"""Flags of a model, and of what is fused in it."""
GRADIENTS = ("--gradient-accumulation-fusion",)
LOSS = ("--cross-entropy-loss-fusion",)
ENGINES_LOSS = (*LOSS, "--cross-entropy-fusion-impl", "te")


def _flags(case: MethodCase) -> tuple[str, ...]:
    """Of five steps, the last of which has another plan."""
    return ("--num-layers", "4", "--train-iters", "5", *case.dropping)


@pytest.mark.parametrize(
    ("name", "model"), [(name, list(COMPILED)[number % 2]) for number, name in enumerate(CASES)], ids=CASES
)
def test_bias_activation_and_dropout(bypass_runs: Runs, name: str, model: str) -> None:
    case, (flags, fused) = _flags(CASES[name]), COMPILED[model]
    assert_same(bypass_runs.run(ONE, *case, *flags, *fused), bypass_runs.reference(1, *case, *flags))


def test_activation_and_dropout_without_biases(runs: Runs) -> None:
    flags, fused = VARIANTS["RoPE"], COMPILED["SwiGLU"][1]
    assert_same(runs.run(ONE, *flags, *fused), runs.reference(1, *flags))


@pytest.mark.parametrize("mode", RECOMPUTE)
def test_recompute_of_bias_activation_and_dropout(runs: Runs, mode: str) -> None:
    flags, fused = COMPILED["SwiGLU"]
    assert_same(runs.run(ONE, *flags, *fused, *RECOMPUTE[mode]), runs.reference(1, *flags))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_rotation_and_gradients_added_by_products(engine_bypass_runs: Runs, case: MethodCase) -> None:
    """Each sample has positions of its own. Queries of TokenBypass's entry layer have angles of their own, its keys
    those of the whole sequence.
    """
    flags = (*_flags(case), *_ROPE)
    fused = engine_bypass_runs.run(ONE, *flags, "--rope-fusion", *GRADIENTS)
    assert_same(fused, engine_bypass_runs.reference(1, *flags))


@pytest.mark.parametrize(
    ("name", "variant", "fused"),
    [
        ("cp2", "RoPE", ("--rope-fusion",)),
        ("tp2 sp", "blocks", ("--rope-fusion", *GRADIENTS)),
        ("pp2 interleaved", "RoPE", ("--rope-fusion", *GRADIENTS)),
        ("dp2 sharded overlaps", "layer dropping", GRADIENTS),
    ],
)
def test_layouts(engine_runs: Runs, runs: Runs, name: str, variant: str, fused: tuple[str, ...]) -> None:
    layout, flags = LAYOUTS[name], VARIANTS[variant]
    assert_same(engine_runs.run(layout, *flags, *fused), runs.reference(layout.strata, *flags))


def test_recompute_of_the_rotation(engine_runs: Runs, runs: Runs) -> None:
    flags = VARIANTS["RoPE"]
    assert_same(engine_runs.run(ONE, *flags, "--rope-fusion", *RECOMPUTE["full uniform"]), runs.reference(1, *flags))


@pytest.mark.parametrize("name", ["one process", "tp2"])
def test_loss_in_bf16(runs: Runs, name: str) -> None:
    """Its gradient is in bfloat16 either way."""
    layout = {"one process": ONE, **LAYOUTS}[name]
    assert_same(runs.run(layout, "--bf16", *LOSS), runs.run(layout, "--bf16"))


def test_loss_of_bert_in_bf16(bert_runs: Runs) -> None:
    flags = ("--bf16", *CASES["random_ltd"].dropping)
    assert_same(bert_runs.run(ONE, *flags, *LOSS), bert_runs.reference(1, *flags))


@pytest.mark.parametrize("name", ["one process", "tp2"])
def test_loss_of_transformer_engine(engine_runs: Runs, runs: Runs, name: str) -> None:
    layout = {"one process": ONE, **LAYOUTS}[name]
    assert_same(engine_runs.run(layout, *ENGINES_LOSS), runs.reference(layout.strata))


def test_what_is_fused_is_named(engine: Engine, engine_runs: Runs) -> None:
    fused = (*COMPILED["SwiGLU"][1], "--rope-fusion", *GRADIENTS, *ENGINES_LOSS)
    command = [*engine_runs.command, *ONE.flags, "--swiglu", *_ROPE, *fused]
    (printed,) = engine.run(printed_by, command, world_size=1)
    (line,) = (line for line in printed.splitlines() if line.startswith("runs on"))
    names = ("bias-swiglu", "bias-dropout", "rope", "cross-entropy-loss", "gradient-accumulation")
    assert line.endswith("".join(f", fused {name}" for name in names))

"""Layer dropping in whole runs: its schedule, its metrics, and its combination with random-LTD."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.ltd.arguments import parse_run_config
from tests.support import pretrain

FLAGS = "--layer-drop --layer-drop-theta 0.4 --layer-drop-gamma 0.3".split()
LTD = "--random-ltd --ltd-min-kept-tokens 8 --ltd-growth-steps 10 --ltd-granularity 8".split()


def test_the_logged_depth_counts_executed_layers(flags: list[str], folder: Path) -> None:
    """A step has two microbatches; logged layer tokens are expected values, but the depth counts executed layers."""
    run = pretrain([*flags, *FLAGS], folder)
    method = parse_run_config([*flags, *FLAGS]).build_method()
    plans = [method.plan(step) for step in range(12)]
    drawn = [
        sum(
            probability == 1.0 or method.executes(step, microbatch, layer, probability)
            for microbatch in range(2)
            for layer, probability in enumerate(plan.keep_probability, start=1)
        )
        for step, plan in enumerate(plans)
    ]
    assert run.column("depth") == [executed / 2 for executed in drawn]
    assert min(drawn) < 8 and run.column("num_layers") == [4] * 12
    expected = sum(round(probability * 32 * 4) for plan in plans for probability in plan.keep_probability)
    assert run.column("consumed_layer_tokens")[-1] == expected


def test_combined_with_random_ltd(flags: list[str], folder: Path) -> None:
    """A combined run keeps the tokens of random-LTD and skips the layers of layer dropping."""
    flags = [*flags, "--train-iters", "4"]
    both = pretrain([*flags, *LTD, *FLAGS], folder / "both")
    tokens, layers = pretrain([*flags, *LTD], folder / "tokens"), pretrain([*flags, *FLAGS], folder / "layers")
    assert both.column("kept_tokens") == tokens.column("kept_tokens")
    assert both.column("depth") == layers.column("depth")
    assert both.column("loss")[0] == tokens.column("loss")[0] != layers.column("loss")[0], "theta is 1 at step 0"
    assert both.column("loss")[1:] != tokens.column("loss")[1:]
    costs = zip(*(run.column("step_flops") for run in (both, tokens, layers)), strict=True)
    assert all(of_both < min(alone) for of_both, *alone in list(costs)[1:])


@pytest.mark.parametrize("direction", ["falling", "rising"])
def test_theta_continues_after_a_resume(flags: list[str], folder: Path, direction: str) -> None:
    flags = [*flags, *FLAGS, "--layer-drop-direction", direction]
    straight = pretrain(flags, folder / "straight")
    pretrain([*flags, "--exit-interval", "5"], folder / "parts")
    resumed = pretrain([*flags, "--load", str(folder / "parts")], folder / "parts")
    for column in ("loss", "step_flops", "depth", "lr"):
        assert resumed.column(column) == straight.column(column)

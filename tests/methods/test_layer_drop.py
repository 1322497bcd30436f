"""Layer dropping in whole runs: its schedule and its metrics, also together with random-LTD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import parse, pretrain

FLAGS = "--layer-drop --layer-drop-theta 0.4 --layer-drop-gamma 0.3".split()
LTD = "--random-ltd --ltd-min-kept-tokens 8 --ltd-growth-steps 10 --ltd-granularity 8".split()


@pytest.mark.parametrize("tokens", [(), LTD], ids=["alone", "with random-LTD"])
def test_the_logged_depth_counts_executed_layers(flags: list[str], folder: Path, tokens: Sequence[str]) -> None:
    """A step has two microbatches; logged layer tokens are expected values, but the depth counts executed layers."""
    flags = [*flags, *FLAGS, *tokens]
    run = pretrain(flags, folder)
    method = parse(flags).build_method()
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
    kept = [8] * 4 + [16] * 3 + [24] * 3 + [32] * 2 if tokens else [32] * 12
    assert run.column("kept_tokens") == kept
    expected = 0
    for amount, plan in zip(kept, plans, strict=True):
        layers = zip((32, amount, amount, 32), plan.keep_probability, strict=True)
        expected += sum(round(probability * each * 4) for each, probability in layers)
    assert run.column("consumed_layer_tokens")[-1] == expected

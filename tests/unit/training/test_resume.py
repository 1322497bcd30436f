"""What a continued run must agree on with its checkpoint, and what it says of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.ltd.config import parse_run_config
from megatron.ltd.errors import UserError
from megatron.ltd.training.resume import changed_settings, settle_schedule

CHECKPOINT = Path("runs/iter_0000100")
STORED = {"the method": "random-LTD (--random-ltd)", "--ltd-growth-steps": 50, "--global-batch-size": 8, "--lr": 1e-3}
OVERRIDE = "--override-opt-param-scheduler"


def test_the_same_schedule() -> None:
    """Lists have been through JSON."""
    ramp = {"--rampup-batch-size": [2, 2, 8]}
    assert settle_schedule(CHECKPOINT, STORED | ramp, STORED | {"--rampup-batch-size": (2, 2, 8)}, None) is None
    assert settle_schedule(CHECKPOINT, STORED, dict(STORED), OVERRIDE) is None


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        ({**STORED, "--lr": 2e-3}, "--lr is 0.002 here and 0.001 in checkpoint runs/iter_0000100"),
        ({**STORED, "--global-batch-size": 4, "--lr": 2e-3}, "--global-batch-size is 4 here and 8 in checkpoint"),
        ({**STORED, "--ltd-growth-steps": 60}, "--ltd-growth-steps is 60 here and 50 in checkpoint"),
        ({**STORED, "--new": 1}, "--new is 1 here and not given in checkpoint"),
        (
            {"the method": "dense", "--global-batch-size": 4, "--lr": 1e-3},
            r"the method is dense here and random-LTD \(--random-ltd\) in checkpoint",
        ),
    ],
)
def test_another_schedule_is_refused_or_taken_whole(wanted: dict[str, object], line: str) -> None:
    """The first setting that differs is named; the advice is the one flag that takes all of them."""
    with pytest.raises(UserError, match=f"^{line}.*{OVERRIDE}") as caught:
        settle_schedule(CHECKPOINT, STORED, wanted, None)
    assert "\n" not in str(caught.value)
    assert settle_schedule(CHECKPOINT, STORED, wanted, OVERRIDE) is not None


def test_what_is_taken_is_said() -> None:
    wanted = {"the method": "dense", "--global-batch-size": 8, "--lr": 2e-3}
    assert settle_schedule(CHECKPOINT, STORED, wanted, "--no-load-optim") == (
        "takes method, batch and learning rate from these flags (--no-load-optim): the method dense (was random-LTD "
        "(--random-ltd)), --lr 0.002 (was 0.001), --ltd-growth-steps not given (was 50)"
    )


def test_free_flags_are_said_and_the_schedules_are_not() -> None:
    base = ["--num-layers", "3", "--train-iters", "9", "--lr", "1e-3", "--random-ltd", "--ltd-growth-steps", "5"]
    base += ["--hidden-size", "8", "--num-attention-heads", "2", "--seq-length", "128"]
    stored = parse_run_config(base).to_dict()
    assert changed_settings(stored, parse_run_config(base)) is None
    more = [
        "--lr",
        "2e-3",
        "--ltd-growth-steps",
        "6",
        "--global-batch-size",
        "4",
        "--weight-decay",
        "0.5",
        "--log-dir",
        "x",
    ]
    now = parse_run_config([*base, *more, "--tensor-model-parallel-size", "2", "--micro-batch-size", "2"])
    assert changed_settings(stored, now) == (
        "continues with other flags than before: --micro-batch-size 2 (was 1), --weight-decay 0.5 (was 0.01)"
    )

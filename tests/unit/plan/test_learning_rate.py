"""The planned learning rate against Megatron-Core's scheduler, compared after every step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron.ltd.plan.learning_rate import learning_rate

INCREMENTS = [37, 1, 250, 13] * 160
"""What each step adds to the clock: 48,160 in total, which is past the end of every decay below."""


@pytest.mark.parametrize("warmup", [0, 38, 5_000])
@pytest.mark.parametrize("style", ["constant", "linear", "cosine", "inverse-square-root"])
def test_every_step_has_the_schedulers_rate(style: str, warmup: int) -> None:
    _compare({"lr_decay_style": style, "lr_warmup_steps": warmup, "wsd_decay_steps": None, "lr_wsd_decay_style": None})


@pytest.mark.parametrize("style", ["linear", "cosine", "exponential", "minus_sqrt"])
def test_every_step_of_a_decay_after_a_plateau(style: str) -> None:
    _compare({"lr_decay_style": "WSD", "lr_warmup_steps": 500, "wsd_decay_steps": 9_001, "lr_wsd_decay_style": style})


def _compare(about: dict[str, Any]) -> None:
    schedule = {"init_lr": 1e-7, "max_lr": 2e-4, "min_lr": 1e-6, "lr_decay_steps": 40_000, **about}
    optimizer = SimpleNamespace(param_groups=[{}])
    scheduler = OptimizerParamScheduler(
        optimizer, **schedule, start_wd=0.1, end_wd=0.1, wd_incr_steps=1, wd_incr_style="constant"
    )
    clock = 0
    for increment in [0, *INCREMENTS]:
        scheduler.step(increment)
        clock += increment
        assert learning_rate(schedule, clock) == optimizer.param_groups[0]["lr"], clock
    assert clock > 40_000

"""The flags of a plan: which combinations are refused, and the published peaks."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.ltd.forecast.config import PEAK_TFLOPS, PlanConfig
from tests.support_errors import refused

SPEED = {"plan_mfu": 0.4, "plan_gpu": "a100"}
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no plan": ({"plan": False, "plan_gpus": 8}, ["--plan-gpus 8", "--plan"]),
    "file without a plan": ({"plan": False, "plan_json": "p.json"}, ["--plan-json p.json", "--plan"]),
    "question without a plan": ({"plan": False, "plan_target_saving": 0.3}, ["--plan-target-saving 0.3", "--plan"]),
    "mfu in percent": ({**SPEED, "plan_mfu": 40.0}, ["--plan-mfu 40.0", "0.3"]),
    "saving in percent": ({"plan_target_saving": 33.3}, ["--plan-target-saving 33.3", "0.3"]),
    "two questions": (
        {**SPEED, "plan_target_saving": 0.3, "plan_gpu_hours": 10.0},
        ["--plan-target-saving 0.3", "--plan-gpu-hours 10.0"],
    ),
    "two speeds": ({**SPEED, "plan_step_seconds": 2.0}, ["--plan-mfu 0.4", "--plan-step-seconds 2.0"]),
    "two peaks": ({**SPEED, "plan_peak_tflops": 3.0}, ["--plan-gpu a100", "--plan-peak-tflops 3.0"]),
    "mfu without a peak": ({"plan_mfu": 0.4}, ["--plan-mfu 0.4", "--plan-gpu", "--plan-peak-tflops"]),
    "peak alone": ({"plan_gpu": "h100"}, ["--plan-gpu h100", "--plan-mfu"]),
    "hours without a speed": ({"plan_gpu_hours": 5.0}, ["--plan-gpu-hours 5.0", "--plan-mfu", "--plan-step-seconds"]),
}


@pytest.mark.parametrize(("flags", "names"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_flags_are_refused(flags: dict[str, Any], names: list[str]) -> None:
    with refused(*names):
        PlanConfig(**{"plan": True, **flags})


def test_published_peaks_apply_to_half_precision_only() -> None:
    for gpu, teraflops in PEAK_TFLOPS.items():
        plan = PlanConfig(plan=True, plan_gpu=gpu, plan_mfu=0.5)
        assert plan.peak_flops("float16") == teraflops * 1e12
        with refused(f"--plan-gpu {gpu}", "float32", "--plan-peak-tflops"):
            plan.peak_flops("float32")
    with refused("--plan-gpu v100", "--fp16", "bfloat16"):
        PlanConfig(plan=True, plan_gpu="v100", plan_mfu=0.5).peak_flops("bfloat16")
    given = PlanConfig(plan=True, plan_peak_tflops=19.5, plan_mfu=0.5)
    assert given.peak_flops("float32") == 19.5e12
    assert PlanConfig().peak_flops("float32") is None

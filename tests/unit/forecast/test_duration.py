"""Time and GPU-hours, with numbers that can be checked by hand."""

from __future__ import annotations

import pytest

from megatron.ltd.forecast.config import PlanConfig
from megatron.ltd.forecast.duration import Speed
from megatron.ltd.plan.accounting import dense_step_flops
from tests.unit.plan.test_run_plan import GPT3_1_3B


def test_speed_from_an_mfu() -> None:
    planning = PlanConfig(plan=True, plan_gpu="a100", plan_mfu=0.5)
    speed = Speed.of(planning, "bfloat16", 8, GPT3_1_3B, 512)
    assert speed is not None and speed.mfu == 0.5
    assert speed.seconds(8 * 156_000_000_000_000) == pytest.approx(1.0)
    assert speed.gpu_hours(8 * 156_000_000_000_000) == pytest.approx(8 / 3600)


def test_speed_from_a_measured_dense_step() -> None:
    """A dense step takes the measured time, half of its FLOPs half of it; the MFU follows from a known peak."""
    planning = PlanConfig(plan=True, plan_step_seconds=3.0, plan_peak_tflops=100.0)
    speed = Speed.of(planning, "float32", 64, GPT3_1_3B, 512)
    step = dense_step_flops(GPT3_1_3B, 512)
    assert speed is not None and speed.mfu == pytest.approx(step / 3.0 / 64 / 100e12)
    assert speed.seconds(step) == pytest.approx(3.0) and speed.seconds(step // 2) == pytest.approx(1.5)
    assert speed.gpu_hours(1200 * step) == pytest.approx(64.0)


def test_gpu_hours_convert_to_flops_and_back() -> None:
    speed = Speed(num_gpus=4, flops_per_second=1e15, peak_flops=None)
    flops = speed.flops_of(2.5)
    assert flops == 2_250_000_000_000_000_000
    assert speed.gpu_hours(flops) <= 2.5 < speed.gpu_hours(flops + 10**6)
    assert speed.mfu is None


def test_an_unknown_speed_gives_no_time() -> None:
    assert Speed.of(PlanConfig(plan=True), "float32", 4, GPT3_1_3B, 8) is None

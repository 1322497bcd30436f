"""Questions to a plan: flags only, no torch.

    --plan                       print the plan of the run and end: no device, no data, no other process
    --plan-mfu, -step-seconds    the speed, from which time and GPU-hours follow
    --plan-target-saving         a question: the growth length that saves this share
    --plan-gpu-hours             a question: the tokens that these GPU-hours pay for

These flags are not part of a run: checkpoints do not store them, and processes do not compare them.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass, fields

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag, flag_name, read_flags, shown
from megatron.ltd.flags.ranges import ABOVE_ZERO, Range
from megatron.ltd.methods import METHODS

GPU_MEMORY_GB = {"v100": 32, "a100": 80, "l40s": 48, "h100": 80, "h200": 141, "b200": 180}
"""Memory of the larger version of each GPU, in 10^9 bytes, which none falls short of."""
PEAK_TFLOPS = {
    "v100": 125.0,
    "a100": 312.0,
    "l40s": 362.0,
    "h100": 989.0,
    "h200": 989.0,
    "b200": 2250.0,
}
"""Dense matrix products a second on tensor cores in bfloat16 (V100: float16, which is all it has), in 10^12 FLOPs.

NVIDIA's figures for V100 SXM2, A100, L40S, H100 SXM, H200 SXM and B200; where it names them "with sparsity", half of
them. All but the V100's are as torchtitan and nanochat quote them (``get_peak_flops``), which is where they were read.
"""
FP8_TFLOPS = {"l40s": 733.0, "h100": 1979.0, "h200": 1979.0, "b200": 4500.0}
"""The same in fp8, which V100 and A100 lack: half of 1,466, 3,958 (H100, H200) and 9,000, with sparsity."""


def published_tflops(gpu: str, dtype: str) -> float | None:
    """The peak of a kind of GPU in ``dtype`` or, for "float8", of products in fp8; None if it is not known."""
    if dtype == "float32" or (dtype == "bfloat16" and gpu == "v100"):
        return None
    return FP8_TFLOPS.get(gpu) if dtype == "float8" else PEAK_TFLOPS[gpu]


SAVING_WORDS = {"layer-tokens": "layer tokens", "flops": "FLOPs"}
"""What a saving is a share of, see ``solve.SavingUnit``, and its name on screens."""


@dataclass(frozen=True)
class PlanConfig(Settings):
    """planning"""

    plan: bool = flag(
        False,
        affects="nothing",
        help="print what the run will compute, save, hold in memory and take in time, without starting it",
    )
    plan_json: str | None = flag(None, affects="nothing", metavar="FILE", help="also write the plan to this new file")
    plan_gpus: int | None = flag(
        None,
        affects="nothing",
        help="processes of the run, one per GPU (default: as many as hold one copy of the model)",
    )
    plan_gpu: str | None = flag(
        None,
        affects="nothing",
        choices=tuple(PEAK_TFLOPS),
        help="kind of GPU, for its published dense peak in bfloat16 or float16, or with --fp8-format in fp8",
    )
    plan_peak_tflops: float | None = flag(
        None, range=ABOVE_ZERO, affects="nothing", help="peak of one GPU in 10^12 FLOPs a second, instead of --plan-gpu"
    )
    plan_mfu: float | None = flag(
        None,
        range=Range(0, 1, above=True),
        affects="nothing",
        help="share of the peak that useful FLOPs reach (recompute is not useful), such as 0.4",
    )
    plan_step_seconds: float | None = flag(
        None,
        range=ABOVE_ZERO,
        affects="nothing",
        help="instead of --plan-mfu: measured seconds of a step of the same run without a method, on --plan-gpus and "
        "at the full --global-batch-size; the time of other steps is taken to be in proportion to their FLOPs",
    )
    plan_target_saving: float | None = flag(
        None,
        range=Range(0, 1, above=True, below=True),
        affects="nothing",
        help="find the shortest growth that saves this share of what --plan-saving-of says, such as 0.333; the length "
        "of the run is held as its flag says",
    )
    plan_saving_of: str | None = flag(
        None,
        affects="nothing",
        choices=tuple(SAVING_WORDS),
        help="what --plan-target-saving is a share of: the dense model's layer tokens, as the paper counts (default), "
        "or its FLOPs",
    )
    plan_gpu_hours: float | None = flag(
        None,
        range=ABOVE_ZERO,
        affects="nothing",
        help="find the tokens that this many GPU-hours pay for; instead of a length of the run",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [field.name for field in fields(self) if getattr(self, field.name) not in (None, False)]
        if given and not self.plan:
            raise UserError(f"{self._typed(given[0])}: it has no effect without --plan; add --plan")
        if self.plan_saving_of is not None and self.plan_target_saving is None:
            raise UserError(f"{self._typed('plan_saving_of')}: it has no effect without --plan-target-saving; add it")
        self._keep_one("plan_target_saving", "plan_gpu_hours", "a plan answers one question at a time")
        self._keep_one("plan_mfu", "plan_step_seconds", "both set the speed of the run")
        self._keep_one("plan_gpu", "plan_peak_tflops", "both set the peak of a GPU")
        self._check_speed()

    def _check_speed(self) -> None:
        """Refuse a peak without a speed, and a share without a peak."""
        peak = "plan_gpu" if self.plan_gpu is not None else "plan_peak_tflops"
        has_peak = getattr(self, peak) is not None
        if self.plan_mfu is not None and not has_peak:
            raise UserError(
                f"{self._typed('plan_mfu')}: it is a share of a GPU's peak; give --plan-gpu "
                f"{{{','.join(PEAK_TFLOPS)}}}, or --plan-peak-tflops"
            )
        if has_peak and not self.knows_speed:
            raise UserError(
                f"{self._typed(peak)}: the peak alone gives no time; add --plan-mfu, the share that is reached, or "
                "--plan-step-seconds"
            )
        if self.plan_gpu_hours is not None and not self.knows_speed:
            raise UserError(
                f"{self._typed('plan_gpu_hours')}: it needs the time of a step; add --plan-mfu with "
                "--plan-gpu, or --plan-step-seconds"
            )

    @property
    def knows_speed(self) -> bool:
        """Whether the flags give the time of a step."""
        return self.plan_mfu is not None or self.plan_step_seconds is not None

    def peak_flops(self, dtype: str) -> float | None:
        """Peak FLOPs per second of one GPU in ``dtype``; None if none is given.

        Raises ``UserError`` if the published peak is of another type.
        """
        if self.plan_peak_tflops is not None:
            return self.plan_peak_tflops * 1e12
        if self.plan_gpu is None:
            return None
        peak = published_tflops(self.plan_gpu, dtype)
        if peak is None:
            has = "float16 (--fp16)" if self.plan_gpu == "v100" else "bfloat16 and float16 (--bf16, --fp16)"
            raise UserError(
                f"--plan-gpu {self.plan_gpu}: its published peak is for {has}, and this run computes in {dtype}; "
                "change the type, or give --plan-peak-tflops"
            )
        return peak * 1e12

    def _typed(self, name: str) -> str:
        """A flag as it was typed, such as "--plan-mfu 0.4"."""
        value = getattr(self, name)
        return flag_name(type(self), name) + ("" if value is True else f" {shown(value)}")

    def _keep_one(self, first: str, second: str, why: str) -> None:
        if getattr(self, first) is not None and getattr(self, second) is not None:
            raise UserError(f"{self._typed(first)} and {self._typed(second)}: {why}; keep one")


def leave_open(flags: argparse.Namespace, planning: PlanConfig, replaceable: Collection[str] = ()) -> None:
    """Put the smallest value in place of what a plan is asked to find.

    Raises ``UserError`` if it is given too, or if there is nothing to find. Fields in ``replaceable``, which settings
    files set and the command line does not, do not count as given.
    """

    def is_given(name: str) -> bool:
        return hasattr(flags, name) and name not in replaceable

    if planning.plan_gpu_hours is not None:
        question = f"--plan-gpu-hours {planning.plan_gpu_hours:g}"
        for name in ("train_iters", "train_samples", "train_tokens"):
            if is_given(name):
                typed = f"--{name.replace('_', '-')} {getattr(flags, name)}"
                raise UserError(f"{question}: it finds the length of the run, and {typed} gives one; keep one")
            if hasattr(flags, name):
                delattr(flags, name)
        flags.train_iters = 1
    if planning.plan_target_saving is not None:
        question = f"--plan-target-saving {planning.plan_target_saving:g}"
        on = [entry for entry in METHODS.values() if read_flags(flags, entry.config_class).enabled and entry.growth]
        if not on:
            able = " or ".join(entry.flag for entry in METHODS.values() if entry.growth)
            raise UserError(
                f"{question}: it finds the growth of a method, and no method with a growth is on; add {able}"
            )
        growth = str(on[0].growth)
        if is_given(growth):
            typed = f"{flag_name(on[0].config_class, growth)} {getattr(flags, growth)}"
            raise UserError(f"{question}: it finds the growth, and {typed} gives one; keep one")
        if not read_flags(flags, on[0].config_class).grows:
            raise UserError(
                f"{question}: it finds the growth, and the schedule of {on[0].flag} does not grow; use one that does"
            )
        setattr(flags, growth, 1)

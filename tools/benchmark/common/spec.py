"""A training run as data: its command line, its folder, and its planned FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import RunConfig
from megatron.ltd.plan.accounting import ModelShape
from megatron.ltd.plan.clock import RunClock
from megatron.ltd.plan.run_plan import RunPlan
from megatron.ltd.tokenizers.config import model_vocab_size


@dataclass(frozen=True)
class RunSpec:
    """One run of a benchmark."""

    variant: str
    seed: int
    steps: int
    planned_flops: int
    folder: Path
    """The run saves there, and resumes from there if it is started again."""
    flags: tuple[str, ...]
    """The flags of ``script``."""
    script: str = "pretrain_gpt_ltd.py"

    @property
    def name(self) -> str:
        """The name in progress lines, such as ``"random-ltd seed 2"``."""
        return f"{self.variant} seed {self.seed}"


def plan_flags(flags: tuple[str, ...], vocab_size: int) -> RunPlan:
    """The plan that a GPT run with these flags will follow."""
    config = parse_run_config(flags)
    return plan_of(config, config.model.shape(model_vocab_size(config.tokenizer, vocab_size, 1)))


def plan_of(config: RunConfig, shape: ModelShape) -> RunPlan:
    """The plan of a run in one process."""
    method, batch_samples = config.build_method(), config.global_batch_size(1)
    return RunClock.build(shape, batch_samples, method, config.training, config.optimizer).plan()

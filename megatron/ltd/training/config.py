"""Logging: flags only, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import ABOVE_ZERO, COUNT_OR_ZERO


@dataclass(frozen=True)
class LoggingConfig(Settings):
    """logging"""

    log_interval: int = flag(100, affects="start", help="steps between console lines; metrics.jsonl holds every step")
    log_dir: str | None = flag(
        None, affects="nothing", metavar="DIR", help="folder of metrics.jsonl (default: --save, else runs/<start time>)"
    )
    tensorboard_dir: str | None = flag(
        None, affects="nothing", metavar="DIR", help="also write TensorBoard events here"
    )
    wandb_project: str | None = flag(None, affects="nothing", help="also log to this Weights & Biases project")
    wandb_exp_name: str | None = flag(None, affects="nothing", help="name of the Weights & Biases run")
    wandb_entity: str | None = flag(
        None, affects="nothing", help="the user or team whose Weights & Biases project it is"
    )
    mlflow_experiment: str | None = flag(
        None, affects="nothing", help="also log to this MLflow experiment, on the server of MLFLOW_TRACKING_URI"
    )
    mlflow_run_name: str | None = flag(None, affects="nothing", help="name of the MLflow run")
    log_params_norm: bool = flag(
        False, affects="execution", help="log the 2-norm of all parameters at every step, after its update"
    )
    log_num_zeros_in_grad: bool = flag(
        False, affects="execution", help="log the number of zeros in the gradient at every step"
    )
    peak_tflops: float | None = flag(
        None,
        range=ABOVE_ZERO,
        affects="nothing",
        help="peak of a device in 10^12 FLOPs a second, by which MFU is divided (default: the GPU's, as published)",
    )
    profile: bool = flag(
        False,
        affects="nothing",
        help="profile the steps from --profile-step-start to before --profile-step-end: for Nsight Systems (nsys "
        "profile --capture-range=cudaProfilerApi), or with --use-pytorch-profiler",
    )
    profile_step_start: int = flag(
        10, range=COUNT_OR_ZERO, affects="nothing", help="first step that is profiled, counted from 0"
    )
    profile_step_end: int = flag(12, affects="nothing", help="step before which profiling ends")
    use_pytorch_profiler: bool = flag(
        False, affects="nothing", help="profile with PyTorch, into trace-RANK.json in --log-dir, also on the CPU"
    )
    progress: bool = flag(True, affects="nothing", help="show no progress bar")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("wandb_exp_name", "wandb_entity"):
            value = getattr(self, name)
            if value is not None and self.wandb_project is None:
                raise UserError(f"--{name.replace('_', '-')} {value}: it needs --wandb-project; name the project")
        if self.mlflow_run_name is not None and self.mlflow_experiment is None:
            raise UserError(
                f"--mlflow-run-name {self.mlflow_run_name}: it needs --mlflow-experiment; name the experiment"
            )
        if self.use_pytorch_profiler and not self.profile:
            raise UserError("--use-pytorch-profiler: it has no effect without --profile; add it")
        if self.profile and self.profile_step_start >= self.profile_step_end:
            raise UserError(
                f"--profile-step-end {self.profile_step_end}: it must be above --profile-step-start "
                f"{self.profile_step_start}; raise it"
            )

"""Logging: flags only, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag


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
    progress: bool = flag(True, affects="nothing", help="show no progress bar")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wandb_exp_name is not None and self.wandb_project is None:
            raise UserError(f"--wandb-exp-name {self.wandb_exp_name}: it needs --wandb-project; name the project")

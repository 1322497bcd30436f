"""TensorBoard and Weights & Biases, as a run opens them; both go on where an earlier start of the run ended.

TensorBoard          what an earlier start wrote after the step of the checkpoint is not shown any more
Weights & Biases     the run's id is in ``wandb_id.txt`` beside metrics.jsonl
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.training.config import LoggingConfig

_WANDB_ID = "wandb_id.txt"


def open_tensorboard(folder: str, first_step: int) -> Any:
    """TensorBoard's writer for the steps after ``first_step``. Raises ``UserError`` if it cannot be opened."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            f'--tensorboard-dir {folder}: needs the package tensorboard; run pip install "megatron-ltd[logging]", or '
            "remove the flag"
        ) from None
    try:
        return SummaryWriter(log_dir=folder, purge_step=first_step + 1 if first_step else 0)
    except OSError as error:
        raise UserError(
            f"--tensorboard-dir {folder}: cannot be written ({error.strerror}); choose a folder that you can write to"
        ) from None


def import_wandb(config: LoggingConfig) -> Any:
    """The module ``wandb``. Raises ``UserError`` if it is not installed."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"--wandb-project {config.wandb_project}: needs the package wandb; run "
            'pip install "megatron-ltd[logging]", or remove the flag'
        ) from None
    return wandb


def open_wandb(wandb: Any, config: LoggingConfig, folder: Path, settings: Mapping[str, Any]) -> Any:
    """The run of Weights & Biases that belongs to ``folder``, continued if an earlier start made it."""
    path = folder / _WANDB_ID
    run_id = path.read_text(encoding="utf-8").strip() if path.exists() else secrets.token_hex(4)
    run = wandb.init(
        project=config.wandb_project,
        entity=config.wandb_entity,
        name=config.wandb_exp_name,
        dir=str(folder),
        id=run_id,
        resume="allow",
        config=dict(settings),
        allow_val_change=True,
    )
    path.write_text(f"{run_id}\n", encoding="utf-8")
    return run

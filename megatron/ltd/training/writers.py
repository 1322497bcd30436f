"""TensorBoard, Weights & Biases and MLflow, as a run opens them; all go on where an earlier start of the run ended.

TensorBoard          what an earlier start wrote after the step of the checkpoint is not shown any more
Weights & Biases     the run's id is in ``wandb_id.txt`` beside metrics.jsonl
MLflow               the run's id is in ``mlflow_id.txt`` there; where the server is, MLflow's own settings say
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.training.config import LoggingConfig

_WANDB_ID, _MLFLOW_ID = "wandb_id.txt", "mlflow_id.txt"
_LONGEST_PARAM = 500
"""Characters of a value that every version of MLflow stores."""


def imported(module: str, flag: str, packages: str, extra: str = "logging") -> Any:
    """The module of a service, which ``packages`` bring. Raises ``UserError`` that names ``flag`` if there is none."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f'{flag}: needs the package {packages}; run pip install "megatron-ltd[{extra}]", or remove the flag'
        ) from None


def open_tensorboard(folder: str, first_step: int) -> Any:
    """TensorBoard's writer for the steps after ``first_step``. Raises ``UserError`` if it cannot be opened."""
    tensorboard = imported("torch.utils.tensorboard", f"--tensorboard-dir {folder}", "tensorboard")
    with writes_to(f"--tensorboard-dir {folder}", "choose a folder that you can write to"):
        return tensorboard.SummaryWriter(log_dir=folder, purge_step=first_step + 1 if first_step else 0)


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


def open_mlflow(mlflow: Any, config: LoggingConfig, folder: Path, settings: Mapping[str, Any]) -> MLflow:
    """The run of MLflow that belongs to ``folder``, continued if an earlier start made it."""
    path = folder / _MLFLOW_ID
    run_id = path.read_text(encoding="utf-8").strip() if path.exists() else None
    mlflow.set_experiment(config.mlflow_experiment)
    run = mlflow.start_run(run_id=run_id, run_name=config.mlflow_run_name)
    if run_id is None:  # a value that is logged cannot change
        flat = {f"{part}.{name}": value for part, values in settings.items() for name, value in (values or {}).items()}
        mlflow.log_params({name: str(value)[:_LONGEST_PARAM] for name, value in flat.items()})
        path.write_text(f"{run.info.run_id}\n", encoding="utf-8")
    return MLflow(mlflow)


@dataclass(frozen=True)
class MLflow:
    """The open run of the module ``mlflow``, with the methods of a run of Weights & Biases."""

    module: Any

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Log the values of a step."""
        self.module.log_metrics(dict(scalars), step=step)

    def finish(self) -> None:
        """End the run."""
        self.module.end_run()

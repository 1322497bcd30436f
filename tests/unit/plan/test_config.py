"""Combinations that the training, optimizer, checkpoint and logging flags refuse. Ranges: ``test_ranges``."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.ltd.checkpoint.config import CheckpointConfig
from megatron.ltd.plan.config import OptimizerConfig, TrainingConfig
from megatron.ltd.training.config import LoggingConfig
from tests.support_errors import refused

REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (TrainingConfig, {}, ("--train-iters",)),
    (TrainingConfig, {"train_iters": 5, "train_samples": 5}, ("--train-iters 5", "--train-samples 5")),
    (TrainingConfig, {"train_iters": 5, "rampup_batch_size": (1, 2)}, ("--rampup-batch-size", 2)),
    (TrainingConfig, {"train_iters": 5, "eval_iters": 0, "eval_at_start": True}, ("--eval-at-start", "--eval-iters 0")),
    (OptimizerConfig, {}, ("--lr",)),
    (OptimizerConfig, {"lr": 1e-3, "min_lr": 1e-2}, ("--min-lr 0.01", 0, "--lr 0.001")),
    (OptimizerConfig, {"lr": 1e-3, "lr_warmup_init": 1e-2}, ("--lr-warmup-init 0.01", "--lr 0.001")),
    (
        OptimizerConfig,
        {"lr": 1e-3, "lr_warmup_iters": 1, "lr_warmup_tokens": 9},
        ("--lr-warmup-iters", "--lr-warmup-tokens"),
    ),
    (OptimizerConfig, {"lr": 1e-3, "lr_wsd_decay_iters": 5}, ("--lr-wsd-decay-iters 5", "--lr-decay-style WSD")),
    (CheckpointConfig, {"save_interval": 5}, ("--save-interval 5", "--save")),
    (CheckpointConfig, {"keep_last": 5}, ("--keep-last 5", "--save")),
    (CheckpointConfig, {"finetune": True}, ("--finetune", "--load")),
    (CheckpointConfig, {"no_load_optim": True}, ("--no-load-optim", "--load")),
    (CheckpointConfig, {"use_checkpoint_args": True}, ("--use-checkpoint-args", "--load")),
    (LoggingConfig, {"wandb_exp_name": "x"}, ("--wandb-exp-name", "--wandb-project")),
    (LoggingConfig, {"mlflow_run_name": "x"}, ("--mlflow-run-name", "--mlflow-experiment")),
]


@pytest.mark.parametrize(("config_class", "values", "message"), REFUSED)
def test_bad_values_are_refused(config_class: type, values: dict[str, Any], message: tuple[object, ...]) -> None:
    with refused(*message) as caught:
        config_class(**values)
    assert "\n" not in str(caught.value)


def test_valid_values_are_accepted() -> None:
    assert TrainingConfig(train_iters=1).check_for_nan_in_loss_and_grad
    TrainingConfig(train_tokens=10, rampup_batch_size=(1, 2, 3), exit_duration_in_mins=0.5, eval_iters=0)
    OptimizerConfig(lr=1e-3, lr_decay_style="WSD", lr_wsd_decay_iters=5, lr_warmup_iters=0, clip_grad=0.0)
    CheckpointConfig(save="a", load="a", save_interval=1, keep_last=1, finetune=True)

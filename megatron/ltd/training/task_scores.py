"""Scoring lm-eval tasks during training: flags, when scoring is due, the type of a scorer. No torch, no lm-eval.

    every --eval-tasks-interval steps, and after the last: scorer() -> {"lambada_openai/acc": 0.31, ...}

Not here: how a task is scored (``evaluation.lm_eval.harness``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag

Scorer = Callable[[], Mapping[str, float]]
"""Scores of the current weights by "task/metric", on the first process; others may get none. Every rank calls it."""


@dataclass(frozen=True)
class TaskScoresConfig(Settings):
    """tasks scored during training"""

    eval_tasks: tuple[str, ...] = flag(
        (),
        affects="execution",
        metavar="TASK",
        help="lm-eval tasks to score during training, such as lambada_openai",
    )
    eval_tasks_interval: int | None = flag(
        None, affects="execution", help="steps between two scorings; required with --eval-tasks"
    )
    eval_tasks_limit: int | None = flag(
        None, affects="execution", help="score only this many examples of each task, from its start (default: all)"
    )
    eval_tasks_data: str | None = flag(
        None,
        affects="execution",
        metavar="DIR",
        help="local copies of the tasks' data, for machines without internet: see tools/evaluate.py",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.eval_tasks:
            for name in ("eval_tasks_interval", "eval_tasks_limit", "eval_tasks_data"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"--{name.replace('_', '-')} {getattr(self, name)}: has no effect without --eval-tasks; add "
                        "the tasks to score, or remove it"
                    )
            return
        if self.eval_tasks_interval is None:
            raise UserError(
                f"--eval-tasks {' '.join(self.eval_tasks)}: needs --eval-tasks-interval; give the number of steps "
                "between two scorings, for example 1000"
            )

    def is_due(self, iteration: int, *, is_last: bool) -> bool:
        """Whether the weights after ``iteration`` steps are scored."""
        if self.eval_tasks_interval is None:
            return False
        return is_last or iteration % self.eval_tasks_interval == 0

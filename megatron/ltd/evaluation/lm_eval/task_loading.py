"""Loading lm-eval's tasks, with one-line errors for what often fails: no internet, too few examples.

Each process needs at least one example of every task, because lm-eval looks at the first. This module needs lm-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.evaluator_utils import get_sample_size
from lm_eval.tasks import TaskManager

from megatron.ltd.errors import UserError


class CheckedTasks(TaskManager):
    """Loads tasks whose examples, after ``limit`` or ``samples``, are shared by ``num_processes``."""

    def __init__(
        self,
        *args: Any,
        num_processes: int = 1,
        limit: float | None = None,
        samples: Mapping[str, Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._num_processes, self._limit, self._samples = num_processes, limit, samples

    def load(self, task_list: Any) -> Any:
        """Raises ``UserError`` if data cannot be downloaded and is not cached, and if there are too few examples."""
        try:
            loaded = super().load(task_list)
        except ConnectionError as error:
            names = [task_list] if isinstance(task_list, str) else task_list
            raise UserError(
                f"--tasks {' '.join(map(str, names))}: data cannot be downloaded ({' '.join(str(error).split())}); "
                "without internet give local copies with --task-data DIR, which tools/prepare_tasks.py writes from "
                "published files"
            ) from None
        if self._num_processes > 1:
            check_examples(loaded["tasks"], self._num_processes, self._limit, self._samples)
        return loaded


def check_examples(
    tasks: Mapping[str, Any],
    num_processes: int,
    limit: float | None,
    samples: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Raises ``UserError`` for a task with fewer examples to score than processes."""
    for name, task in tasks.items():
        number, chosen = len(task.eval_docs), (samples or {}).get(name)
        if chosen is not None:
            number = len(chosen)
        elif limit is not None:
            number = min(number, get_sample_size(task, limit))
        if number < num_processes:
            limited = "" if limit is None else f" with --limit {limit:g}"
            raise UserError(
                f"--tasks {name}: has {number} examples to score{limited}, fewer than the {num_processes} processes "
                "that share them; score more examples, or start fewer processes"
            )

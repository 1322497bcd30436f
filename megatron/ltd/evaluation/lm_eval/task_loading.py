"""lm-eval's tasks as it loads them, with what users meet there said in a line: no internet, too few examples.

Each of several processes needs an example of every task: lm-eval looks at the first of each. This module needs lm-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.evaluator_utils import get_sample_size
from lm_eval.tasks import TaskManager

from megatron.ltd.errors import UserError


class CheckedTasks(TaskManager):
    """Loads tasks of which ``num_processes`` share the examples, or those that ``limit`` or ``samples`` leave."""

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
        """Raises ``UserError`` where data can neither be downloaded nor was before, and where examples are too few."""
        try:
            loaded = super().load(task_list)
        except ConnectionError as error:
            names = [task_list] if isinstance(task_list, str) else task_list
            raise UserError(
                f"--tasks {' '.join(map(str, names))}: data cannot be downloaded ({' '.join(str(error).split())}): "
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
    """Raises ``UserError`` for a task with fewer examples to score than processes that share them."""
    for name, task in tasks.items():
        number, chosen = len(task.eval_docs), (samples or {}).get(name)
        if chosen is not None:
            number = len(chosen)
        elif limit is not None:
            number = min(number, get_sample_size(task, limit))
        if number < num_processes:
            told = "" if limit is None else f" with --limit {limit:g}"
            raise UserError(
                f"--tasks {name}: examples to score{told} are {number}, and each of the {num_processes} processes that "
                "share them needs one: score more, or start fewer processes"
            )

"""Loading lm-eval's tasks, with one-line errors for what often fails: no internet, too few examples, damaged records.

Each process needs at least one example of every task, because lm-eval looks at the first. The fields of the paper's
tasks are checked before (``shapes``); which fields other tasks need only their own code knows, and what it raises for
a local record is a fault of that record. This module needs lm-eval.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from lm_eval.evaluator_utils import get_sample_size
from lm_eval.tasks import TaskManager

from megatron.ltd.errors import UserError, first_line, quiet_log
from megatron.ltd.parallel.agreement import together


class CheckedTasks(TaskManager):
    """Loads tasks whose examples, after ``limit`` or ``samples``, are shared by ``num_processes``.

    ``local``: the folder of ``--task-data``, if the examples come from there.
    """

    def __init__(
        self,
        *args: Any,
        num_processes: int = 1,
        limit: float | None = None,
        samples: Mapping[str, Sequence[int]] | None = None,
        local: Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._num_processes, self._limit, self._samples, self._local = num_processes, limit, samples, local

    def load(self, task_list: Any) -> Any:
        """Raises ``UserError`` if data cannot be downloaded and is not cached, if there are too few examples, and if
        local data cannot be read; the loaded tasks raise it for records that they cannot use.
        """
        names = " ".join(map(str, [task_list] if isinstance(task_list, str) else task_list))
        try:
            with self._blames_records(names), quiet_log("datasets"):
                loaded = super().load(task_list)
        except ConnectionError as error:
            raise UserError(
                f"--tasks {names}: data cannot be downloaded ({' '.join(str(error).split())}); "
                "without internet give local copies with --task-data DIR, which tools/prepare_tasks.py writes from "
                "published files"
            ) from None
        if self._num_processes > 1:
            with self._blames_records(names):
                for name, task in loaded["tasks"].items():
                    self._check_examples(name, task)
        for name, task in loaded["tasks"].items():
            self._guard(name, task)
        return loaded

    def _check_examples(self, name: str, task: Any) -> None:
        """Raises ``UserError`` for a task with fewer examples to score than processes."""
        number, chosen = len(task.eval_docs), (self._samples or {}).get(name)
        if chosen is not None:
            number = len(chosen)
        elif self._limit is not None:
            number = min(number, get_sample_size(task, self._limit))
        if number < self._num_processes:
            limited = "" if self._limit is None else f" with --limit {self._limit:g}"
            raise UserError(
                f"--tasks {name}: has {number} examples to score{limited}, fewer than the {self._num_processes} "
                "processes that share them; score more examples, or start fewer processes"
            )

    def _guard(self, name: str, task: Any) -> None:
        """Let the parts of ``task`` that read a record blame it. All processes build requests at the same time."""
        build, score = task.build_all_requests, task.process_results

        @wraps(build)
        def build_all_requests(*args: Any, **kwargs: Any) -> Any:
            with together(), self._blames_records(name):
                built = build(*args, **kwargs)
                if self._local is not None:
                    _score_in_advance(task)
                return built

        task.build_all_requests = build_all_requests
        task.process_results = self._blaming(name, score)

    def _blaming(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def blaming(*args: Any, **kwargs: Any) -> Any:
            with self._blames_records(name):
                return function(*args, **kwargs)

        return blaming

    @contextmanager
    def _blames_records(self, names: str) -> Iterator[None]:
        """Turn what the block raises because of a record of local data into a ``UserError``."""
        try:
            yield
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:
            if self._local is None:
                raise
            cause = error.__cause__ or error
            raise UserError(
                f"--task-data {self._local}: lm-eval cannot use a record of {names} ({type(cause).__name__}: "
                f"{first_line(cause)}); correct its files, or leave the task out"
            ) from None


def _score_in_advance(task: Any) -> None:
    """Score each example with made-up likelihoods, so that a record without a usable answer fails now, not hours later.

    Texts that a model generates cannot be made up: metrics may refuse an empty one.
    """
    kinds = {"multiple_choice", "loglikelihood"}
    by_example: dict[Any, list[Any]] = {}
    for request in task.instances if task.OUTPUT_TYPE in kinds else ():
        by_example.setdefault(request.doc_id, []).append(request)
    for requests in by_example.values():
        answers = [(-1.0 - place, False) for place in range(len(requests))]
        task.process_results(copy.deepcopy(requests[0].doc), answers)

"""Compares runs on lm-eval's tasks, for ``tools/compare_runs.py``.

    average        = (s_1 + ... + s_n) / n                       over the n tasks, all with equal weight
    standard error = sqrt(e_1^2 + ... + e_n^2) / n               of the average; e_i that of task i

Only scores that are shares of correct answers (accuracies, exact match, F1) are averaged, and only of tasks that every
run has. The standard error is that of other test questions of the same kind, with independent tasks; it does not
include the seed of training. Perplexities are shown below the average.

Which metric of a task counts: the one that the paper reports (``paper_tasks``: ``acc_norm`` for HellaSwag, PIQA, ARC
and OpenBookQA, F1 for ReCoRD); for other tasks ``acc``, else ``exact_match``, else the first that lm-eval lists.
``--metrics`` overrides it. Not here: the text of the table (``task_table_text``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.lm_eval.paper_tasks import PAPER_GROUP, PAPER_TASKS, PAPER_TASKS_BY_NAME
from megatron.ltd.flags import Settings, flag
from megatron.ltd.reports.task_results import RunResults, Score, TaskResult, read_results

SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "f1", "mc1", "mc2"})
"""Metrics between 0 and 1, where higher is better: shown in percent, and averaged."""
_NUM_PAPER_TASKS = sum(task.metric in SHARES for task in PAPER_TASKS)


@dataclass(frozen=True)
class CompareConfig(Settings):
    """comparison"""

    results: tuple[str, ...] = flag(
        (), metavar="PATH", help="result files of lm-eval, or folders, of which the newest file counts",
        required="give result files of lm-eval, or their folders",
    )  # fmt: skip
    names: tuple[str, ...] = flag(
        (), metavar="NAME", help="their names in the table (default: the names of the folders)"
    )
    tasks: tuple[str, ...] = flag(
        (), metavar="TASK", help=f"only these tasks; {PAPER_GROUP} means all of the paper's (default: all)"
    )
    metrics: tuple[str, ...] = flag((), metavar="TASK=METRIC", help="metrics to show, such as hellaswag=acc")
    format: str = flag("markdown", choices=("markdown", "latex"), help="format of the table")
    output: str | None = flag(None, metavar="FILE", help="write the table to this new file")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.names and len(self.names) != len(self.results):
            raise UserError(
                f"--names has {len(self.names)} values and --results {len(self.results)}: give one name per result"
            )
        for metric in self.metrics:
            if not all(metric.partition("=")):
                raise UserError(f"--metrics {metric}: is not a task and its metric; give them as in hellaswag=acc")
        if self.output is not None and Path(self.output).exists():
            raise UserError(f"--output {self.output}: exists; give another file, or move it away")

    @property
    def metric_by_task(self) -> dict[str, str]:
        return {task: metric for task, _, metric in (metric.partition("=") for metric in self.metrics)}


@dataclass(frozen=True)
class Row:
    """One task in every run."""

    task: str
    title: str
    metric: str
    lower_is_better: bool
    scores: tuple[Score | None, ...]
    """One per run; None if the run does not have this task."""

    @property
    def is_share(self) -> bool:
        return self.metric.partition(",")[0] in SHARES

    @property
    def is_averaged(self) -> bool:
        return self.is_share and None not in self.scores


@dataclass(frozen=True)
class Comparison:
    """The content of a table."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    """The paper's tasks in its order, then other tasks by name."""
    averages: tuple[Score, ...] | None
    """One per run; None if the runs have no task in common that is averaged."""
    num_averaged: int
    notes: tuple[str, ...]


def compare(config: CompareConfig) -> Comparison:
    """Read and compare the results. Raises ``UserError``."""
    names = config.names or (None,) * len(config.results)
    runs = [read_results(Path(path), name) for path, name in zip(config.results, names, strict=True)]
    for run in runs:
        if [other.name for other in runs].count(run.name) > 1:
            raise UserError(f"--names: two of the results have the name {run.name}; give each its own name")
    rows = tuple(_row(task, runs, config.metric_by_task) for task in _tasks(runs, config))
    averaged = [row for row in rows if row.is_averaged]
    averages = tuple(map(average, zip(*(row.scores for row in averaged), strict=True))) if averaged else None
    notes = (*_notes_on_average(rows, runs), *_notes_on_runs(rows, runs))
    return Comparison(tuple(run.name for run in runs), rows, averages, len(averaged), notes)


def average(scores: Sequence[Score | None]) -> Score:
    """Mean of the scores and its standard error, which is None if a score has none."""
    values = [score.value for score in scores if score is not None]
    errors = [score.standard_error for score in scores if score is not None and score.standard_error is not None]
    assert values and len(values) == len(scores)
    error = math.hypot(*errors) / len(values) if len(errors) == len(values) else None
    return Score(sum(values) / len(values), error)


def _tasks(runs: Sequence[RunResults], config: CompareConfig) -> list[str]:
    """The tasks of the table, in its order."""
    found = {task for run in runs for task in run.tasks}
    paper = [task.name for task in PAPER_TASKS]
    if config.tasks:
        asked = {name for task in config.tasks for name in (paper if task == PAPER_GROUP else [task])}
        unknown = sorted(asked - found - (set(paper) if PAPER_GROUP in config.tasks else set()))
        if unknown or not asked & found:
            raise UserError(
                f"--tasks {' '.join(config.tasks)}: no result has {', '.join(unknown) or 'one of them'}; they have "
                f"{', '.join(sorted(found))}"
            )
        found &= asked
    for task in config.metric_by_task:
        if task not in found:
            raise UserError(f"--metrics {task}=...: no result has this task; they have {', '.join(sorted(found))}")
    return [task for task in paper if task in found] + sorted(found - set(paper))


def _row(task: str, runs: Sequence[RunResults], chosen: Mapping[str, str]) -> Row:
    results = [run.tasks.get(task) for run in runs]
    present = [result for result in results if result is not None]
    metric = _metric(task, present, chosen.get(task))
    paper_task = PAPER_TASKS_BY_NAME.get(task)
    return Row(
        task,
        paper_task.title if paper_task else task,
        metric,
        any(metric.partition(",")[0] in result.lower_is_better for result in present),
        tuple(None if result is None else result.scores[metric] for result in results),
    )


def _metric(task: str, results: Sequence[TaskResult], chosen: str | None) -> str:
    """The metric to show; every run with the task must have it."""
    common = [metric for metric in results[0].scores if all(metric in result.scores for result in results)]
    if chosen is not None:
        if chosen not in common:
            known = ", ".join(metric for metric in common if not metric.endswith(",none")) or "no metric in common"
            raise UserError(f"--metrics {task}={chosen}: the results have {known}")
        return chosen
    paper_task = PAPER_TASKS_BY_NAME.get(task)
    preferred = [*([paper_task.metric] if paper_task else []), "acc", "exact_match"]
    if not common:
        raise UserError(f"--results: {task} has no metric in common; leave it out with --tasks")
    return next((metric for metric in preferred if metric in common), common[0])


def _notes_on_average(rows: Sequence[Row], runs: Sequence[RunResults]) -> Iterator[str]:
    missing = {
        row.task: [run.name for run, score in zip(runs, row.scores, strict=True) if score is None] for row in rows
    }
    left_out = [
        f"{row.task} (missing in {', '.join(missing[row.task])})" for row in rows if row.is_share and missing[row.task]
    ]
    if left_out:
        yield f"the average is over the tasks that all have; left out: {', '.join(left_out)}"
    averaged = [row.task for row in rows if row.is_averaged]
    paper = [task for task in averaged if task in PAPER_TASKS_BY_NAME]
    if paper and len(paper) == len(averaged) < _NUM_PAPER_TASKS:
        yield (
            f"the average is over {len(paper)} of the paper's {_NUM_PAPER_TASKS} tasks: it is not to be compared with "
            "published averages"
        )
    for row in rows:
        paper_task = PAPER_TASKS_BY_NAME.get(row.task)
        if paper_task and row.metric != paper_task.metric:
            yield f"{row.task}: {row.metric}, where the paper reports {paper_task.metric}"


def _notes_on_runs(rows: Sequence[Row], runs: Sequence[RunResults]) -> Iterator[str]:
    """Differences between the runs, and tasks of which only a part was scored."""
    for run in runs:
        if run.older:
            yield f"{run.name}: {', '.join(sorted(run.older))} from older result files of the same model"
        if run.num_unused:
            yield f"{run.name}: {run.num_unused} older result files left out, {run.path.name} being the newest"
    yield from _difference("lm-eval's versions", {run.name: run.lm_eval_version for run in runs})
    for row in rows:
        results = {run.name: run.tasks[row.task] for run in runs if row.task in run.tasks}
        yield from _difference(f"{row.task}: task versions", {name: one.version for name, one in results.items()})
        yield from _difference(
            f"{row.task}: few-shot examples", {name: one.num_fewshot for name, one in results.items()}
        )
        counts = {name: one.num_samples for name, one in results.items()}
        yield from _difference(f"{row.task}: samples", counts)
        hashes = {one.content_hash for one in results.values() if one.content_hash is not None}
        if len(hashes) > 1 and len(set(counts.values())) == 1:
            yield f"{row.task}: not the same documents or prompts in all"
        parts = [
            f"{name} {one.num_samples} of {one.num_all_samples}"
            for name, one in results.items()
            if one.num_samples is not None and one.num_all_samples is not None and one.num_samples < one.num_all_samples
        ]
        if parts:
            yield f"{row.task}: a part of the samples only ({', '.join(parts)})"


def _difference(what: str, values: Mapping[str, object]) -> Iterator[str]:
    known = {name: value for name, value in values.items() if value is not None}
    if len(set(map(str, known.values()))) > 1:
        yield f"{what} differ: " + ", ".join(f"{value} in {name}" for name, value in known.items())

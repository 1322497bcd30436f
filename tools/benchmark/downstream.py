"""Score the models of the evidence on LAMBADA, HellaSwag, ARC-Easy and BoolQ: is a loss hidden in the loss?

    python tools/benchmark/evidence.py --part D                                    # trains, and keeps the checkpoints
    python tools/benchmark/downstream.py --task-data runs/tasks > tools/benchmark/results/downstream.md

Takes the runs of one setting that ``evidence.py`` left in --work-dir, each arm at its best learning rate, and scores
them with ``tools/evaluate.py`` on the examples in --task-data, which ``tools/prepare_tasks.py`` writes. Arms are
compared by their differences to the dense runs of the same seeds. Prints tables in Markdown, and a text that each arm
writes. Scores are kept in --work-dir, so that the command can be stopped and repeated.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.corpus import REPOSITORY
from common.estimate import Estimate, estimate, paired, text
from common.page import about, facts, run_python
from evidence.plan import DENSE, PLAN, Run, planned_runs
from evidence.records import read_records
from evidence.summary import SettingSummary

from megatron.ltd.errors import UserError, run_command
from megatron.ltd.flags import Settings, flag, read_command
from megatron.ltd.format import markdown_table
from megatron.ltd.reports.task_results import TaskResult, read_results

CHANCE = {"lambada_openai": 0.0, "hellaswag": 0.25, "arc_easy": 0.25, "boolq": 0.5}
"""Tasks, and the share of correct answers of somebody who guesses"""
LOG_PERPLEXITY = "log perplexity"
"""Nats for the last word of a passage; lm-eval's perplexity is its exponential"""
METRICS = [
    ("lambada_openai", LOG_PERPLEXITY),
    ("lambada_openai", "acc"),
    ("hellaswag", "acc_norm"),
    ("arc_easy", "acc_norm"),
    ("boolq", "acc"),
]
"""The scores to show: a task and one of its metrics"""

Scores = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class DownstreamConfig(Settings):
    """downstream"""

    task_data: str = flag(
        None, metavar="DIR", help=f"local data of {', '.join(CHANCE)}",
        required="give the folder that tools/prepare_tasks.py wrote",
    )  # fmt: skip
    tasks: tuple[str, ...] = flag(tuple(CHANCE), choices=tuple(CHANCE), metavar="TASK", help="the tasks to score")
    setting: str = flag("t25", metavar="NAME", help="a setting of the evidence")
    plan: str = flag(f"{PLAN}", metavar="FILE", help="the plan of evidence.py")
    work_dir: str = flag("runs/evidence", metavar="DIR", help="--work-dir of evidence.py")
    records: str = flag(
        f"{REPOSITORY / 'tools/benchmark/results/evidence.jsonl'}", metavar="FILE", help="its records of finished runs"
    )
    limit: int | None = flag(None, metavar="N", help="examples of each task (default: all)")
    prompt: str = flag("It was a dark evening, and the old man", help="what the written texts begin with")
    new_tokens: int = flag(96, help="tokens of a written text")

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """The columns of the table."""
        return [metric for metric in METRICS if metric[0] in self.tasks]


def main() -> None:
    """Score every finished run of the setting, and print the tables."""
    (config,) = read_command(__doc__, DownstreamConfig)
    found = read_records(Path(config.records))
    setting = SettingSummary(config.setting, [run for run in found.values() if run.setting == config.setting])
    arms = kept_runs(config, setting)
    scores: dict[str, dict[int, Scores]] = {}
    for arm, runs in arms.items():
        for seed, run in sorted(runs.items()):
            print(f"{config.setting}, {arm}, seed {seed}", file=sys.stderr, flush=True)
            scores.setdefault(arm, {})[seed] = score(config, run)
    print("\n".join(page(config, setting, scores, {arm: written(config, runs) for arm, runs in arms.items()})))


def kept_runs(config: DownstreamConfig, setting: SettingSummary) -> dict[str, dict[int, Run]]:
    """The runs with a checkpoint, by arm, dense first, and by seed; each arm at its best learning rate.

    Raises ``UserError`` if there is none of dense.
    """
    kept: dict[str, dict[int, Run]] = {DENSE: {}}
    for run in planned_runs(Path(config.plan)):
        if run.setting.name != config.setting or run.seed not in setting.losses(run.arm, run.lr):
            continue
        if run.lr == setting.compared_rate(run.arm) and Path(checkpoints(config, run)).is_dir():
            kept.setdefault(run.arm, {})[run.seed] = run
    if not kept[DENSE]:
        raise UserError(
            f"--work-dir {config.work_dir}: has no finished dense run of {config.setting}; run evidence.py there first"
        )
    return kept


def score(config: DownstreamConfig, run: Run) -> Scores:
    """The scores of a run by task and metric."""
    folder = Path(config.work_dir) / run.name / "scores" / "-".join([*config.tasks, f"{config.limit or 'all'}"])
    if not list(folder.rglob("results_*.json")):
        command = ["tools/evaluate.py", "--load", checkpoints(config, run), "--tasks", *config.tasks, "--device", "cpu"]
        command += ["--task-data", config.task_data, "--output_path", f"{folder.resolve()}"]
        execute([*command, *(() if config.limit is None else ("--limit", f"{config.limit}"))])
    tasks = read_results(folder).tasks
    return {(task, metric): value_of(tasks[task], metric) for task, metric in config.metrics}


def value_of(result: TaskResult, metric: str) -> float:
    """The value of a metric of lm-eval, or of the logarithm of its perplexity."""
    if metric == LOG_PERPLEXITY:
        return math.log(result.scores["perplexity"].value)
    return result.scores[metric].value


def written(config: DownstreamConfig, runs: Mapping[int, Run]) -> str:
    """A text that the run of an arm's lowest seed writes; every arm draws with the same seed."""
    command = ["tools/generate_text.py", "--load", checkpoints(config, runs[min(runs)]), "--prompt", config.prompt]
    command += ["--temperature", "0.7", "--top-k", "40", "--seed", "1", "--device", "cpu"]
    return " ".join(execute([*command, "--num-tokens-to-generate", f"{config.new_tokens}"]).split())


def checkpoints(config: DownstreamConfig, run: Run) -> str:
    """The folder of a run's checkpoints."""
    return f"{(Path(config.work_dir) / run.name / 'checkpoints').resolve()}"


def execute(command: Sequence[str]) -> str:
    """What a tool of this repository prints. Raises ``UserError`` with its last line if it fails."""
    script, *flags = command
    ended, _ = run_python([f"{REPOSITORY / script}", *flags], env={**os.environ, "OMP_NUM_THREADS": "1"})
    if ended.returncode:
        raise UserError(f"{' '.join(command[:3])}: failed: {ended.stderr.strip().splitlines()[-1]}")
    return ended.stdout


def page(
    config: DownstreamConfig,
    setting: SettingSummary,
    scores: Mapping[str, Mapping[int, Scores]],
    texts: Mapping[str, str],
) -> list[str]:
    """The lines of the page."""
    titles = [f"{task}, {metric}" for task, metric in config.metrics]
    dense, dense_losses = scores[DENSE], setting.losses(DENSE)
    rows, differences = [], []
    for arm, found in scores.items():
        losses = {seed: setting.losses(arm)[seed] for seed in found}
        means = [cell(metric, estimate([*of(found, metric).values()])) for metric in config.metrics]
        rows.append([arm, f"{len(found)}", text(estimate([*losses.values()]), 4), *means])
        if arm != DENSE:
            gaps = [cell(metric, paired(of(found, metric), of(dense, metric)), sign=True) for metric in config.metrics]
            differences.append([arm, text(paired(losses, dense_losses), 4, sign=True), *gaps])
    chances = [f"{CHANCE[task]:.0%}" if metric != LOG_PERPLEXITY else "" for task, metric in config.metrics]
    rows.append(["guessing", "", "", *chances])
    return [
        f"# Downstream: models of the evidence's setting {config.setting} on tasks",
        "",
        facts(about("downstream.py", "torch", "megatron-core", "lm-eval")),
        "- arms: those of [evidence.md](evidence.md), each at its best learning rate; ± is the standard error of seeds",
        "",
        markdown_table(rows, ("arm", "seeds", "loss", *titles)),
        "",
        markdown_table(differences, ("difference from dense, by seed", "loss", *titles)),
        "",
        f'Texts that continue "{config.prompt}" (temperature 0.7, top-k 40, one seed):',
        "",
        *(f"- **{arm}**: {written}" for arm, written in texts.items()),
    ]


def of(by_seed: Mapping[int, Scores], metric: tuple[str, str]) -> dict[int, float]:
    """One metric by seed."""
    return {seed: found[metric] for seed, found in by_seed.items()}


def cell(metric: tuple[str, str], value: Estimate | None, *, sign: bool = False) -> str:
    """A score: nats with three digits, a share of correct answers in percent."""
    if metric[1] == LOG_PERPLEXITY:
        return text(value, 3, sign=sign)
    return text(value, 1, sign=sign, percent=True)


if __name__ == "__main__":
    run_command(main)

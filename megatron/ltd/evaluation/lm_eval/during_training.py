"""Scores on tasks during training: ``--eval-tasks``.

    find_tasks    checks names, local data and lm-eval itself before the run is built; loads the tasks
    build_scorer  scores the current weights on all data-parallel ranks -> {"lambada_openai/acc": 0.31, ...}

``tools/evaluate.py`` gives the same scores for a checkpoint of the same step, with standard errors.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.lm_eval.harness_command import need_lm_eval
from megatron.ltd.evaluation.local_tasks.overlays import task_folder
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.tokenizers.config import unpadded_vocab_size
from megatron.ltd.training.task_scores import Scorer, TaskScoresConfig

if TYPE_CHECKING:
    from megatron.ltd.training.run import Run


def find_tasks(flags: TaskScoresConfig, parallel: ParallelConfig) -> Any:
    """The tasks of ``--eval-tasks``, loaded by lm-eval. The data-parallel processes share their examples.

    Raises ``UserError`` for unknown tasks, and for more processes than examples.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1")) // parallel.model_parallel_size
    if flags.eval_tasks_data is not None:  # before anything of Hugging Face's is imported
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    need_lm_eval()
    data = None if flags.eval_tasks_data is None else Path(flags.eval_tasks_data)
    with _quiet(), _in_our_flags(), task_folder(flags.eval_tasks, data) as folder:
        from megatron.ltd.evaluation.lm_eval.task_loading import CheckedTasks

        manager = CheckedTasks(
            include_path=str(folder),
            include_defaults=data is None,
            num_processes=num_processes,
            limit=flags.eval_tasks_limit,
            local=data,
        )
        return manager.load(list(flags.eval_tasks))


def build_scorer(run: Run, tasks: Any) -> Scorer:
    """A function that scores ``tasks`` with the current weights; the first process gets the scores, the others none."""
    from lm_eval.evaluator import evaluate
    from megatron.core.utils import unwrap_model

    from megatron.ltd.evaluation.causal_lm import CausalLM
    from megatron.ltd.evaluation.lm_eval.harness import HarnessModel
    from megatron.ltd.evaluation.scoring import BatchSize

    (chunk,) = run.state.chunks
    tokenizer = run.workload.tokenizer  # type: ignore[attr-defined]  # only a GPT has these flags
    vocab_size = unpadded_vocab_size(run.config.tokenizer, tokenizer.vocab_size)
    model = CausalLM(unwrap_model(chunk), run.config.model, vocab_size, run.mesh, num_text_ids=tokenizer.vocab_size)
    # As many tokens as a microbatch: these fit even with the activations of the backward pass.
    batch = BatchSize(run.config.training.micro_batch_size * run.config.model.seq_length)
    asked = HarnessModel(model, tokenizer, batch, seed=run.config.training.seed)

    def score() -> Mapping[str, float]:
        """Score the current weights; empty if a task cannot be scored, which the log then says."""
        try:
            with _quiet(), _in_our_flags():
                found = evaluate(
                    asked, tasks, limit=run.config.scores.eval_tasks_limit, bootstrap_iters=0, log_samples=False
                )
        except UserError as error:  # the same on all ranks; the run is worth more than a score
            run.log.print_line(f"not scored: {error}")
            return {}
        return {} if found is None else _figures(found["results"])

    return score


def _figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """lm-eval's results by "task/metric"; with a filter the key is "task/metric,filter"."""
    return {
        f"{task}/{metric.removesuffix(',none')}": float(value)
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if isinstance(value, (int, float)) and "," in metric and "_stderr," not in metric
    }


@contextlib.contextmanager
def _in_our_flags() -> Iterator[None]:
    """Rename the flags in errors: those of ``tools/evaluate.py`` to those of a training command."""
    try:
        yield
    except UserError as error:
        message = re.sub("--tasks(?=[ :])", "--eval-tasks", str(error)).replace("--task-data", "--eval-tasks-data")
        message = message.replace("--limit ", "--eval-tasks-limit ")
        raise UserError(message) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide lm-eval's log and progress bars; the log of the run has the scores."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)

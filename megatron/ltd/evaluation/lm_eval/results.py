"""What becomes of lm-eval's results: its own files, a table on the console, Weights & Biases and Trackio."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.loggers import EvaluationTracker, TrackioLogger, WandbLogger
from lm_eval.utils import handle_non_serializable

from megatron.ltd.format import markdown_table

_DIRECTION = {"True": "higher is better", "False": "lower is better"}


@dataclass(frozen=True)
class Report:
    """Where the results of an evaluation go."""

    asked: Any
    """lm-eval's ``EvaluatorConfig``."""
    tracker: EvaluationTracker
    loggers: tuple[Any, ...]

    @classmethod
    def open(cls, asked: Any) -> Report:
        """Before the evaluation, so that a service that cannot be reached is known early."""
        places = dict(asked.hf_hub_log_args)
        places |= {"output_path": asked.output_path} if asked.output_path else {}
        places |= {"token": os.environ["HF_TOKEN"]} if os.environ.get("HF_TOKEN") else {}
        loggers: list[Any] = [WandbLogger(asked.wandb_args, asked.wandb_config_args)] if asked.wandb_args else []
        loggers += [TrackioLogger(asked.trackio_args)] if asked.trackio_args else []
        return cls(asked, EvaluationTracker(**places), tuple(loggers))

    def write(self, results: dict[str, Any]) -> None:
        """Write the files, print the table."""
        asked = self.asked
        samples: Any = results.pop("samples", None) if asked.log_samples else None
        if asked.show_config:
            print(json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False))
        for logger in self.loggers:
            self._log(logger, results, samples)
        self.tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"] if samples is not None else ():
            self.tracker.save_results_samples(task_name=task, samples=samples[task])
        if self.tracker.push_results_to_hub or self.tracker.push_samples_to_hub:
            self.tracker.recreate_metadata_card()
        print(
            f"{asked.model} ({asked.model_args}), gen_kwargs: ({asked.gen_kwargs}), limit: {asked.limit}, "
            f"num_fewshot: {asked.num_fewshot}, batch_size: {asked.batch_size}"
        )
        for column, title in (("results", "task"), ("groups", "group")):
            if results.get(column):
                print(score_table(results, column, title))

    def _log(self, logger: Any, results: dict[str, Any], samples: Any) -> None:
        try:
            logger.post_init(results)
            logger.log_eval_result()
            if samples is not None:
                logger.log_eval_samples(samples)
            getattr(logger, "finish", lambda: logger.run.finish())()
        except Exception as error:  # results that took hours are written whatever the service answers
            print(f"{type(logger).__name__} failed: {error}")


def score_table(results: Mapping[str, Any], column: str, title: str) -> str:
    """The scores of ``results[column]``, with their standard errors, as a table in Markdown."""
    rows = []
    for name, found in results[column].items():
        higher_is_better = results.get("higher_is_better", {}).get(name) or {}
        for key in sorted(key for key in found if "," in key and "_stderr," not in key):
            metric, _, filter_name = key.partition(",")
            rows.append(
                (
                    str(found.get("alias", name)),
                    str(results.get("versions", {}).get(name, "-")),
                    filter_name,
                    str(results.get("n-shot", {}).get(name, "-")),
                    metric,
                    _DIRECTION.get(str(higher_is_better.get(metric)), ""),
                    _readable(found[key]),
                    _readable(found.get(f"{metric}_stderr,{filter_name}")),
                )
            )
    header = (title, "version", "filter", "shots", "metric", "", "score", "standard error")
    return markdown_table(rows, header, num_labels=6)


def _readable(value: Any) -> str:
    """Four decimals; of large numbers, such as the perplexity of an untrained model, four digits."""
    if isinstance(value, float):
        return format(value, ".4f" if abs(value) < 1e6 else ".4g")
    return "-" if value in (None, "N/A") else str(value)

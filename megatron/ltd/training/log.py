"""The log of a run: console lines, a progress bar, ``metrics.jsonl``, TensorBoard and Weights & Biases.

    config.yaml     the settings of the last start, for --config
    metrics.jsonl   one JSON object per line: "kind" is run (once per start), train (every step), validation, test
                    (after the last step) or scores
    console         one line every --log-interval steps, with the means over them
    progress bar    on a terminal, with the time left estimated from the FLOPs left: steps grow as kept tokens grow

After a resume lines are appended; if an iteration appears twice, the later line counts. TensorBoard and Weights &
Biases show each step once (``writers``).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from megatron.ltd.errors import RunStopped, writes_to
from megatron.ltd.format import format_bytes, format_count, format_seconds
from megatron.ltd.machine import fix_of, is_read_only
from megatron.ltd.small_files import write_whole
from megatron.ltd.training.config import LoggingConfig
from megatron.ltd.training.throughput import Throughput
from megatron.ltd.training.writers import imported, open_mlflow, open_tensorboard, open_wandb

_LONGEST_LINE_BYTES = 1 << 20

_EVALUATION_SCALARS = {"loss": "lm loss {}", "perplexity": "lm loss {} ppl"}  # Megatron's names
_SCALARS = {  # Megatron's names, then ours
    "loss": "lm loss",
    "lr": "learning-rate",
    "grad_norm": "grad-norm",
    "loss_scale": "loss-scale",
    "skipped_updates": "skipped-updates",
    "step_seconds": "iteration-time",
    "batch_size": "batch-size",
    "kept_tokens": "seqlen/random_ltd_reserved_length",
    "consumed_layer_tokens": "consumed-layer-tokens",
    "consumed_tokens": "consumed-tokens",
    "tflops_per_device": "throughput",
    "mfu": "mfu",
    "peak_memory_bytes": "mem-max-allocated-bytes",
    "params_norm": "params-norm",
    "num_zeros": "num-zeros",
}


class RunLog:
    """Everything a run logs. ``enabled`` is False on all ranks but one, on which every call does nothing."""

    def __init__(
        self,
        config: LoggingConfig,
        folder: Path,
        enabled: bool,
        first_step: int,
        num_steps: int,
        flops_left: int,
        throughput: Throughput,
        settings: Mapping[str, Any],
        save_folder: Path | None = None,
    ) -> None:
        """``settings`` of the run, for Weights & Biases and MLflow; ``save_folder`` of its checkpoints."""
        self._config = config
        self._enabled = enabled
        self._watched_folder = save_folder
        self.folder = folder
        self._num_steps = num_steps
        self._flops_left = flops_left
        self._throughput = throughput
        self._interval: list[Mapping[str, Any]] = []
        self._seconds_per_flop = 0.0
        self._bar = self._tensorboard = None
        self._services: list[Any] = []
        if not enabled:
            return
        if config.tensorboard_dir is not None:
            self._tensorboard = open_tensorboard(config.tensorboard_dir, first_step)
        modules: dict[Callable[..., Any], Any] = {}  # imported before the log is opened
        if config.wandb_project is not None:
            modules[open_wandb] = imported("wandb", f"--wandb-project {config.wandb_project}", "wandb")
        if config.mlflow_experiment is not None:
            flag = f"--mlflow-experiment {config.mlflow_experiment}"
            modules[open_mlflow] = imported("mlflow", flag, "mlflow or mlflow-skinny", "mlflow")
        self._metrics = _open_metrics(folder)
        self._services = [open_service(module, config, folder, settings) for open_service, module in modules.items()]
        if config.progress and sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps, {elapsed} elapsed{postfix}"
            self._bar = tqdm(total=num_steps, initial=first_step, bar_format=layout, dynamic_ncols=True, leave=False)

    def settings(self, text: str) -> None:
        """Write the settings of the run as ``config.yaml`` beside metrics.jsonl."""
        if self._enabled:
            path = Path(self._metrics.name).with_name("config.yaml")
            with writes_to(f"--log-dir {path.parent}: {path.name}", "choose a folder that you own"):
                write_whole(path, text.encode())

    def print_line(self, text: str) -> None:
        """One line for the user."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def run(self, record: Mapping[str, Any]) -> None:
        """The first line of a start: config, versions, data."""
        self._write("run", {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **record})

    def train(self, record: Mapping[str, Any]) -> None:
        """One step. ``record`` holds the fields of a train line and ``batch_size``, ``seq_length``."""
        if not self._enabled:
            return
        record = {**record, **self._throughput.measures(record["step_flops"], record["step_seconds"])}
        self._write("train", record)
        self._scalars({name: record[key] for key, name in _SCALARS.items() if key in record}, record["iteration"])
        self._flops_left -= record["step_flops"]
        latest = record["step_seconds"] / record["step_flops"]
        self._seconds_per_flop = 0.9 * self._seconds_per_flop + 0.1 * latest if self._seconds_per_flop else latest
        if self._bar is not None:
            self._bar.set_postfix_str(f"{format_seconds(self._seconds_left)} left", refresh=False)
            self._bar.update(1)
        self._interval.append(record)
        if record["iteration"] % self._config.log_interval == 0 or record["iteration"] == self._num_steps:
            self.print_line(self._interval_line())
            self._interval = []
            self._check_save_folder()

    def _check_save_folder(self) -> None:
        """Print once that checkpoints cannot be saved any more, long before the next one is due."""
        if self._watched_folder is not None and is_read_only(self._watched_folder):
            self.print_line(
                f"warning: --save {self._watched_folder}: the file system has become read-only, and the next save will "
                "fail and end the run; make it writable before then, the run goes on meanwhile"
            )
            self._watched_folder = None

    def evaluation(self, kind: str, iteration: int, measures: Mapping[str, float]) -> None:
        """One evaluation on "validation" or "test" data: the measures of the objective, "loss" first.

        Those of one of several sets are "name/loss", and so on.
        """
        self._write(kind, {"iteration": iteration, **measures})
        self._scalars({_scalar(kind, name): value for name, value in measures.items()}, iteration)
        shown = " | ".join(_spelled(name, value) for name, value in measures.items())
        self.print_line(f"step {iteration:>{len(str(self._num_steps))}} | {kind} {shown}")

    def scores(self, iteration: int, scores: Mapping[str, float]) -> None:
        """Scores of the weights after ``iteration`` steps, by "task/metric"."""
        self._write("scores", {"iteration": iteration, **scores})
        self._scalars(scores, iteration)
        for task, metrics in groupby(scores.items(), key=lambda score: score[0].partition("/")[0]):
            shown = ", ".join(f"{name.partition('/')[2]} {_score(value)}" for name, value in metrics)
            self.print_line(f"step {iteration:>{len(str(self._num_steps))}} | {task} {shown}")

    def close(self) -> None:
        """Close the files and the progress bar."""
        if not self._enabled:
            return
        with contextlib.suppress(OSError):  # a failed write has already ended the run
            self._metrics.close()
        if self._bar is not None:
            self._bar.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        for service in self._services:
            service.finish()

    @property
    def _seconds_left(self) -> float:
        return self._seconds_per_flop * max(self._flops_left, 0)

    def _interval_line(self) -> str:
        records, last = self._interval, self._interval[-1]
        seconds = sum(record["step_seconds"] for record in records)
        tokens = sum(record["batch_size"] for record in records) * last["seq_length"]
        flops = sum(record["step_flops"] for record in records)
        saved = 1.0 - flops / sum(record["dense_step_flops"] for record in records)
        skipped = sum(record["skipped_updates"] for record in records)
        depth = sum(record["depth"] for record in records) / len(records)
        peaks = [record["peak_memory_bytes"] for record in records if "peak_memory_bytes" in record]
        parts = [
            f"step {last['iteration']:>{len(str(self._num_steps))}}/{self._num_steps}",
            f"loss {sum(record['loss'] for record in records) / len(records):.4f}",
            f"lr {last['lr']:.2e}",
            f"grad norm {last['grad_norm']:.2f}",
            *([f"{skipped} skipped, loss scale {last['loss_scale']:g}"] if skipped else []),
            *([f"params norm {last['params_norm']:.2f}"] if "params_norm" in last else []),
            *([f"zeros in grad {last['num_zeros']:,}"] if "num_zeros" in last else []),
            f"kept {last['kept_tokens']}/{last['seq_length']}",
            *([f"depth {depth:.1f}/{last['num_layers']}"] if depth < last["num_layers"] else []),
            f"FLOPs saved {100.0 * saved:4.1f} %",
            f"{format_count(tokens / seconds)} tokens/s",
            *self._throughput.shown(flops, seconds),
            *([f"peak memory {format_bytes(max(peaks))}"] if peaks else []),
            f"{format_seconds(self._seconds_left)} left",
        ]
        return " | ".join(parts)

    def _write(self, kind: str, record: Mapping[str, Any]) -> None:
        if self._enabled:
            finite = {key: None if _not_finite(value) else value for key, value in record.items()}  # JSON has no NaN
            try:
                self._metrics.write(json.dumps({"kind": kind, **finite}, allow_nan=False) + "\n")
                self._metrics.flush()
            except OSError as error:
                raise RunStopped(
                    f"{self._metrics.name} cannot be written ({error.strerror}): {fix_of(error.errno)}, then continue "
                    "with --load"
                ) from None

    def _scalars(self, scalars: Mapping[str, float], iteration: int) -> None:
        if self._tensorboard is not None:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name, value, iteration)
        for service in self._services:
            service.log(dict(scalars), step=iteration)


def _score(value: float) -> str:
    """A score as text: an accuracy, or a perplexity, which is huge early in training."""
    return format(value, ".4f" if abs(value) < 1e4 else ".4g")


def _scalar(kind: str, name: str) -> str:
    """The name of a measure for TensorBoard and Weights & Biases, which group by what stands before a slash."""
    of_set, _, measure = name.rpartition("/")
    scalar = _EVALUATION_SCALARS.get(measure, f"{measure} {{}}").format(kind)
    return f"{scalar}/{of_set}" if of_set else scalar


def _spelled(name: str, value: float) -> str:
    """A measure as text for the console."""
    of_set, _, measure = name.rpartition("/")
    form = ".4f" if measure != "perplexity" else ".2f" if value < 1e4 else ".4g"
    return f"{of_set}{' ' if of_set else ''}{measure.replace('_', ' ')} {value:{form}}"


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _open_metrics(folder: Path) -> Any:
    path = folder / "metrics.jsonl"
    with writes_to(f"--log-dir {folder}", "choose a folder that you can write to"):
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _remove_partial_line(path)
        return path.open("a", encoding="utf-8")


def _remove_partial_line(path: Path) -> None:
    """Remove an incomplete last line, which a killed run leaves; its step will be computed again."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        tail_start = max(0, end - _LONGEST_LINE_BYTES)
        file.seek(tail_start)
        tail = file.read(end - tail_start)
        if tail and not tail.endswith(b"\n"):
            file.truncate(tail_start + tail.rfind(b"\n") + 1)

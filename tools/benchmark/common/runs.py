"""Executes training runs, several at a time, each in its own process, until they end or are asked to stop.

    RUN/metrics.jsonl     every step, written by the run      RUN/console.log    the output of the run
    RUN/attempts.jsonl    one line per start and per end, with CPU and wall seconds of the process
    RUN/result.json       results of a finished run, which is not run again

On Ctrl-C or SIGTERM the running processes save and exit; the same command resumes them. Concurrent runs affect each
other's wall time, so the cost of a run is the CPU time of its process (``os.wait4``, children included).
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from megatron.ltd.errors import RunStopped, UserError
from megatron.ltd.reports.metrics import read_history

from .corpus import REPOSITORY, child_environment
from .progress import ProgressLine
from .spec import RunSpec

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class RunResult:
    """Results of a finished run. Seconds are summed over all starts; None if one was killed before it was measured."""

    variant: str
    seed: int
    steps: int
    validation_loss: float
    layer_tokens: int
    tokens: int
    flops: int
    dense_flops: int
    cpu_seconds: float | None
    wall_seconds: float | None
    training_seconds: float
    """Wall time of the training steps, without start, evaluation and checkpoints."""
    starts: int
    versions: dict[str, Any]
    measures: dict[str, float] = field(default_factory=dict)
    """Other metrics of the last evaluation."""


@dataclass
class _Attempt:
    """A started process of a run."""

    spec: RunSpec
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)


def read_result(spec: RunSpec) -> RunResult | None:
    """Read the result of a finished run; None if it is not finished."""
    try:
        return RunResult(**json.loads((spec.folder / "result.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def run_all(
    specs: Sequence[RunSpec], jobs: int, lock: int, finished: Callable[[RunSpec], None] = lambda spec: None
) -> None:
    """Execute the runs that are not finished, ``jobs`` at a time.

    Every child inherits the open file ``lock``. ``finished`` is called with each run that ends successfully. Raises
    ``RunStopped`` if a run fails, and ``KeyboardInterrupt`` on a request to stop; the other runs then save and exit.
    """
    waiting = [spec for spec in specs if read_result(spec) is None]
    running: list[_Attempt] = []
    failure: str | None = None
    leaving = False
    with _stop_requests() as stop, ProgressLine(specs) as progress:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.pop(0), lock))
            progress.show([attempt.spec for attempt in running])
            time.sleep(_POLL_SECONDS)
            for attempt in list(running):
                cpu_seconds = _wait(attempt)
                if cpu_seconds is None:
                    continue
                running.remove(attempt)
                through = _finish(attempt, cpu_seconds)
                if through:
                    finished(attempt.spec)
                progress.say(f"{'finished' if through else 'left'} {attempt.spec.name}")
                if not through and not stop and failure is None:
                    failure = _failure(attempt)
            if not leaving and (stop or failure is not None):
                leaving, waiting = True, []
                for attempt in running:
                    attempt.process.terminate()
    if failure is not None:
        raise RunStopped(failure)
    if stop:
        raise KeyboardInterrupt


def _start(spec: RunSpec, lock: int) -> _Attempt:
    """Start or resume a run in its own session, so that Ctrl-C reaches only this process, which then asks the run to
    save.
    """
    spec.folder.mkdir(parents=True, exist_ok=True)
    _record_attempt(spec, {"event": "start", "command": " ".join(command_of(spec))})
    with (spec.folder / "console.log").open("ab") as console:
        process = subprocess.Popen(
            [sys.executable, *command_of(spec)],
            cwd=REPOSITORY,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
        )
    return _Attempt(spec, process)


def command_of(spec: RunSpec) -> list[str]:
    """The run's command line after ``python``."""
    return [spec.script, *spec.flags]


def _wait(attempt: _Attempt) -> float | None:
    """The CPU seconds of a process that has ended; None if it is running."""
    process_id, status, usage = os.wait4(attempt.process.pid, os.WNOHANG)
    if process_id == 0:
        return None
    attempt.process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _finish(attempt: _Attempt, cpu_seconds: float) -> bool:
    """Record how a process ended, and the result if the run is finished; return whether it is."""
    spec, status = attempt.spec, attempt.process.returncode
    wall_seconds = time.monotonic() - attempt.started
    _record_attempt(spec, {"event": "end", "status": status, "cpu_seconds": cpu_seconds, "wall_seconds": wall_seconds})
    # The request to exit can reach a run that has just finished; its results are complete nevertheless.
    result = collect(spec) if status in (0, -signal.SIGTERM) else None
    if result is None:
        return False
    temporary = spec.folder / "result.json.tmp"
    temporary.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    temporary.replace(spec.folder / "result.json")
    return True


def _failure(attempt: _Attempt) -> str:
    """The error message for a run that ended before its last step."""
    return (
        f"{attempt.spec.name} ended with status {attempt.process.returncode} before its last step: see "
        f"{attempt.spec.folder / 'console.log'}; start again to continue it"
    )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect every SIGINT and SIGTERM that arrives in the block in a list."""
    requests: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if not requests:
            print("\nstopping: the running processes save and exit", file=sys.stderr, flush=True)
        requests.append(number)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def collect(spec: RunSpec) -> RunResult | None:
    """Read the results of a run from its log; None if its last step or evaluation is missing.

    The FLOPs are checked against the plan: a run that computed something else is a bug, not a result.
    """
    try:
        history = read_history(spec.folder, spec.name)
    except UserError:  # no step yet
        return None
    last, validations = history.steps[-1], history.validations
    if last["iteration"] != spec.steps or not validations or validations[-1]["iteration"] != spec.steps:
        return None
    assert len(history.steps) == spec.steps, f"{spec.name}: steps are missing in metrics.jsonl"
    flops = history.flops[-1]
    assert flops == spec.planned_flops, f"{spec.name}: computed {flops} FLOPs, planned {spec.planned_flops}"
    starts, ends = _read_attempts(spec)
    measured = starts == len(ends)
    return RunResult(
        variant=spec.variant,
        seed=spec.seed,
        steps=spec.steps,
        validation_loss=validations[-1]["loss"],
        layer_tokens=last["consumed_layer_tokens"],
        tokens=last["consumed_tokens"],
        flops=flops,
        dense_flops=sum(step["dense_step_flops"] for step in history.steps),
        cpu_seconds=sum(end["cpu_seconds"] for end in ends) if measured else None,
        wall_seconds=sum(end["wall_seconds"] for end in ends) if measured else None,
        training_seconds=history.seconds[-1],
        starts=starts,
        versions=history.about["versions"],
        measures={name: value for name, value in validations[-1].items() if name not in ("kind", "iteration", "loss")},
    )


def _record_attempt(spec: RunSpec, record: dict[str, Any]) -> None:
    with (spec.folder / "attempts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _read_attempts(spec: RunSpec) -> tuple[int, list[dict[str, Any]]]:
    """The number of starts of a run, and the records of its measured ends."""
    records = [json.loads(line) for line in (spec.folder / "attempts.jsonl").read_text(encoding="utf-8").splitlines()]
    return (
        sum(record["event"] == "start" for record in records),
        [record for record in records if record["event"] == "end"],
    )


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Lock ``folder`` for this command and its children, even those that outlive it. Raises ``UserError``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"--work-dir {folder}: is in use by another benchmark or by one of its runs; wait for it, stop it, or "
                "give another folder"
            ) from None
        yield file.fileno()

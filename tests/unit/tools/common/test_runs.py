"""Runs of a benchmark: their results, how they are stopped, and their progress."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from common import progress, runs, spec

from megatron.ltd.errors import RunStopped
from tests.support_errors import refused


def test_a_continued_run_counts_its_later_lines_and_all_its_starts(tmp_path: Path) -> None:
    run = spec.RunSpec("dense", 1, 3, 30, tmp_path, ())
    about = {"kind": "run", "versions": {"torch": "2"}, "resumed_at": 0}

    def train(step: int, seconds: float) -> dict[str, object]:
        return {
            "kind": "train", "iteration": step, "loss": 2.0, "step_flops": 10, "dense_step_flops": 20,
            "consumed_layer_tokens": 5 * step, "consumed_tokens": 7 * step, "step_seconds": seconds,
        }  # fmt: skip

    lines = [about, train(1, 1.0), train(2, 9.0), {**about, "resumed_at": 1}, train(2, 1.0), train(3, 1.0)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert runs.collect(run) is None  # not evaluated yet
    (tmp_path / "metrics.jsonl").write_text(
        text + json.dumps({"kind": "validation", "iteration": 3, "loss": 1.5}) + "\n"
    )
    start, end = {"event": "start"}, {"event": "end", "cpu_seconds": 4.0, "wall_seconds": 5.0}
    for attempts, cpu_seconds in (([start, end, start, end], 8.0), ([start, start, end], None)):
        (tmp_path / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in attempts))
        found = runs.collect(run)
        assert found is not None and (found.cpu_seconds, found.starts) == (cpu_seconds, 2)
        assert (found.training_seconds, found.flops, found.dense_flops) == (3.0, 30, 60)
        assert (found.validation_loss, found.layer_tokens, found.tokens) == (1.5, 15, 21)
    with pytest.raises(AssertionError, match="computed 30 FLOPs, planned 31"):
        runs.collect(replace(run, planned_flops=31))


def test_the_newest_step_is_read_from_the_end_of_a_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert progress.last_step(path) is None
    path.write_text('{"kind": "run"}\n' + "".join(f'{{"kind": "train", "iteration": {n}}}\n' for n in range(999)))
    assert progress.last_step(path) == {"kind": "train", "iteration": 998}
    with path.open("a") as file:
        file.write('{"kind": "train", "itera')
    assert progress.last_step(path) == {"kind": "train", "iteration": 998}


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with runs.locked(tmp_path), refused(f"--work-dir {tmp_path}"), runs.locked(tmp_path):
        pass


# A run that exits on a signal, and not by itself within a minute.
PATIENT = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print(flush=True); time.sleep(60)"
)


def specs_running(monkeypatch: pytest.MonkeyPatch, folder: Path, **scripts: str) -> list[spec.RunSpec]:
    """Specifications of runs that are Python scripts, by variant."""
    monkeypatch.setattr(runs, "command_of", lambda run: ["-c", scripts[run.variant]])
    return [spec.RunSpec(name, 1, 3, 30, folder / name, ()) for name in scripts]


def last_attempt(run: spec.RunSpec) -> dict[str, float]:
    return json.loads((run.folder / "attempts.jsonl").read_text().splitlines()[-1])


def test_a_signal_stops_all_runs_gently_and_starts_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    specs = specs_running(monkeypatch, tmp_path, a=PATIENT, b=PATIENT, c=PATIENT)

    def stop_when_both_listen() -> None:
        logs = [run.folder / "console.log" for run in specs[:2]]
        while not all(log.exists() and log.stat().st_size for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_both_listen)
    thread.start()
    with runs.locked(tmp_path) as lock, pytest.raises(KeyboardInterrupt):
        runs.run_all(specs, 2, lock)
    thread.join()
    for run in specs[:2]:
        end = last_attempt(run)
        assert end["event"] == "end" and end["status"] == 0 and end["wall_seconds"] < 900
    assert not specs[2].folder.exists()


def test_a_run_that_fails_stops_the_others_and_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    specs = specs_running(monkeypatch, tmp_path, a="raise SystemExit(3)", b=PATIENT, c=PATIENT)
    with (
        runs.locked(tmp_path) as lock,
        pytest.raises(RunStopped, match=r"^a seed 1 ended with status 3 before its last"),
    ):
        runs.run_all(specs, 2, lock)
    assert last_attempt(specs[1])["wall_seconds"] < 30 and not specs[2].folder.exists()

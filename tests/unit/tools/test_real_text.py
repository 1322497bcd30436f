"""The comparison on real text: its plan, its figures, and a toy of it from books to report."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from megatron.ltd.accounting import dense_step_flops
from megatron.ltd.config import parse_run_config
from megatron.ltd.errors import RunStopped, UserError
from megatron.ltd.schedules import KeptTokensSchedule
from tools.benchmark.real_text import corpus, progress, recipe, report, runs

DATA = recipe.RunData(Path("train"), Path("valid"), Path("t.model"), 4)


def result(variant: str, seed: int, loss: float, cpu_seconds: float | None) -> runs.RunResult:
    return runs.RunResult(
        variant=variant,
        seed=seed,
        steps=12,
        validation_loss=loss,
        layer_tokens=100 if variant == "dense" else 80,
        tokens=1000,
        flops=1000 if variant == "dense" else 700,
        dense_flops=1000,
        cpu_seconds=cpu_seconds,
        wall_seconds=20.0,
        training_seconds=10.0 if variant == "dense" else 8.0,
        starts=1,
        versions={"torch": "2"},
    )


def book(text: str) -> str:
    return (
        f"\r\nA note.\r\n*** START OF THIS PROJECT GUTENBERG EBOOK A ***\r\n\r\n{text}\r\n\r\n"
        "***END OF THE PROJECT GUTENBERG EBOOK A***\r\nMore.\r\n*** START: FULL LICENSE ***\r\nFee.\r\n"
    )


def test_frames_of_both_spellings_are_cut_off() -> None:
    assert corpus.strip_frame(book("One.\r\nTwo.").replace("\r\n", "\n"), "a.txt") == "One.\nTwo."
    with pytest.raises(UserError, match=r"--data: a.txt has no line '\*\*\* START OF THIS"):
        corpus.strip_frame("One.\n*** END OF THIS PROJECT GUTENBERG EBOOK A ***\n", "a.txt")
    with pytest.raises(UserError, match=r"no line '\*\*\* END OF THIS"):
        corpus.strip_frame("*** START OF THIS PROJECT GUTENBERG EBOOK A ***\nOne.", "a.txt")


def test_a_split_loses_nothing_and_holds_out_the_end() -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    train, held_out = corpus.split_book(text)
    assert train + held_out == text and train.endswith("\n")
    assert 0.045 < len(held_out) / len(text) <= 0.05


def test_the_third_variant_has_random_ltds_flops_and_its_own_schedule(tmp_path: Path) -> None:
    for size in (recipe.FULL, recipe.TINY):
        specs = recipe.plan_runs(size, recipe.EQUAL_FLOPS_VARIANTS, DATA, (1, 2), tmp_path)
        assert [(spec.variant, spec.seed) for spec in specs[:4]] == [
            ("dense", 1), ("random-ltd", 1), ("dense-equal-flops", 1), ("dense", 2),
        ]  # fmt: skip
        dense, ltd, short = specs[:3]
        shape = parse_run_config(dense.flags).model.shape(size.vocab_size)
        a_step = dense_step_flops(shape, size.batch_samples)
        assert dense.planned_flops == size.train_steps * a_step and short.planned_flops == short.steps * a_step
        assert ltd.steps == dense.steps > short.steps and abs(short.planned_flops - ltd.planned_flops) <= a_step / 2
        for spec in specs:
            config = parse_run_config(spec.flags)
            assert config.training.train_iters == spec.steps and config.optimizer.lr_decay_iters is None
            assert config.methods["random_ltd"].enabled == (spec.variant == "random-ltd")


def test_every_method_takes_as_many_steps_and_says_what_it_switches_on(tmp_path: Path) -> None:
    """Of two seeds; constant and growing random-LTD compute as many layer tokens, to the rounding of K."""
    comparison = recipe.COMPARISONS["methods"]
    for size in (comparison.full, recipe.TINY):
        specs = recipe.plan_runs(size, comparison.variants, DATA, comparison.seeds, tmp_path)
        assert len(specs) == 2 * 9 == len({spec.folder for spec in specs})
        configs = {spec.variant: parse_run_config(spec.flags) for spec in specs}
        assert {config.training.train_iters for config in configs.values()} == {size.train_steps}
        names = {variant: config.build_method().name for variant, config in configs.items()}
        clocks = {variant for variant, config in configs.items() if config.optimizer.lr_clock == "samples"}
        assert names == {
            "dense": "dense",
            "random-ltd": "random-LTD",
            "random-ltd, lr by steps": "random-LTD",
            "random-ltd constant": "random-LTD",
            "random-ltd constant, lr by steps": "random-LTD",
            "token-bypass": "TokenBypass",
            "token-bypass random": "TokenBypass",
            "layer-drop": "layer dropping",
            "random-ltd + layer-drop": "random-LTD + layer dropping",
        }
        assert clocks == {"random-ltd, lr by steps", "random-ltd constant, lr by steps"}
        growing, constant = (
            recipe.plan_flags(next(spec.flags for spec in specs if spec.variant == variant), size.vocab_size)
            for variant in ("random-ltd", "random-ltd constant")
        )
        rounding = size.train_steps * size.batch_samples * (size.num_layers - 2) / 2
        steps = size.train_steps
        assert abs(growing.layer_tokens(steps) - constant.layer_tokens(steps)) <= rounding


def test_the_full_recipes_grow_over_two_thirds_of_the_run() -> None:
    for size in (recipe.FULL, recipe.FULL_METHODS):
        schedule = KeptTokensSchedule(size.min_kept_tokens, size.seq_length, size.growth_steps, size.granularity)
        assert schedule.at(0) == size.seq_length // 4
        assert size.growth_steps / size.train_steps == pytest.approx(2 / 3, abs=0.001)


def test_means_errors_and_paired_differences() -> None:
    # Worked out by hand: differences 0.1, 0.2, 0.3 have mean 0.2, deviation 0.1.
    losses = {"dense": (1.0, 2.0, 4.0), "random-ltd": (1.1, 2.2, 4.3)}
    results = [
        result(variant, seed, loss, 100.0 if variant == "dense" else 80.0)
        for variant, values in losses.items()
        for seed, loss in enumerate(values, start=1)
    ]
    figures = report.summarize(results)
    assert list(figures) == ["dense", "random-ltd"]
    ltd = figures["random-ltd"]
    assert ltd["loss_difference"].mean == pytest.approx(0.2)
    assert ltd["loss_difference"].standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert figures["dense"]["validation_loss"].standard_error == pytest.approx(math.sqrt(7 / 3) / math.sqrt(3))
    assert ltd["flops_saved"].mean == pytest.approx(0.3) and ltd["layer_tokens_saved"].mean == pytest.approx(0.2)
    assert ltd["cpu_saved"].mean == pytest.approx(0.2) and ltd["cpu_saved"].standard_error == pytest.approx(0.0)
    assert ltd["tokens_per_second"].mean == pytest.approx(125.0)


def test_only_seeds_that_both_have_are_paired_and_unmeasured_time_is_left_out() -> None:
    results = [result("dense", 1, 1.0, 100.0), result("random-ltd", 1, 1.5, None), result("random-ltd", 2, 9.0, 50.0)]
    ltd = report.summarize(results)["random-ltd"]
    assert ltd["loss_difference"] == report.Estimate(0.5, None, 1)
    assert ltd["cpu_saved"] is None
    assert ltd["cpu_seconds"] == report.Estimate(50.0, None, 1)


def test_a_continued_run_counts_its_later_lines_and_all_its_starts(tmp_path: Path) -> None:
    spec = recipe.RunSpec("dense", 1, 3, 30, tmp_path, ())
    about = {"kind": "run", "versions": {"torch": "2"}}

    def train(step: int, seconds: float) -> dict[str, object]:
        return {
            "kind": "train", "iteration": step, "loss": 2.0, "step_flops": 10, "dense_step_flops": 20,
            "consumed_layer_tokens": 5 * step, "consumed_tokens": 7 * step, "step_seconds": seconds,
        }  # fmt: skip

    lines = [about, train(1, 1.0), train(2, 9.0), about, train(2, 1.0), train(3, 1.0)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert runs.collect(spec) is None  # not evaluated yet
    (tmp_path / "metrics.jsonl").write_text(
        text + json.dumps({"kind": "validation", "iteration": 3, "loss": 1.5}) + "\n"
    )
    start, end = {"event": "start"}, {"event": "end", "cpu_seconds": 4.0, "wall_seconds": 5.0}
    for attempts, cpu_seconds in (([start, end, start, end], 8.0), ([start, start, end], None)):
        (tmp_path / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in attempts))
        found = runs.collect(spec)
        assert found is not None and (found.cpu_seconds, found.starts) == (cpu_seconds, 2)
        assert (found.training_seconds, found.flops, found.dense_flops) == (3.0, 30, 60)
        assert (found.validation_loss, found.layer_tokens, found.tokens) == (1.5, 15, 21)
    with pytest.raises(AssertionError, match="computed 30 FLOPs, planned 31"):
        runs.collect(replace(spec, planned_flops=31))


def test_the_newest_step_is_read_from_the_end_of_a_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert progress.last_step(path) is None
    path.write_text('{"kind": "run"}\n' + "".join(f'{{"kind": "train", "iteration": {n}}}\n' for n in range(999)))
    assert progress.last_step(path) == {"kind": "train", "iteration": 998}
    with path.open("a") as file:
        file.write('{"kind": "train", "itera')
    assert progress.last_step(path) == {"kind": "train", "iteration": 998}


def test_a_folder_at_work_is_refused(tmp_path: Path) -> None:
    with (
        runs.locked(tmp_path),
        pytest.raises(UserError, match="at work there"),
        runs.locked(tmp_path),
    ):
        pass


# A run that leaves when it is asked to, and not by itself within a minute.
PATIENT = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print(flush=True); time.sleep(60)"
)


def specs_running(monkeypatch: pytest.MonkeyPatch, folder: Path, **scripts: str) -> list[recipe.RunSpec]:
    """Runs that are Python scripts, by variant."""
    monkeypatch.setattr(runs, "command_of", lambda spec: ["-c", scripts[spec.variant]])
    return [recipe.RunSpec(name, 1, 3, 30, folder / name, ()) for name in scripts]


def last_attempt(spec: recipe.RunSpec) -> dict[str, float]:
    return json.loads((spec.folder / "attempts.jsonl").read_text().splitlines()[-1])


def test_a_signal_stops_all_runs_gently_and_starts_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    specs = specs_running(monkeypatch, tmp_path, a=PATIENT, b=PATIENT, c=PATIENT)

    def stop_when_both_listen() -> None:
        logs = [spec.folder / "console.log" for spec in specs[:2]]
        while not all(log.exists() and log.stat().st_size for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_both_listen)
    thread.start()
    with runs.locked(tmp_path) as lock, pytest.raises(KeyboardInterrupt):
        runs.run_all(specs, 2, lock)
    thread.join()
    for spec in specs[:2]:
        end = last_attempt(spec)
        assert end["event"] == "end" and end["status"] == 0 and end["wall_seconds"] < 30
    assert not specs[2].folder.exists()


def test_a_run_that_fails_stops_the_others_and_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    specs = specs_running(monkeypatch, tmp_path, a="raise SystemExit(3)", b=PATIENT, c=PATIENT)
    with (
        runs.locked(tmp_path) as lock,
        pytest.raises(RunStopped, match=r"^a seed 1 ended with status 3 before its last"),
    ):
        runs.run_all(specs, 2, lock)
    assert last_attempt(specs[1])["wall_seconds"] < 30 and not specs[2].folder.exists()


@dataclass(frozen=True)
class Toy:
    """A toy comparison: its command, environment and folders."""

    command: list[str]
    environment: dict[str, str]
    page: Path

    def run(self, *more: str, status: int = 0) -> str:
        """What it prints; of a refusal, its line."""
        done = subprocess.run([*self.command, *more], env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self.page.with_suffix(".json").read_text())


def toy(repository: Path, folder: Path, kept: list[runs.RunResult], *flags: str) -> Toy:
    """On two books of Python's own help, where the runs in ``kept`` are finished."""
    books, work = folder / "books", folder / "work"
    books.mkdir()
    names = sorted(topics)
    for number in (0, 1):
        (books / f"{number}.txt").write_text(
            book("\n\n".join(topics[name] for name in names[number::4])), encoding="utf-8"
        )
    for finished in kept:
        place = recipe.run_folder(work, finished.variant, finished.seed)
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(asdict(finished)))
    command = [sys.executable, str(repository / "tools/benchmark/real_text.py"), "--tiny", "--seeds", "1", *flags]
    command += ["--data", str(books), "--work-dir", str(work), "--output-prefix", str(folder / "page")]
    return Toy(command, {**os.environ, "PYTHONPATH": str(repository)}, folder / "page.md")


@pytest.mark.slow
def test_a_toy_comparison_keeps_finished_runs_and_reports(repository: Path, tmp_path: Path) -> None:
    kept = [result("dense", 1, 6.5, 10.0), result("dense-equal-flops", 1, 6.75, 9.0)]
    comparison = toy(repository, tmp_path, kept)
    said = comparison.run()
    assert "finished random-ltd seed 1" in said and "finished dense" not in said

    record = comparison.record
    ltd = next(run for run in record["runs"] if run["variant"] == "random-ltd")
    size = recipe.TINY
    schedule = KeptTokensSchedule(size.min_kept_tokens, size.seq_length, size.growth_steps, size.granularity)
    kept_tokens = schedule.total_kept_tokens(size.train_steps) + 2 * size.seq_length * size.train_steps
    assert ltd["layer_tokens"] == size.batch_samples * kept_tokens
    assert 4.0 < ltd["validation_loss"] < 7.0 and ltd["cpu_seconds"] > 1.0
    assert record["variants"]["random-ltd"]["loss_difference"]["mean"] == pytest.approx(ltd["validation_loss"] - 6.5)
    assert f"| {ltd['validation_loss']:.4f} |" in comparison.page.read_text()
    assert record["corpus"]["held_out_tokens"] == 4 * size.batch_samples * size.seq_length

    assert "As it was." in comparison.run("--report-only", "--reading", "As it was.")
    assert comparison.record["runs"] == record["runs"]


@pytest.mark.slow
def test_a_toy_of_every_method_reports_them_in_order(repository: Path, tmp_path: Path) -> None:
    """One variant runs, the others are finished."""
    ran = "random-ltd constant"
    kept = [result(variant, 1, 6.5, 10.0) for variant in recipe.METHOD_VARIANTS if variant != ran]
    comparison = toy(repository, tmp_path, kept, "--compare", "methods")
    said = comparison.run()
    assert f"finished {ran} seed 1" in said and said.count("finished ") == 1
    record, page = comparison.record, comparison.page.read_text()
    assert tuple(record["variants"]) == recipe.METHOD_VARIANTS
    assert "- random-ltd constant: `--random-ltd --ltd-schedule constant --ltd-min-kept-tokens 22`." in page
    assert page.startswith("# Real text: every method at equal steps\n") and "Unfinished" not in page
    figures = next(run for run in record["runs"] if run["variant"] == ran)
    assert figures["layer_tokens"] == 4 * 12 * (2 * 32 + 22) and figures["flops"] < figures["dense_flops"]
    refusal = comparison.run("--compare", "equal-flops", status=2)
    assert "holds another --compare" in refusal and refusal.count("\n") == 1

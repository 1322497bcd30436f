"""The log of a run: lines of metrics.jsonl, lines on the console, and scalars of TensorBoard and W&B."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron.ltd.training.objective import mean_of_sets
from megatron.ltd.training.throughput import published_peak
from tests.support_errors import refused
from tests.support_log import lines, log, logged, step


def tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar that TensorBoard shows of ``folder``: its value by step, of which there is one each."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    shown = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    read = {name: {event.step: event.value for event in found} for name, found in shown.items()}
    assert all(len(read[name]) == len(found) for name, found in shown.items())
    return read


def test_lines_are_json_of_three_kinds(tmp_path: Path) -> None:
    run = log(tmp_path)
    run.run({"config": {"a": 1}})
    run.train(step(1))
    run.evaluation("validation", 1, {"loss": 2.5, "perplexity": math.exp(2.5)})
    run.close()
    written = lines(tmp_path)
    assert [line["kind"] for line in written] == ["run", "train", "validation"]
    assert written[0]["config"] == {"a": 1} and "time" in written[0]
    assert written[1] == {"kind": "train", **step(1), "tflops_per_device": 750 / 0.5 / 2 / 1e12}
    assert written[2] == {"kind": "validation", "iteration": 1, "loss": 2.5, "perplexity": math.exp(2.5)}


def test_not_a_number_is_null(tmp_path: Path) -> None:
    """JSON has no NaN, and strict readers refuse it."""
    (line,) = logged(tmp_path, step(1, loss=math.nan, grad_norm=math.inf))
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert line["loss"] is None and line["grad_norm"] is None


@pytest.mark.parametrize("before", ["", '{"kind": ', '{"iteration": 1}\n', '{"iteration": 1}\n{"kind": "tra'])
def test_a_resumed_run_appends_and_drops_half_a_line(before: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(before)
    whole = [1] if "}" in before else []
    assert [line["iteration"] for line in logged(tmp_path, step(2))] == [*whole, 2]


def test_the_console_shows_means_of_an_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [step(1, loss=3.0), step(2, loss=2.0, step_flops=500), step(3, loss=1.5)]
    logged(tmp_path, *steps, log_interval=2)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step 2/4 | loss 2.5000 | lr 1.00e-03 | grad norm 0.50 | kept 8/16 | FLOPs saved 37.5 %")
    assert "128" in line and line.endswith("left")


def test_the_console_shows_the_depth_where_layers_were_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged(tmp_path, step(1, depth=4.0), step(2, depth=5.0), log_interval=2)
    assert "| kept 8/16 | depth 4.5/6 | FLOPs saved" in capsys.readouterr().out


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = log(tmp_path / "logs", enabled=False)
    run.print_line("hello")
    run.run({})
    run.train(step(1))
    run.close()
    assert capsys.readouterr().out == "" and not (tmp_path / "logs").exists()


def test_tensorboard_scalars(tmp_path: Path) -> None:
    run = log(tmp_path, tensorboard_dir=str(tmp_path / "tb"))
    run.train(step(1))
    run.evaluation("validation", 1, {"loss": 2.5, "perplexity": math.exp(2.5)})
    run.train(step(2, skipped_updates=1))
    run.close()
    shown = tensorboard(tmp_path / "tb")
    assert shown["skipped-updates"] == {1: 0.0, 2: 1.0}
    read = {name: values[1] for name, values in shown.items()}
    assert read["lm loss"] == 2.0 and read["learning-rate"] == pytest.approx(1e-3)
    assert read["seqlen/random_ltd_reserved_length"] == 8.0 and read["consumed-layer-tokens"] == 150.0
    assert read["lm loss validation"] == 2.5


def test_several_validation_sets_and_test_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = log(tmp_path, tensorboard_dir=str(tmp_path / "tb"))
    sets = {"web": {"loss": 2.0, "perplexity": math.exp(2.0)}, "code": {"loss": 1.0, "perplexity": math.exp(1.0)}}
    measures = mean_of_sets(sets)
    assert measures["loss"] == 1.5 and measures["perplexity"] == pytest.approx(math.exp(1.5))
    run.evaluation("validation", 3, measures)
    run.evaluation("test", 4, {"loss": 2.5, "perplexity": 12.2})
    run.close()
    validation, test = lines(tmp_path)
    assert validation == {"kind": "validation", "iteration": 3, **measures}
    assert (validation["web/loss"], validation["code/loss"]) == (2.0, 1.0)
    assert test == {"kind": "test", "iteration": 4, "loss": 2.5, "perplexity": 12.2}
    read = {name: next(iter(values.values())) for name, values in tensorboard(tmp_path / "tb").items()}
    assert {name: read[f"lm loss validation{name}"] for name in ("", "/web", "/code")} == {
        "": 1.5, "/web": 2.0, "/code": 1.0,
    }  # fmt: skip
    assert read["lm loss test"] == 2.5 and "lm loss validation ppl/web" in read
    said = capsys.readouterr().out
    assert "web loss 2.0000" in said and "code perplexity 2.72" in said and "test loss 2.5000" in said


@pytest.mark.parametrize(
    ("saved", "first", "second", "shown"),
    [
        (4, (1, 2, 3, 4, 5, 6, 8), (5, 6, 7), [1, 2, 3, 4, 5, 6, 7]),
        (4, (1, 2, 3, 4, 5, 6), (5, 6), [1, 2, 3, 4, 5, 6]),
        (0, (1, 2, 3, 4, 5, 6), (1, 2), [1, 2]),
    ],
)
def test_tensorboard_shows_each_step_once_after_a_kill(
    saved: int, first: tuple[int, ...], second: tuple[int, ...], shown: list[int], tmp_path: Path
) -> None:
    """Steps, a kill, and more steps from the last checkpoint, or from the start if there is none."""
    for first_step, iterations in ((0, first), (saved, second)):
        run = log(tmp_path, first_step=first_step, tensorboard_dir=str(tmp_path / "tb"))
        for iteration in iterations:
            run.train(step(iteration, loss=float(10 * first_step + iteration)))
        run.evaluation("validation", iterations[-1], {"loss": float(first_step)})
        run.close()
    read = tensorboard(tmp_path / "tb")
    assert read["lm loss"] == {number: float(number + 10 * saved * (number > saved)) for number in shown}
    assert read["lm loss validation"] == {shown[-1]: float(saved)}


def test_weights_and_biases_gets_the_same_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    calls: list[Any] = []
    run_of_wandb = SimpleNamespace(
        log=lambda scalars, step: logged.append((scalars, step)), finish=lambda: calls.append("finish")
    )
    stand_in = SimpleNamespace(init=lambda **arguments: calls.append(arguments) or run_of_wandb)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)  # type: ignore[arg-type]
    run = log(tmp_path, wandb_project="p", wandb_exp_name="n", wandb_entity="team")
    run.train(step(1))
    run.evaluation("validation", 1, {"loss": 2.5, "perplexity": math.exp(2.5)})
    run.close()
    first = {**calls[0], "id": "?"}
    assert first == {
        "project": "p", "entity": "team", "name": "n", "dir": str(tmp_path), "id": "?", "resume": "allow",
        "config": {"training": {"lr": 1e-3}}, "allow_val_change": True,
    }  # fmt: skip
    log(tmp_path, first_step=1, wandb_project="p").close()
    log(tmp_path / "another", wandb_project="p").close()
    ids = [call["id"] for call in calls if call != "finish"]
    assert len(calls) == 6 and ids[0] == ids[1] != ids[2]
    (train, at_train), (validation, at_validation) = logged
    assert (at_train, at_validation) == (1, 1)
    assert train["lm loss"] == 2.0 and train["seqlen/random_ltd_reserved_length"] == 8
    assert validation["lm loss validation"] == 2.5


def test_mlflow_gets_the_same_scalars_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def record(name: str) -> Callable[..., Any]:
        return lambda *values, **named: calls.append((name, *values, *named.values()))

    def start_run(run_id: str | None, run_name: str | None) -> Any:
        calls.append(("start_run", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "made"))

    names = ("set_experiment", "log_params", "log_metrics", "end_run")
    stand_in = SimpleNamespace(start_run=start_run, **{name: record(name) for name in names})
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)  # type: ignore[arg-type]
    run = log(tmp_path, mlflow_experiment="e", mlflow_run_name="n")
    run.train(step(1))
    run.close()
    log(tmp_path, first_step=1, mlflow_experiment="e").close()
    (scalars, at) = next(call[1:] for call in calls if call[0] == "log_metrics")
    assert at == 1 and scalars["lm loss"] == 2.0 and scalars["seqlen/random_ltd_reserved_length"] == 8
    assert [call for call in calls if call[0] != "log_metrics"] == [
        ("set_experiment", "e"), ("start_run", None, "n"), ("log_params", {"training.lr": "0.001"}), ("end_run",),
        ("set_experiment", "e"), ("start_run", "made", None), ("end_run",),
    ]  # fmt: skip


def test_flops_a_second_and_their_share_of_the_peak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8e14 FLOPs in 0.5 s on two devices are 800 TFLOP/s each."""
    board = str(tmp_path / "tb")
    (line,) = logged(tmp_path, step(1, step_flops=8 * 10**14), peak=1000.0, log_interval=1, tensorboard_dir=board)
    assert line["tflops_per_device"] == pytest.approx(800.0) and line["mfu"] == pytest.approx(0.8)
    assert "| 800.0 TFLOP/s per device | MFU 80.0 % |" in capsys.readouterr().out
    found = tensorboard(tmp_path / "tb")
    assert found["throughput"][1] == pytest.approx(800.0) and found["mfu"][1] == pytest.approx(0.8)


def test_peak_memory_where_it_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The console shows the most of its interval."""
    peaks = {"peak_memory_bytes": 2_500_000_000}, {"peak_memory_bytes": 1_000_000_000}, {}, {}
    steps = [step(iteration, **peak) for iteration, peak in enumerate(peaks, start=1)]
    logged(tmp_path, *steps, log_interval=2, tensorboard_dir=str(tmp_path / "tb"))
    assert [line.get("peak_memory_bytes") for line in lines(tmp_path)] == [2_500_000_000, 1_000_000_000, None, None]
    assert tensorboard(tmp_path / "tb")["mem-max-allocated-bytes"] == {1: 2.5e9, 2: 1e9}
    with_memory, without = capsys.readouterr().out.splitlines()
    assert "per device | peak memory 2.500 GB | " in with_memory and "memory" not in without


def test_published_peaks() -> None:
    assert published_peak("NVIDIA H200", "bfloat16") == published_peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989.0
    assert published_peak("NVIDIA H100 PCIe", "bfloat16") is published_peak("NVIDIA H100 NVL", "bfloat16") is None
    assert published_peak("NVIDIA A100-SXM4-80GB", "float16") == 312.0
    assert published_peak("Tesla V100-SXM2-32GB", "float16") == 125.0
    assert published_peak("Tesla V100-SXM2-32GB", "bfloat16") is None
    assert published_peak("NVIDIA H200", "float32") is None and published_peak("", "bfloat16") is None


@pytest.mark.parametrize(("module", "flags"), [
    ("wandb", {"wandb_project": "p"}), ("mlflow", {"mlflow_experiment": "e"}),
    ("torch.utils.tensorboard", {"tensorboard_dir": "t"}),
])  # fmt: skip
def test_a_missing_package_is_named(
    module: str, flags: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with refused(f"megatron-ltd[{'mlflow' if module == 'mlflow' else 'logging'}]"):
        log(tmp_path, **flags)


def test_scores_of_any_size_are_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = log(tmp_path)
    run.scores(4, {"lambada/perplexity": 1.5607257905269938e21, "lambada/acc": 0.25, "wiki/ppl": 1234.5})
    run.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 4 | lambada perplexity 1.561e+21, acc 0.2500", "step 4 | wiki ppl 1234.5000",
    ]  # fmt: skip


def test_the_bar_has_a_single_comma_before_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tqdm itself puts a comma before its postfix."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    run = log(tmp_path, progress=True)
    run.train(step(1))
    bar: Any = run._bar
    bar.refresh()
    run.close()
    shown = terminal.getvalue().rpartition("25%")[2]
    assert re.search(r"1/4 steps, [\d:]+ elapsed, 0:00:02 left", shown), shown

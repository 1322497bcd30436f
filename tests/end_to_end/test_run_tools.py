"""The tools that plot and summarize a run, used on a real one: they agree with its log and refuse bad input."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from megatron.ltd.commands import plot_run, report, summarize_runs
from megatron.ltd.errors import run_command
from megatron.ltd.format import format_count, format_flops
from megatron.ltd.plan.table import stage_rows
from megatron.ltd.reports.metrics import read_history
from megatron.ltd.reports.page.build import logged_stages
from megatron.ltd.reports.page.plan_file import read_plan
from tests.end_to_end.runs import ending, run_status, snapshot, tiny_flags
from tests.support_errors import assert_refused
from tests.unit.reports.page.pages import Page

TOOLS: dict[str, Callable[[], None]] = {
    "plot_run.py": plot_run.main,
    "report.py": report.main,
    "summarize_runs.py": summarize_runs.main,
}


def call(tool: str, *flags: object) -> tuple[int, str, str]:
    """The exit status, standard output and standard error of a tool, run under the wrapper of its command line."""
    out = io.StringIO()
    with redirect_stdout(out):
        status, err = ending(lambda: run_command(TOOLS[tool]), tool, *flags)
    return status, out.getvalue(), err


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """A run in a folder called <b>&, with batch-size ramp-up: step 5 was lost, and the run was resumed after step 4."""
    folder = tmp_path_factory.mktemp("runs") / "<b>&"
    flags = ["--save", folder, "--save-interval", 2, "--rampup-batch-size", 2, 2, 4, "--layer-drop"]
    flags += ["--layer-drop-gamma", 0.5]
    assert run_status(tiny_flags(data, *flags, "--exit-interval", 4)) == (0, "")
    lost = {**json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]), "kind": "train", "iteration": 5}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(lost) + "\n")
    again = [*flags, "--load", folder, "--weight-decay", 0.2, "--override-opt-param-scheduler"]
    assert run_status(tiny_flags(data, *again)) == (0, "")
    scores = {"kind": "scores", "iteration": 6, "copa/acc": 0.625}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(scores) + "\n")
    return folder


def last_lines(folder: Path, kind: str) -> list[dict]:
    """The last record of every iteration of one kind."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return list({line["iteration"]: line for line in lines if line["kind"] == kind}.values())


def test_the_page_reports_what_the_run_did(resumed: Path, tmp_path: Path) -> None:
    results = tmp_path / "results_2026.json"
    results.write_text(json.dumps({"results": {"rte<i>": {"acc,none": 0.5, "acc_stderr,none": 0.03}}}))
    path = tmp_path / "pages" / "report.html"
    status, said, err = call("report.py", "--run", resumed, "--scores", results, "--output", path)
    assert (status, err) == (0, "") and said.startswith(f"{path}: ")
    content = path.read_text(encoding="utf-8")
    page, steps = Page(content), last_lines(resumed, "train")
    assert "script" not in page.elements and page.loads == [] and page.handlers == []
    assert page.elements.count("svg") == 1 and "prefers-color-scheme: dark" in content and len(content) < 400_000
    flops, dense = (sum(step[name] for step in steps) for name in ("step_flops", "dense_step_flops"))
    for shown in (
        "<b>&",
        "random-LTD + layer dropping",
        "steps 6 of 6",
        f"tokens {format_count(steps[-1]['consumed_tokens'])}",
        f"layer tokens {format_count(steps[-1]['consumed_layer_tokens'])}",
        f"FLOPs {format_flops(flops)}",
        f"FLOPs saved {1 - flops / dense:.1%}",
        f"loss, held-out, step 6 {last_lines(resumed, 'validation')[-1]['loss']:.4f}",
        "Resumed once: at step 4 (",
        "Resumed at step 4 with other settings: --weight-decay 0.01, then 0.2.",
        "rte<i> acc 0.5000 0.0300",
        "copa/acc 1 0.6250 0.6250 6",
        "--random-ltd given not given",
        "--rampup-batch-size 2 2 4 not given",
        "megatron-core 0.",
    ):
        assert shown in page.text, shown
    assert call("report.py", "--run", resumed, "--output", path, "--overwrite", "--x", "flops", "tokens")[0] == 0
    assert "rte<i>" not in Page(path.read_text(encoding="utf-8")).text


def test_a_run_follows_its_plan(straight: Path, data: str, tmp_path: Path) -> None:
    """Every row of the plan in the file of ``--plan-json`` equals that of the log, except for the seconds."""
    plan, path = tmp_path / "plan.json", tmp_path / "report.html"
    assert run_status(tiny_flags(data, "--plan", "--plan-json", plan)) == (0, "")
    assert call("report.py", "--run", straight, "--plan", plan, "--output", path)[0] == 0
    shown = Page(path.read_text(encoding="utf-8")).text
    assert "did not follow the plan" not in shown and "memory of a GPU" in shown
    log, planned = logged_stages(read_history(straight, "run")), read_plan(plan)
    (header, logged), (_, rows) = (stage_rows(stages, planned.num_layers) for stages in (log, planned.stages))
    assert header[-1] == "s a step" and [row[:-1] for row in logged] == rows and len(rows) > 2
    assert (
        run_status(tiny_flags(data, "--plan", "--plan-json", tmp_path / "other.json", "--ltd-growth-steps", 3))[0] == 0
    )
    assert (
        call("report.py", "--run", straight, "--plan", tmp_path / "other.json", "--output", path, "--overwrite")[0] == 0
    )
    assert "The run did not follow the plan in other.json: after step 6" in path.read_text(encoding="utf-8")


def test_a_figure_of_a_run_is_drawn_over_every_axis(resumed: Path, straight: Path, tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    axes = ("steps", "tokens", "layer-tokens", "flops", "seconds")
    status, said, err = call("plot_run.py", "--runs", resumed, straight, "--x", *axes, "--output", path)
    panels = "loss, learning rate, kept tokens, layers that ran, FLOPs saved [%], copa/acc"
    assert (status, said, err) == (0, f"{path}: {panels}\n", "")
    assert len(set(re.findall(r'id="axes_(\d+)"', path.read_text()))) == 6 * 5


def test_a_summary_draws_into_a_figure_that_exists(resumed: Path, straight: Path, tmp_path: Path) -> None:
    path = tmp_path / "loss.png"
    path.write_bytes(b"old")
    status, said, err = call("summarize_runs.py", "--runs", resumed, straight, "--names", "a", "b", "--plot", path)
    assert (status, err) == (0, "") and "saved, theoretical" in said
    assert path.read_bytes()[:4] == b"\x89PNG"


REFUSED_PLOTS = {
    "no runs": (["--output", "a.png"], ["--runs"]),
    "no output": (["--runs", "run"], ["--output", "png"]),
    "no metrics": (["--runs", "empty", "--output", "a.png"], ["empty/metrics.jsonl", "--log-dir"]),
    "no such run": (["--runs", "nowhere", "--output", "a.png"], ["nowhere/metrics.jsonl"]),
    "another file": (["--runs", "foreign", "--output", "a.png"], ["foreign/metrics.jsonl", "--log-dir"]),
    "unknown axis": (["--runs", "run", "--output", "a.png", "--x", "hours"], ["--x", "hours", "layer-tokens"]),
    "an axis twice": (["--runs", "run", "--output", "a.png", "--x", "steps", "steps"], ["--x steps steps"]),
    "names": (["--runs", "run", "--output", "a.png", "--names", "a", "b"], ["--names", "--runs"]),
    "suffix": (["--runs", "run", "--output", "a.jpg"], ["--output a.jpg", "svg"]),
    "exists": (["--runs", "run", "--output", "old.png"], ["--output old.png", "--overwrite"]),
    "a folder": (["--runs", "run", "--output", "folder.png", "--overwrite"], ["--output folder.png"]),
    "unwritable": (["--runs", "run", "--output", "old.png/a.png"], ["--output old.png/a.png", "File exists"]),
}

REFUSED_REPORTS = {
    "no run": (["--output", "a.html"], ["--run", "--log-dir"]),
    "no output": (["--run", "run"], ["--output"]),
    "no metrics": (["--run", "empty", "--output", "a.html"], ["empty/metrics.jsonl"]),
    "suffix": (["--run", "run", "--output", "a.pdf"], ["--output a.pdf", "htm"]),
    "exists": (["--run", "run", "--output", "old.html"], ["--output old.html", "--overwrite"]),
    "unwritable": (["--run", "run", "--output", "old.html/a.html"], ["--output old.html/a.html"]),
    "unknown axis": (["--run", "run", "--output", "a.html", "--x", "hours"], ["--x", "hours"]),
    "no such plan": (
        ["--run", "run", "--output", "a.html", "--plan", "plan.json"], ["--plan plan.json", "--plan-json"],
    ),
    "no such scores": (
        ["--run", "run", "--output", "a.html", "--scores", "nowhere.json"], ["--scores nowhere.json", "--output_path"],
    ),
    "a folder without scores": (
        ["--run", "run", "--output", "a.html", "--scores", "empty"], ["--scores empty", "results_*.json"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "flags", "names"),
    [
        *(pytest.param("plot_run.py", *case, id=f"plot: {name}") for name, case in REFUSED_PLOTS.items()),
        *(pytest.param("report.py", *case, id=f"report: {name}") for name, case in REFUSED_REPORTS.items()),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    tool: str, flags: list[str], names: list[str], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(straight)
    for folder in ("empty", "foreign", "folder.png"):
        (tmp_path / folder).mkdir()
    (tmp_path / "foreign" / "metrics.jsonl").write_text("step,loss\n1,2\n")
    for name in ("old.png", "old.html"):
        (tmp_path / name).write_text("old")
    before = snapshot(tmp_path)
    status, out, err = call(tool, *flags)
    assert out == ""
    assert_refused(status, err, *names)
    assert snapshot(tmp_path) == before

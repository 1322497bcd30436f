"""The figure: what is drawn is what the runs logged."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.metrics import read_history
from megatron.ltd.evaluation.plots import check_plot_path, loss_figure, plot_losses, running_mean


def test_curves_hold_the_runs_figures(write_run, train) -> None:
    lines = [train(step, loss=10.0 - step, seconds=3.0, flops=10**9) for step in (1, 2, 3, 4)]
    evaluations = [
        {"kind": "validation", "iteration": step, "loss": 7.0 - step, "perplexity": 1.0} for step in (0, 2, 4)
    ]
    history = read_history(write_run("run", *lines, *evaluations), "run")
    over_flops, over_seconds = loss_figure([history]).axes
    for axes, unit in ((over_flops, 1.0), (over_seconds, 3.0)):
        training, held_out = axes.lines
        assert list(training.get_xdata()) == [unit * step for step in (1, 2, 3, 4)]
        assert list(training.get_ydata()) == [9.0, 8.0, 7.0, 6.0]
        assert list(held_out.get_xdata()) == [unit * step for step in (0, 2, 4)]
        assert list(held_out.get_ydata()) == [7.0, 5.0, 3.0]
    assert (over_flops.get_xlabel(), over_seconds.get_xlabel()) == ("GFLOP computed", "seconds in training steps")


def test_a_png_is_written(tmp_path: Path, write_run, train) -> None:
    path = tmp_path / "figures" / "loss.png"
    plot_losses([read_history(write_run("run", train(1), train(2)), "run")], path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_running_mean() -> None:
    assert running_mean([4.0, 2.0, 6.0], 2) == [4.0, 3.0, 4.0]
    assert running_mean([4.0, None, 6.0], 2) == [4.0, 4.0, 6.0]
    assert math.isnan(running_mean([None], 3)[0])


def test_a_figure_that_cannot_be_is_refused(tmp_path: Path, write_run, train, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"--plot loss\.jpg: the name must end in \.png, \.pdf, \.svg"):
        check_plot_path(Path("loss.jpg"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--plot .*: cannot be written"):
        plot_losses([read_history(write_run("run", train(1)), "run")], tmp_path / "file" / "loss.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="--plot loss.png needs the package matplotlib: pip install"):
        check_plot_path(Path("loss.png"))

"""The figures show what the runs logged."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from megatron.ltd.reports.figures.draw import check_matplotlib, draw, draw_losses, rendered, save
from megatron.ltd.reports.figures.panels import panels_of
from megatron.ltd.reports.metrics import RunHistory, read_history
from tests.support_errors import refused


def validation(step: int, **measures: float | None) -> dict[str, object]:
    return {"kind": "validation", "iteration": step, "loss": 7.0 - step, "perplexity": 1.0, **measures}


def test_drawn_losses_equal_the_logged_ones(write_run, train) -> None:
    lines = [train(step, loss=10.0 - step, seconds=3.0, flops=10**9) for step in (1, 2, 3, 4)]
    history = read_history(write_run("run", *lines, *(validation(step) for step in (0, 2, 4))), "run")
    over_flops, over_seconds = draw_losses([history]).axes
    for frame, unit in ((over_flops, 1.0), (over_seconds, 3.0)):
        every_step, training, held_out, not_finite = frame.lines
        assert list(training.get_xdata()) == list(every_step.get_xdata()) == [unit * step for step in (1, 2, 3, 4)]
        assert list(training.get_ydata()) == list(every_step.get_ydata()) == [9.0, 8.0, 7.0, 6.0]
        assert list(held_out.get_xdata()) == [unit * step for step in (0, 2, 4)]
        assert list(held_out.get_ydata()) == [7.0, 5.0, 3.0]
        assert len(not_finite.get_xdata()) == 0
    assert (over_flops.get_xlabel(), over_seconds.get_xlabel()) == ("GFLOP computed", "seconds in training steps")


def titles(figure) -> list[str]:
    return [frame.get_title(loc="left") for frame in figure.axes if frame.axison and frame.get_title(loc="left")]


def test_there_is_a_panel_for_every_quantity_that_some_run_has(write_run, train) -> None:
    dense_lines = [{**train(step, flops=40), "kept_tokens": 8} for step in (1, 2)]
    dropped_lines = [
        {**train(step, flops=20 * step), "depth": 1.5, "loss": None if step == 2 else 5.0} for step in (1, 2)
    ]
    scores = {"kind": "scores", "iteration": 2, "copa/acc": 0.5, "copa/acc_stderr": 0.1}
    dense = read_history(write_run("dense", *dense_lines, validation(2, f1=0.25), method="dense"), "dense")
    dropped = read_history(write_run("dropped", *dropped_lines, scores), "dropped")
    both = [dense, dropped]
    common = ["loss", "learning rate", "kept tokens", "FLOPs saved [%]"]
    assert [panel.title for panel in panels_of([dense])] == ["loss", "f1", *common[1:]]
    panels = panels_of(both)
    assert [panel.title for panel in panels] == [
        "loss", "f1", "learning rate", "kept tokens", "layers that ran", "FLOPs saved [%]", "copa/acc",
    ]  # fmt: skip
    assert "crosses: not finite" in panels[0].note and panels[0].curves[1][-1].places.tolist() == [2]
    assert [curve.values.tolist() for (curve,) in panels[3].curves] == [[8, 8], [4, 4]]
    assert [[curve.values.tolist() for curve in curves] for curves in panels[5].curves] == [
        [[0, 0]] * 2,
        [[50, 0], [50, 25]],
    ]
    (score,) = panels[6].curves[1]
    assert (score.places.tolist(), score.values.tolist(), list(score.errors)) == ([2], [0.5], [0.1])
    for axes in (("steps",), ("tokens", "seconds")):
        figure = draw(both, panels, axes)
        assert titles(figure) == [panel.title for panel in panels for _ in axes]
        assert len([frame for frame in figure.axes if frame.axison]) == len(panels) * len(axes)


def test_equal_figures_are_equal_files(tmp_path: Path, write_run, train) -> None:
    history = read_history(write_run("run", train(1), train(2)), "run")
    for suffix, start in ((".png", b"\x89PNG\r\n\x1a\n"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        content = rendered(draw([history], panels_of([history]), ("steps",)), suffix)
        assert content.startswith(start)
        assert content == rendered(draw([history], panels_of([history]), ("steps",)), suffix)
    save(draw_losses([history]), "--plot", tmp_path / "figures" / "loss.PNG")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["loss.PNG"]


@pytest.mark.parametrize("name", ["_old", "$x", r"cost $\frac 5$ & <more>"])
def test_any_name_is_drawn_literally(name: str, write_run, train) -> None:
    history = RunHistory(name, {}, (train(1),), ())
    figure = draw_losses([history])
    rendered(figure, ".svg")
    (text,) = figure.legends[0].get_texts()
    assert text.get_text().strip().replace(r"\$", "$") == name


def test_the_figure_of_a_long_run_is_small_and_fast(train) -> None:
    """The run has 100,000 steps, and the peak of a single one of its 5,000 evaluations is still drawn."""
    steps = tuple(train(step, loss=5.0 + step % 7) for step in range(1, 100_001))
    losses = [2.0] * 5000
    losses[1234] = 9.0
    validations = tuple({"iteration": 20 * number, "loss": loss} for number, loss in enumerate(losses))
    history = RunHistory("long", {}, steps, validations)
    started = time.process_time()
    figure = draw([history], panels_of([history]), ("steps",))
    content = rendered(figure, ".svg")
    assert time.process_time() - started < 20.0 and len(content) < 400_000
    held_out = figure.axes[0].lines[2]
    assert (20 * 1234 / 1e3, 9.0) in list(zip(*held_out.get_data(), strict=True))


def test_colours_repeat_only_with_another_line_style(train) -> None:
    histories = [RunHistory(f"run {number}", {}, (train(1),), ()) for number in range(8)]
    handles = draw_losses(histories).legends[0].legend_handles
    looks = [(handle.get_color(), handle.get_linestyle()) for handle in handles]
    assert len(set(looks)) == 8 and len({colour for colour, _ in looks}) == 6


def test_without_matplotlib_a_plot_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with refused("--plot loss.png", "matplotlib", "megatron-ltd[plot]"):
        check_matplotlib("--plot", Path("loss.png"))


def test_a_legend_of_long_names_stays_inside_the_figure(train) -> None:
    """The width is measured on the rendered figure."""
    histories = [
        RunHistory(f"random-ltd-constant-lr-by-steps-seed{number}", {}, (train(1),), ()) for number in range(9)
    ]
    figure = draw(histories, panels_of(histories), ("steps", "flops"))
    rendered(figure, ".png")
    (legend,) = figure.legends
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_only_smoothed_curves_are_called_smoothed(train) -> None:
    """A point of a run of 100 steps is the mean of two."""
    for num_steps, note in ((99, "line: training, points"), (100, "line: training, smoothed, points")):
        history = RunHistory("run", {}, tuple(train(step) for step in range(1, num_steps + 1)), ())
        assert panels_of([history])[0].note.startswith(note)


def test_of_equal_curves_the_first_is_the_widest(train) -> None:
    """The third run's rate is another one, so that it hides none."""
    steps = [tuple({**train(step), "lr": rate} for step in (1, 2)) for rate in (1.0, 1.0, 2.0)]
    histories = [RunHistory(f"run {number}", {}, lines, ()) for number, lines in enumerate(steps)]
    (panel,) = [panel for panel in panels_of(histories) if panel.title == "learning rate"]
    first, second, third = draw(histories, [panel], ("steps",)).axes[0].lines
    assert first.get_linewidth() > second.get_linewidth() == third.get_linewidth()

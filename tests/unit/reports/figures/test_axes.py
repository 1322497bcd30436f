"""Positions of a run's steps and evaluations on each axis, against values computed by hand."""

from __future__ import annotations

import pytest

from megatron.ltd.reports.figures.axes import AXES, places_of
from megatron.ltd.reports.metrics import read_history


def test_every_axis_counts_what_the_run_logged(write_run, train) -> None:
    """The run has 3 steps, each of 16 tokens, 24 layer tokens in 2 layers, 30 FLOPs and 2 seconds."""
    history = read_history(write_run("run", *(train(step) for step in (1, 2, 3))), "run")
    assert {name: list(axis.values(history)) for name, axis in AXES.items()} == {
        "steps": [0, 1, 2, 3],
        "tokens": [0, 16, 32, 48],
        "layer-tokens": [0, 12, 24, 36],
        "flops": [0, 30, 60, 90],
        "seconds": [0, 2, 4, 6],
    }


def test_a_log_that_begins_in_the_middle_does_not_begin_at_zero(write_run, train) -> None:
    history = read_history(write_run("run", *(train(step) for step in (101, 102))), "run")
    assert list(AXES["steps"].values(history)) == [100, 101, 102]
    assert list(AXES["tokens"].values(history)) == [1616, 1616, 1632]
    assert list(AXES["flops"].values(history)) == [0, 30, 60]


def test_an_evaluation_is_drawn_at_the_last_step_before_it(write_run, train) -> None:
    history = read_history(write_run("run", *(train(step) for step in (1, 2, 3))), "run")
    assert list(places_of(history, [{"iteration": step} for step in (0, 2, 3)])) == [0, 2, 3]


@pytest.mark.parametrize(
    ("axis", "largest", "unit", "label"),
    [
        ("steps", 9000, 1.0, "steps"),
        ("steps", 372757, 1e3, "thousand steps"),
        ("steps", 10_000, 1e3, "thousand steps"),
        ("tokens", 9999, 1.0, "tokens"),
        ("tokens", 2.5e6, 1e6, "million tokens"),
        ("tokens", 3.909e11, 1e9, "billion tokens"),
        ("layer-tokens", 3e11, 1e9, "billion layer tokens / layers"),
        ("flops", 4.2e21, 1e21, "ZFLOP computed"),
        ("flops", 40.0, 1.0, "FLOP computed"),
        ("seconds", 300.0, 1.0, "seconds in training steps"),
        ("seconds", 7300.0, 3600.0, "hours in training steps"),
        ("seconds", 9.4e5, 86400.0, "days in training steps"),
    ],
)
def test_units(axis: str, largest: float, unit: float, label: str) -> None:
    assert AXES[axis].unit(largest) == (unit, label)

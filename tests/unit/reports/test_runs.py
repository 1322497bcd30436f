"""Which runs a reporting tool reads, and how it names them."""

from __future__ import annotations

from pathlib import Path

from megatron.ltd.reports.runs import RunsConfig, read_runs


def names_of(*runs: Path, names: tuple[str, ...] = ()) -> list[str]:
    return [history.name for history in read_runs(RunsConfig(runs=tuple(map(str, runs)), names=names))]


def test_runs_are_named_after_their_folders_by_default(write_run, train) -> None:
    a, b = write_run("a", train(1)), write_run("b", train(1))
    assert names_of(a, b) == ["a", "b"]
    assert names_of(a, b, names=("x", "y")) == ["x", "y"]


def test_runs_in_folders_of_equal_names_are_named_by_their_paths(tmp_path: Path, write_run, train) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (write_run("log", train(1))).rename(tmp_path / run / "log")
    assert names_of(tmp_path / "a" / "log", tmp_path / "b" / "log") == [f"{tmp_path}/{run}/log" for run in ("a", "b")]

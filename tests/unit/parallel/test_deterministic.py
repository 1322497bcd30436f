"""The settings of ``--deterministic-mode``, and that they hold for the run alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.ltd.parallel.deterministic import deterministic_mode
from megatron.ltd.training import loop
from megatron.ltd.training.loop import train
from tests.end_to_end.runs import run_status, tiny_flags, write_data
from tests.support_errors import refused

VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO", "NVTE_ALLOW_NONDETERMINISTIC_ALGO")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_an_operation_without_a_deterministic_algorithm_is_refused() -> None:
    """From torch's own list, which has few operations of the CPU."""
    values, index = torch.ones(4), torch.tensor([1])
    with deterministic_mode(enabled=True), pytest.raises(RuntimeError, match="deterministic"):
        values.put_(index, torch.ones(1), accumulate=False)
    with deterministic_mode(enabled=False):
        values.put_(index, torch.ones(1), accumulate=False)


def test_the_variables_are_set_for_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    with deterministic_mode(enabled=True):
        assert [os.environ[name] for name in VARIABLES] == [":4096:8", "Ring", "0"]
    assert [os.environ.get(name) for name in VARIABLES] == [None, "Ring", None]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [(VARIABLES[0], ":0:0", ":4096:8"), (VARIABLES[1], "NVLS", "Ring"), (VARIABLES[2], "1", "0")],
)
def test_a_users_setting_that_contradicts_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, needed: str
) -> None:
    monkeypatch.setenv(name, value)
    with refused(f"{name}={value}", "--deterministic-mode", needed), deterministic_mode(enabled=True):
        pass


def test_a_run_is_deterministic_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation of a run on the CPU passes torch's check."""
    data, seen = write_data(tmp_path), []

    def watched(run: Any, *more: Any) -> Any:
        seen.append((torch.are_deterministic_algorithms_enabled(), run.state.chunks[0].config.deterministic_mode))
        return train(run, *more)

    monkeypatch.setattr(loop, "train", watched)
    for name, flags in (("usual", []), ("deterministic", ["--deterministic-mode"])):
        assert run_status(tiny_flags(data, *flags, "--log-dir", tmp_path / name)) == (0, "")
    usual, deterministic = (losses(tmp_path / name) for name in ("usual", "deterministic"))
    assert seen == [(False, False), (True, True)] and len(usual) == 6 and usual == deterministic


def losses(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "train"]

"""A pickle in place of a cached sample index is not executed: the index is rebuilt, and the run does not change."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron.ltd.config import Entry
from megatron.ltd.workloads import BERT, GPT
from tests.end_to_end.runs import bert_flags, metrics, run_status, tiny_flags, write_data
from tests.support_pickles import Payload


def _beside_the_data(folder: Path) -> list[str]:
    return tiny_flags(write_data(folder))


def _in_a_cache_folder(folder: Path) -> list[str]:
    blend = ["--train-data-path", write_data(folder, "b"), write_data(folder, "c", "other words ")]
    return [*tiny_flags(write_data(folder)), *blend, "--data-cache-path", str(folder / "cache")]


@pytest.mark.parametrize(
    ("flags", "workload"),
    [(_beside_the_data, GPT), (_in_a_cache_folder, GPT), (bert_flags, BERT)],
    ids=["gpt", "blend", "bert"],
)
def test_no_command_runs_code_of_a_cached_index(
    flags: Callable[[Path], list[str]], workload: Entry, tmp_path: Path
) -> None:
    mark, log = tmp_path / "the payload ran", tmp_path / "log"
    command = [*flags(tmp_path), "--log-dir", str(log)]
    assert run_status(command, workload=workload) == (0, "")
    expected = metrics(log)
    shutil.rmtree(log)
    indices = list(tmp_path.rglob("*_index.npy"))
    assert indices
    for path in indices:
        path.write_bytes(pickle.dumps(Payload(mark)))
    ended = run_status(command, workload=workload)
    assert not mark.exists() and ended == (0, "") and metrics(log) == expected

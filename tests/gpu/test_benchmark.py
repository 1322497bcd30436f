"""``tools/benchmark/gpu.py`` from its flags to its page, on tiny models."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = "tools/benchmark/gpu.py"
ARMS = ["dense", *(f"random-LTD{blocks}, K = {kept}" for kept in (16, 64, 128) for blocks in ("", " in blocks of 16"))]


def benchmark(repository: Path, monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, flags)])
    runpy.run_path(str(repository / SCRIPT))["main"]()


def test_the_benchmark_runs_to_its_end(
    device: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rows are there, and a second start measures none of them again."""
    flags = (
        f"--tiny --device {device} --shapes 1.3b --rounds 1 --warmup-rounds 0 --visits 1 --output {tmp_path}".split()
    )
    benchmark(repository, monkeypatch, *flags)
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = record["rows"]
    assert [row["failed"] for row in rows] == [None] * len(rows)
    by_contender: dict[str, list[str]] = {}
    for row in rows:
        by_contender.setdefault(row["contender"], []).append(row["arm"])
    others = ("hugging_face", "hugging_face_fused", "plain", "plain_compiled")
    ours = {"local": ARMS} | ({"transformer_engine": ARMS} if "transformer_engine" in by_contender else {})
    assert by_contender == ours | dict.fromkeys(others, ["dense"])
    assert ("skipped ours on Transformer Engine" in printed) == ("transformer_engine" not in by_contender)
    for row in rows:
        assert row["seconds"][0] > 0 and row["tokens"] == 1024
        dropping = row["kept_tokens"] is not None
        assert (len(row["dense_seconds"]) == 1 and row["routing_seconds"] > 0) if dropping else not row["dense_seconds"]
        assert (row["peak_bytes"] is not None) == (device == "cuda")
        assert bool(row["kernels"]) == (row["command"] is not None) == (row["planned_bytes"] is not None)
    assert (tmp_path / "gpu.md").read_text(encoding="utf-8").strip() in printed

    monkeypatch.setattr("gpu.contenders.built", None)
    benchmark(repository, monkeypatch, *flags)
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8")) == record


def test_the_smallest_model_one_sample_at_a_time(
    device: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = "--tiny --shapes 350m --contenders one_sample --rounds 1 --warmup-rounds 0 --visits 1"
    benchmark(repository, monkeypatch, *flags.split(), "--device", device, "--output", tmp_path)
    rows = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["rows"]
    assert {(row["model"], row["contender"], row["micro_batch_size"], row["failed"]) for row in rows} == {
        ("350m", "one_sample", 1, None)
    }
    assert rows[0]["arm"] == "dense" and all(row["seconds"][0] > 0 for row in rows)

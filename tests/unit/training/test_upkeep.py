"""What a run does around its steps on CUDA, with the functions of ``torch.cuda`` that it calls replaced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron.ltd.plan.config import TrainingConfig
from megatron.ltd.training.config import LoggingConfig
from megatron.ltd.training.upkeep import Upkeep


def upkeep(device: str, folder: Path, **flags: Any) -> Upkeep:
    mesh: Any = SimpleNamespace(device=torch.device(device), rank=0)
    return Upkeep(TrainingConfig(train_iters=6), LoggingConfig(**flags), mesh, folder)


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A GPU's allocator in small, which holds 100 bytes; a call that waits for the GPU fails."""
    now = {"peak": 100}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: now.update(peak=100))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: now["peak"])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: pytest.fail("the host waited"))
    return now


def test_memory_is_that_of_each_step(peak: dict[str, int], tmp_path: Path) -> None:
    on_gpu, measured = upkeep("cuda", tmp_path), []
    for step, allocated in enumerate((900, 300)):
        on_gpu.before_step(step)
        peak["peak"] = max(peak["peak"], 100 + allocated)
        measured.append(on_gpu.memory())
    assert measured == [{"peak_memory_bytes": 1000}, {"peak_memory_bytes": 400}]


def test_a_cpu_has_no_peak(peak: dict[str, int], tmp_path: Path) -> None:
    on_cpu = upkeep("cpu", tmp_path)
    on_cpu.before_step(0)
    assert on_cpu.memory() == {}


@pytest.mark.parametrize(
    ("device", "until", "expected"),
    [
        ("cuda", 6, ["step 0", "step 1", "start", "step 2", "step 3", "stop", "step 4", "step 5"]),
        ("cuda", 3, ["step 0", "step 1", "start", "step 2", "stop"]),
        ("cpu", 6, [f"step {step}" for step in range(6)]),
    ],
    ids=["whole", "a run that ends before", "on a CPU"],
)
def test_steps_are_marked_for_nsight_systems(
    device: str,
    until: int,
    expected: list[str],
    peak: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The range of ``nsys profile --capture-range=cudaProfilerApi`` is opened and closed once."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: calls.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: calls.append("stop"))
    around = upkeep(device, tmp_path, profile=True, profile_step_start=2, profile_step_end=4)
    with around.running():
        for step in range(until):
            around.before_step(step)
            calls.append(f"step {step}")
    assert calls == expected

"""What happens around steps on the machine: Python's garbage, CUDA's memory, and profiling.

None of it changes a number.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.config import TrainingConfig
from megatron.ltd.training.config import LoggingConfig


class Upkeep:
    """Call ``before_step`` and ``after_step`` within ``running``."""

    def __init__(self, training: TrainingConfig, logging: LoggingConfig, mesh: Mesh, folder: Path) -> None:
        """``folder`` is where a trace of PyTorch's profiler goes."""
        self._training = training
        self._logging = logging
        self._mesh = mesh
        self._folder = folder
        self._profiler: Any = None
        self._in_range = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """With ``--manual-gc`` no garbage is collected within the block but by ``after_step``."""
        collected_before = gc.isenabled()
        if self._training.manual_gc:
            gc.disable()
        try:
            yield
        finally:
            self._stop_profiling()
            if collected_before:
                gc.enable()

    def before_step(self, step: int) -> None:
        """``step`` is counted from 0."""
        if self._mesh.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._mesh.device)
        if self._logging.profile and step == self._logging.profile_step_start:
            self._start_profiling()
        if step == self._logging.profile_step_end:
            self._stop_profiling()

    def memory(self) -> dict[str, int]:
        """The most memory that tensors of this process took since ``before_step``, by its field in metrics.jsonl.

        Empty on a CPU. The allocator counts on the host, so that nothing waits for the GPU.
        """
        device = self._mesh.device
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}

    def after_step(self, steps_done: int) -> None:
        """Collect garbage and return unused memory when it is due."""
        interval = self._training.manual_gc_interval
        if interval and steps_done % interval == 0:
            gc.collect()
        if self._training.empty_unused_memory_level and self._mesh.device.type == "cuda":
            torch.cuda.empty_cache()

    def _start_profiling(self) -> None:
        if self._logging.use_pytorch_profiler:
            self._profiler = torch.profiler.profile()
            self._profiler.start()
        elif self._mesh.device.type == "cuda":
            torch.cuda.profiler.start()
            self._in_range = True

    def _stop_profiling(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(self._folder / f"trace-{self._mesh.rank}.json"))
            self._profiler = None
        if self._in_range:
            torch.cuda.profiler.stop()
            self._in_range = False

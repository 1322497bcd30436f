"""Seconds of work on a device, with what it queues there, and the peak of its memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Meter:
    """Measures on one device with one clock."""

    device: torch.device
    clock: Callable[[], float] = time.perf_counter

    def seconds(self, work: Work) -> float:
        """The seconds of ``work``."""
        self.wait()
        started = self.clock()
        work()
        self.wait()
        return self.clock() - started

    def seconds_and_peak(self, work: Work) -> tuple[float, int | None]:
        """The seconds of ``work``, and the most memory that was allocated meanwhile [bytes]; None on a CPU."""
        if self.device.type != "cuda":
            return self.seconds(work), None
        torch.cuda.reset_peak_memory_stats(self.device)
        return self.seconds(work), torch.cuda.max_memory_allocated(self.device)

    def allocated_bytes(self) -> int:
        """Memory that is allocated now; 0 on a CPU."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def wait(self) -> None:
        """Wait for all that is queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

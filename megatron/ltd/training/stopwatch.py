"""How long a step takes: on the clock, in processor time, and without a processor.

    step_seconds        clock                                    grows if other programs use the machine
    step_cpu_seconds    processor time of all threads            hardly does; None with a GPU
    step_idle_seconds   clock - processor time of this thread    how much it did; None with a GPU or several processes

On a CPU this thread computes all the time, so that what it lacks is what others took. Other processes of a run make it
wait too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

TIMINGS = (
    *("step_seconds", "step_cpu_seconds", "step_idle_seconds", "tokens_per_second", "tflops_per_device"),
    "peak_memory_bytes",
)
"""Fields of a step's line in metrics.jsonl that differ between two runs of the same command."""


@dataclass(frozen=True)
class Stopwatch:
    """The clocks at the start of a step."""

    clock: float
    process: float
    thread: float

    @classmethod
    def start(cls) -> Stopwatch:
        """Start now."""
        return cls(time.perf_counter(), time.process_time(), time.thread_time())

    def times(self, device_type: str, world_size: int) -> dict[str, float | None]:
        """The times since the start, by their fields in metrics.jsonl."""
        seconds, on_cpu = time.perf_counter() - self.clock, device_type == "cpu"
        idle = max(0.0, seconds - (time.thread_time() - self.thread))
        return {
            "step_seconds": seconds,
            "step_cpu_seconds": time.process_time() - self.process if on_cpu else None,
            "step_idle_seconds": idle if on_cpu and world_size == 1 else None,
        }

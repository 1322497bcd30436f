"""One row: seconds of its steps and of the dense step, peak memory, and the time of its kernels.

    round 1:  dense  row     round 2:  dense  row     ...        alternating in one process, on the same model

The step of a dense row, or of another's model, is measured by itself.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import DeviceType

from megatron.ltd.errors import RunStopped
from megatron.ltd.layers.route import Route

Step = Callable[[], object]

ROUTING = (
    "draw of kept tokens",
    *(f"{name}{part}" for name in ("_Split", "_Merge", "_SplitForSum", "_MergeSum") for part in ("", "Backward")),
)
"""What a routed layer adds to a dense one, by its name in a profile: the draw, and the operations of
``routing.gather_scatter``. Those of ``routing.split_sums`` contain two additions that a dense layer has as well."""
_MOST_KERNELS = 20


@dataclass
class Timing:
    """Lists have one entry for each measured round."""

    seconds: list[float] = field(default_factory=list)
    dense_seconds: list[float] = field(default_factory=list)
    """Of the dense step of the same round; empty for a row without one"""
    peak_bytes: int | None = None
    """Most memory that was allocated during the row's steps, without what was there before the model; None on a CPU"""


@dataclass(frozen=True)
class Profile:
    """Where the time of one step goes; on a GPU the time of its kernels."""

    routing_seconds: float
    kernels: list[tuple[str, int, float]]
    """Name, calls and seconds of those that take most"""


@dataclass(frozen=True)
class Meter:
    """Measures on one device. ``held_bytes`` were allocated before the model was built."""

    device: torch.device
    held_bytes: int = 0

    @classmethod
    def on(cls, device: torch.device) -> Meter:
        """A meter for a model that is not built yet; the memory of earlier ones is given back."""
        if device.type != "cuda":
            return cls(device)
        gc.collect()
        gc.collect()  # again: what compiled code held
        torch.cuda.empty_cache()
        return cls(device, torch.cuda.memory_allocated(device))

    def measure(self, step: Step, dense: Step | None, *, warmup_rounds: int, rounds: int) -> Timing:
        """Seconds and memory of ``step`` over the rounds."""
        timing = Timing()
        for number in range(warmup_rounds + rounds):
            dense_seconds = None if dense is None else self._seconds(dense)
            self._forget_peak()
            seconds, peak = self._seconds(step), self._peak_bytes()
            if number < warmup_rounds:
                continue
            timing.seconds.append(seconds)
            timing.dense_seconds += [] if dense_seconds is None else [dense_seconds]
            if peak is not None:
                timing.peak_bytes = max(peak, timing.peak_bytes or 0)
        return timing

    def profile(self, step: Step) -> Profile:
        """Profile one step."""
        with _named_draw(), torch.profiler.profile() as profiler:
            step()
            self._wait()
        return summarize(profiler.key_averages(), on_gpu=self.device.type == "cuda")

    def check(self, after: str) -> None:
        """Raise ``RunStopped`` if the GPU no longer answers."""
        try:
            self._wait()
        except RuntimeError as error:
            raise RunStopped(
                f"the GPU does not answer after {after} ({first_line(error)}); the same command "
                "goes on with the next row"
            ) from None

    def _seconds(self, work: Step) -> float:
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak_bytes(self) -> int | None:
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) - self.held_bytes


def summarize(events: Iterable[Any], *, on_gpu: bool) -> Profile:
    """The profile of a step from the averages of torch's profiler, whose times are in microseconds.

    On a GPU each operation has the time of its kernels, and each kernel and named block has an event of its own. Raises
    ``RuntimeError`` if the profiler saw no kernels there, which takes rights that a container may not have.
    """
    operations = [event for event in events if event.device_type == DeviceType.CPU]
    kernels = [event for event in events if event.device_type != DeviceType.CPU and not event.is_user_annotation]
    kind, longest = ("device", kernels) if on_gpu else ("cpu", operations)
    if not longest:
        raise RuntimeError("the profiler saw no kernels")
    routing = sum(getattr(event, f"{kind}_time_total") for event in operations if event.key in ROUTING)
    own = [(event.key, event.count, getattr(event, f"self_{kind}_time_total") / 1e6) for event in longest]
    return Profile(routing / 1e6, sorted(own, key=lambda kernel: kernel[2], reverse=True)[:_MOST_KERNELS])


def first_line(error: Exception) -> str:
    """The name of an error and the first line of its message."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def _named_draw() -> Iterator[None]:
    """A block in which the draw of kept tokens has a name in profiles."""
    draw = Route._draw

    def named(self: Route, *place: Any) -> Any:
        with torch.profiler.record_function(ROUTING[0]):
            return draw(self, *place)

    Route._draw = named  # type: ignore[method-assign]
    try:
        yield
    finally:
        Route._draw = draw  # type: ignore[method-assign]

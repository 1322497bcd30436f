"""One row: seconds of its steps and of the dense step, peak memory, and the time of its kernels.

    round 1:  dense  row     round 2:  dense  row     ...        alternating in one process, on the same model

The step of a dense row, or of another's model, is measured by itself.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from common.meter import Meter, Work
from torch.autograd import DeviceType

from megatron.ltd.errors import RunStopped
from megatron.ltd.layers.route import Route

ROUTING = (
    "draw of kept tokens",
    *(f"{name}{part}" for name in ("_Split", "_Merge", "_SplitForSum", "_MergeSum") for part in ("", "Backward")),
)
"""What a routed layer adds to a dense one, by its name in a profile: the draw, and the operations of
``routing.gather_scatter``. Those of ``routing.split_sums`` contain two additions that a dense layer has as well."""
_MOST_KERNELS = 20


@dataclass(frozen=True)
class Profile:
    """Where the time of one step goes; on a GPU the time of its kernels."""

    routing_seconds: float
    kernels: list[tuple[str, int, float]]
    """Name, calls and seconds of those that take most"""


@dataclass(frozen=True)
class ModelMeter(Meter):
    """Measures one model. ``held_bytes`` were allocated before it was built."""

    held_bytes: int = 0

    @classmethod
    def on(cls, device: torch.device) -> ModelMeter:
        """A meter for a model that is not built yet; the memory of earlier ones is given back."""
        if device.type == "cuda":
            gc.collect()
            gc.collect()  # again: what compiled code held
            torch.cuda.empty_cache()
        return cls(device, held_bytes=Meter(device).allocated_bytes())

    def measure(self, step: Work, dense: Work | None, *, warmup_rounds: int, rounds: int) -> dict[str, Any]:
        """Seconds and memory of ``step`` over the rounds, as fields of a ``record.Row``."""
        all_seconds, all_dense_seconds, peaks = [], [], []
        for _ in range(warmup_rounds + rounds):
            all_dense_seconds += [] if dense is None else [self.seconds(dense)]
            seconds, peak = self.seconds_and_peak(step)
            all_seconds.append(seconds)
            peaks += [] if peak is None else [peak - self.held_bytes]
        return {
            "seconds": all_seconds[warmup_rounds:],
            "dense_seconds": all_dense_seconds[warmup_rounds:],
            "peak_bytes": max(peaks[warmup_rounds:], default=None),
        }

    def profile(self, step: Work) -> Profile:
        """Profile one step."""
        with _named_draw(), torch.profiler.profile() as profiler:
            step()
            self.wait()
        return summarize(profiler.key_averages(), on_gpu=self.device.type == "cuda")

    def check(self, after: str) -> None:
        """Raise ``RunStopped`` if the GPU no longer answers."""
        try:
            self.wait()
        except RuntimeError as error:
            raise RunStopped(
                f"the GPU does not answer after {after} ({first_line(error)}); the same command "
                "goes on with the next row"
            ) from None


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

    with patch.object(Route, "_draw", named):
        yield

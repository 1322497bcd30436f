"""Progress of a benchmark: one line about the whole benchmark and every running process.

On a terminal the line is rewritten twice a second, otherwise it is printed once a minute. The remaining time is
estimated from planned FLOPs, because the steps of random-LTD take longer as the number of kept tokens grows.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.ltd.format import format_seconds

from .spec import RunSpec

_LINE_SECONDS = 60.0
_TAIL_BYTES = 8192


class ProgressLine:
    """Shows the progress of ``specs``, all runs of a benchmark. As a context manager, it clears its line at the end."""

    def __init__(self, specs: Sequence[RunSpec]) -> None:
        self._specs = specs
        self._started = time.monotonic()
        self._flops_at_start = self._flops_done()
        self._terminal = sys.stderr.isatty()
        self._last_line = -_LINE_SECONDS

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._clear()

    def say(self, text: str) -> None:
        """Print a permanent line."""
        self._clear()
        print(text, flush=True)

    def show(self, running: Sequence[RunSpec]) -> None:
        """Show the progress line if it is due."""
        now = time.monotonic()
        if not running or (not self._terminal and now - self._last_line < _LINE_SECONDS):
            return
        self._last_line = now
        text = self._text(running)
        if self._terminal:
            self._clear()
            sys.stderr.write(text[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
        else:
            print(text, flush=True)

    def _text(self, running: Sequence[RunSpec]) -> str:
        done = sum((spec.folder / "result.json").exists() for spec in self._specs)
        flops, planned = self._flops_done(), sum(spec.planned_flops for spec in self._specs)
        computed, elapsed = flops - self._flops_at_start, time.monotonic() - self._started
        left = f"{format_seconds(elapsed * (planned - flops) / computed)} left" if computed else "time left unknown"
        parts = [f"{done}/{len(self._specs)} runs done, {flops / planned:.0%} of the FLOPs, {left}"]
        for spec in running:
            line = last_step(spec.folder / "metrics.jsonl")
            at = f"step {line['iteration']}/{spec.steps} loss {line['loss']:.3f}" if line else "starting"
            parts.append(f"{spec.name}: {at}")
        return " | ".join(parts)

    def _flops_done(self) -> float:
        return sum(self._flops_of(spec) for spec in self._specs)

    @staticmethod
    def _flops_of(spec: RunSpec) -> float:
        if (spec.folder / "result.json").exists():
            return spec.planned_flops
        line = last_step(spec.folder / "metrics.jsonl")
        # The first steps of random-LTD cost less; counting all steps equally is a small error that vanishes at the end.
        return spec.planned_flops * line["iteration"] / spec.steps if line else 0.0

    def _clear(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def last_step(path: Path) -> dict[str, Any] | None:
    """The last training step in a metrics.jsonl, read from the end of the file; None if there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            tail = file.read()
    except FileNotFoundError:
        return None
    for text in reversed(tail.split(b"\n")):
        if text.startswith(b'{"kind": "train"') and text.endswith(b"}"):
            record: dict[str, Any] = json.loads(text)
            return record
    return None

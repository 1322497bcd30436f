"""Exiting early, between two steps and on all ranks together.

SIGTERM (a scheduler's warning) saves and exits with status 0; a first Ctrl-C saves too and exits with 130; a second one
exits at once. ``--exit-interval``, ``--exit-duration-in-mins`` and the end of torchrun are checked in the same place.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from megatron.ltd.parallel.contact import lost_contact
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.plan.config import TrainingConfig

_REASONS = (
    "", "--exit-duration-in-mins is over", "the launcher has ended", "SIGTERM arrived", "Ctrl-C was pressed"
)  # fmt: skip
_DURATION, _LAUNCHER, _SIGTERM, _CTRL_C = range(1, 5)
INTERRUPTED = _REASONS[_CTRL_C]


class ExitRequests:
    """Collects reasons to exit; ``reason`` is the same on every rank."""

    def __init__(self, config: TrainingConfig, mesh: Mesh) -> None:
        self._config = config
        self._mesh = mesh
        self._started = time.monotonic()
        self._request = 0
        # If torchrun dies and is started again, its new processes would run beside these.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Treat SIGTERM and Ctrl-C as requests within the block.

        If the block ends because another process died, SIGTERM stays ignored: the launcher sends it to the remaining
        processes, and this one still has a line to print.
        """
        before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        except RuntimeError as error:
            if lost_contact(error) is not None:
                before[signal.SIGTERM] = signal.SIG_IGN
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._request == _CTRL_C:
            raise KeyboardInterrupt
        self._request = max(self._request, _SIGTERM if number == signal.SIGTERM else _CTRL_C)

    def reason(self, iteration: int) -> str | None:
        """Why the run should save and exit after ``iteration`` steps, or None. Every rank calls this at each step."""
        request = self._request
        minutes = self._config.exit_duration_in_mins
        if minutes is not None and time.monotonic() - self._started > 60.0 * minutes:
            request = max(request, _DURATION)
        if self._launcher is not None and os.getppid() != self._launcher:
            request = max(request, _LAUNCHER)
        if self._mesh.world_size > 1:
            requests = torch.tensor(request, device=self._mesh.device)
            dist.all_reduce(requests, op=dist.ReduceOp.MAX)
            request = int(requests)
        interval = self._config.exit_interval
        if not request and interval is not None and iteration % interval == 0:
            return f"--exit-interval {interval} is reached"
        return _REASONS[request] or None

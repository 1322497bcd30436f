"""Leaving early, between two steps and on all ranks together.

SIGTERM (a scheduler's warning) saves and ends with status 0; a first Ctrl-C saves too and ends with 130; a second one
stops where it is. ``--exit-interval`` and ``--exit-duration-in-mins`` are asked in the same place.
"""

from __future__ import annotations

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
from megatron.ltd.training.config import TrainingConfig

_REASONS = ("", "--exit-duration-in-mins is over", "SIGTERM arrived", "Ctrl-C was pressed")
INTERRUPTED = _REASONS[3]


class ExitRequests:
    """Collects reasons to leave; ``reason`` tells every rank the same one."""

    def __init__(self, config: TrainingConfig, mesh: Mesh) -> None:
        self._config = config
        self._mesh = mesh
        self._started = time.monotonic()
        self._request = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM and Ctrl-C as requests inside the block.

        Where it ends because another process is gone, SIGTERM stays without effect: it is a launcher's, which ends
        those that are left over, and one line is still to be said.
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
        if number == signal.SIGINT and self._request == 3:
            raise KeyboardInterrupt
        self._request = max(self._request, 2 if number == signal.SIGTERM else 3)

    def reason(self, iteration: int) -> str | None:
        """Why the run should save and leave after ``iteration`` steps, or None. Every rank calls this each step."""
        request = self._request
        minutes = self._config.exit_duration_in_mins
        if minutes is not None and time.monotonic() - self._started > 60.0 * minutes:
            request = max(request, 1)
        if self._mesh.world_size > 1:
            requests = torch.tensor(request, device=self._mesh.device)
            dist.all_reduce(requests, op=dist.ReduceOp.MAX)
            request = int(requests)
        interval = self._config.exit_interval
        if not request and interval is not None and iteration % interval == 0:
            return f"--exit-interval {interval} is reached"
        return _REASONS[request] or None

"""A run under torchrun that can be started again, and its log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from megatron.ltd.errors import RunStopped

from .processes import SCRIPT, kill_all, ranks, start, torchrun

_LONGEST_WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.02
_CLOCKS = ("step_seconds", "tokens_per_second", "tflops_per_device")


class SoakedRun:
    """A run in ``folder``; ``flags`` returns its flags for a folder to save in. torchrun may restart it."""

    def __init__(self, folder: Path, flags: Callable[[str], list[str]], max_restarts: int) -> None:
        self.save = folder / "save"
        self._command = [*torchrun("--max-restarts", str(max_restarts)), str(SCRIPT), *flags(str(self.save))]
        self._output = folder / "output.txt"
        self._left_unfinished: set[str] = set()
        folder.mkdir(parents=True)
        self.start()

    def start(self) -> None:
        """Start the run, the first time or again."""
        with self._output.open("a", encoding="utf-8") as output:
            self._launcher = start(self._command, output)

    def kill(self) -> None:
        """Kill all of its processes that are left."""
        kill_all(self._launcher)

    def kill_launcher(self) -> None:
        """Kill torchrun alone; its ranks stay."""
        self._launcher.kill()
        self._launcher.wait()

    def ranks(self) -> dict[int, psutil.Process]:
        """Its living ranks by number."""
        return ranks(self._launcher)

    def said(self) -> str:
        """Everything that it has printed."""
        return self._output.read_text(encoding="utf-8")

    def num_steps(self) -> int:
        """Steps in its log, including those that were computed again."""
        return self._log_text().count('"kind": "train"')

    def last_step(self) -> int:
        """The last step of its log; 0 if it has none."""
        return next((line["iteration"] for line in reversed(self._log()) if line["kind"] == "train"), 0)

    def timeless_log(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Every step and evaluation without its seconds; of those that are there twice, the later one."""
        return {
            (line["kind"], line["iteration"]): {name: value for name, value in line.items() if name not in _CLOCKS}
            for line in self._log()
            if line["kind"] != "run"
        }

    def finds_unfinished(self) -> bool:
        """Whether there is a new unfinished checkpoint since the last call."""
        before, self._left_unfinished = self._left_unfinished, {path.name for path in self.save.glob("iter_*.partial")}
        return not self._left_unfinished <= before

    def wait_for_ranks(self) -> None:
        """Wait until both ranks have been started."""
        self._wait_for(lambda: len(self.ranks()) == 2)

    def wait_for_step(self, num_steps: int) -> None:
        """Wait until its log has more than ``num_steps`` steps."""
        self._wait_for(lambda: self.num_steps() > num_steps)

    def wait_for_end(self) -> None:
        """Wait until it ends. Raises ``RunStopped`` if its status is not 0."""
        logged = -1
        while self._launcher.poll() is None:
            logged, before = self.num_steps(), logged
            self._wait_for(lambda before=before: self._launcher.poll() is not None or self.num_steps() > before)
        if self._launcher.poll() != 0:
            raise RunStopped(f"a run ended with status {self._launcher.poll()}:\n{self.said()[-2000:]}")

    def _wait_for(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        while not happened():
            if self._launcher.poll() is not None and not happened():
                raise RunStopped(f"a run ended with status {self._launcher.poll()}:\n{self.said()[-2000:]}")
            if time.monotonic() > deadline:
                raise RunStopped(f"nothing has happened for {_LONGEST_WAIT_SECONDS:.0f} s:\n{self.said()[-2000:]}")
            time.sleep(_POLL_SECONDS)

    def _log(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self._log_text().splitlines()]

    def _log_text(self) -> str:
        """The complete lines of its log."""
        path = self.save / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return text[: text.rfind("\n") + 1]

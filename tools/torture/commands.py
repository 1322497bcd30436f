"""A command that is run in a copy of the material, and what is compared of its end."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.errors import RunStopped
from megatron.ltd.training.stopwatch import TIMINGS

from .child import Ending, in_child
from .material import copy_of
from .warm import REPOSITORY, run_program

Result = Mapping[str, str]
OUTPUT = "standard output"


@dataclass(frozen=True)
class Command:
    """A script with its words."""

    script: str
    words: Sequence[str]
    results: Sequence[str] = ()
    """Patterns of the files that are compared, or ``OUTPUT``; none: any end is right."""

    def run(self, folder: Path, before: Callable[[], object] = lambda: None) -> Ending:
        """How it ends in ``folder``, where its process calls ``before`` first."""

        def program() -> None:
            before()
            run_program(REPOSITORY / self.script, self.words)

        return in_child(program, folder)

    def result(self, folder: Path, ending: Ending) -> Result:
        """What is compared; nothing unless it has succeeded."""
        if ending.status != 0:
            return {}
        found = {path.name: _content(path) for pattern in self.results for path in sorted(folder.glob(pattern))}
        return found | ({OUTPUT: ending.out} if OUTPUT in self.results else {})


def _content(path: Path) -> str:
    """A checksum; of a log the last records of training and validation, without timings."""
    if path.name != "metrics.jsonl":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [json.loads(line) for line in path.read_text(errors="replace").splitlines() if line[-1:] == "}"]
    kinds = {line["kind"]: {name: value for name, value in line.items() if name not in TIMINGS} for line in lines}
    return json.dumps([kinds.get(kind) for kind in ("train", "validation")])


class Undisturbed:
    """The results of commands ``where`` nothing is wrong; a command runs when its result is first asked for."""

    def __init__(self, material: Path, where: str) -> None:
        self._material, self._where = material, where
        self._results: dict[str, Result] = {}

    def result_of(self, name: str, command: Command) -> Result:
        """The result of the command that ``name`` stands for. Raises ``RunStopped`` if it fails."""
        if name not in self._results:
            folder = copy_of(self._material, Path(tempfile.mkdtemp(dir=self._material.parent), "whole"))
            (folder / "disk").mkdir()
            ending = command.run(folder)
            if ending.status != 0:
                raise RunStopped(f"{name} ended with {ending} on {self._where}")
            self._results[name] = command.result(folder, ending)
        return self._results[name]

"""Random and boundary command lines of every program.

Right: the command works, or says in one line why not. A run that takes long is asked to end with SIGTERM, and must.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..child import in_child
from ..material import copy_of
from ..programs import Program, programs
from ..trials import Trial
from ..verdict import problem_of
from ..warm import run_program
from ..words import command_line, make_special_files

_MOST_SHOWN = 600
_MOST_LAYERS_OF_A_STEP = 10_000
"""That a run of this size computes in the seconds that it has to end."""


class CommandLines:
    """See the module. ``only``: these programs and not all."""

    def __init__(self, material: Path, only: Sequence[Program] | None = None) -> None:
        self._material = material
        self._programs = programs() if only is None else only
        self._weights = [4 if program.trains else 1 for program in self._programs]

    def attempt(self, number: int, draw: random.Random, folder: Path) -> Trial:
        (program,) = draw.choices(self._programs, self._weights)
        words = command_line(program, draw)
        copy_of(self._material, folder)
        make_special_files(folder)
        ending = in_child(partial(run_program, program.path, words), folder)
        kind = f"{program.name} --plan" if program.trains and "--plan" in words else program.name
        shown = shlex.join([program.name, *(word if len(word) < 100 else f"{word[:90]}..." for word in words)])
        problem = problem_of(ending, may_stop=program.trains, may_need_memory=True, may_log="--verbose" in words)
        if ending.was_killed and _layers_of_a_step(words) > _MOST_LAYERS_OF_A_STEP:
            problem = f"skipped: a step of {_layers_of_a_step(words):,} layers, at whose end SIGTERM acts"
        return Trial("command-lines", number, kind, shown[:_MOST_SHOWN], str(ending), problem, ending.seconds)


def _layers_of_a_step(words: Sequence[str]) -> int:
    """Layers of all microbatches of a step, of a command line that trains."""
    given = dict(zip(words, words[1:], strict=False))  # the last one counts
    layers, batch, micro = (
        int(given.get(name, "1")) for name in ("--num-layers", "--global-batch-size", "--micro-batch-size")
    )
    return layers * batch // micro

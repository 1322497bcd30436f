"""The flags of the torture campaigns. This module does not import torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import accumulate

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import ABOVE_ZERO, COUNT_OR_ZERO, SEED

CAMPAIGNS = {
    "kills": "signals and kill -9 at random moments of chains of runs, which must end bit-equal to one left alone",
    "corruption": "damaged files of checkpoints, data, tokenizers, models and logs",
    "command-lines": "random and boundary command lines of every program, made from its flags",
    "data-files": "hostile text, tables and compressed files as the input of data tools",
    "disks": "full disks, inode limits, read-only and closed folders, limits of a process",
}
SHARES = {"kills": 40, "corruption": 12, "command-lines": 50, "data-files": 6, "disks": 12}
"""Of the time, in minutes of two idle cores, estimated from the processor seconds of a trial: for 500 kills, 1,000
corruptions, 20,000 command lines, 300 data files and 200 disks."""


@dataclass(frozen=True)
class TortureConfig(Settings):
    """torture"""

    campaign: tuple[str, ...] = flag((), choices=tuple(CAMPAIGNS), help="only these campaigns (default: all)")
    target: tuple[str, ...] = flag(
        (), metavar="NAME", help="with --campaign corruption: only targets whose names begin with one of these"
    )
    minutes: float = flag(5.0, range=ABOVE_ZERO, help="time, shared among the campaigns")
    seed: int = flag(1234, range=SEED, help="seed of all that is tried")
    trials: int | None = flag(None, help="end each campaign after this many trials, counting those of earlier starts")
    trial: int | None = flag(None, range=COUNT_OR_ZERO, help="repeat this trial of --campaign, and show what it prints")
    workers: int | None = flag(None, help="trials at a time (default: one for each core)")
    output: str | None = flag(
        None, metavar="PREFIX", help="write PREFIX.jsonl, .json and .md; a second start goes on with their trials"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trial is not None and len(self.campaign) != 1:
            raise UserError(f"--trial {self.trial}: numbers are those of one campaign; give --campaign and its name")
        if self.target and self.campaign != ("corruption",):
            raise UserError(f"--target {' '.join(self.target)}: is for damaged files; give --campaign corruption alone")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The campaigns to run, in their order."""
        return tuple(name for name in CAMPAIGNS if not self.campaign or name in self.campaign)

    @property
    def deadlines(self) -> dict[str, float]:
        """When each of the chosen campaigns ends [seconds after the start]."""
        ends = list(accumulate(SHARES[name] for name in self.chosen))
        return {name: 60.0 * self.minutes * end / ends[-1] for name, end in zip(self.chosen, ends, strict=True)}

    @property
    def num_workers(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))

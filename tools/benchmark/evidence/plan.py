"""Which runs there are: ``plan.yaml`` names settings and arms, small files of flags; here they become command lines.

    settings/NAME.yaml    model, data, steps, learning rate
    arms/NAME.flags       what an arm adds; S/4 and T*2/3 are shares of the sequence and of the steps

A run is known by its flags, without folders: ``Run.key``. A record with that key counts as the run, so that adding runs
to the plan makes only those.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml
from real_text.recipe import plan_flags

from megatron.ltd.errors import UserError
from megatron.ltd.planner import RunPlan

HERE = Path(__file__).resolve().parent
DENSE = "dense"
_SHARE = re.compile(r"([ST])(?:\*(\d+))?(?:/(\d+))?")


@dataclass(frozen=True)
class Setting:
    """A model, its data and the length of its runs."""

    name: str
    corpus: str
    vocab_size: int
    steps: int
    lr: float
    flags: tuple[str, ...]

    @cached_property
    def seq_length(self) -> int:
        """Tokens of a sample."""
        return int(self.flags[self.flags.index("--seq-length") + 1])

    @cached_property
    def batch_samples(self) -> int:
        """Samples of a step."""
        return int(self.flags[self.flags.index("--global-batch-size") + 1])


@dataclass(frozen=True)
class Run:
    """One training run: everything that decides its numbers, but for the data's folder."""

    part: str
    setting: Setting
    arm: str
    steps: int
    lr: float
    seed: int

    @property
    def flags(self) -> tuple[str, ...]:
        """Of ``pretrain_gpt_ltd.py``, without data and folders."""
        return (
            *self.setting.flags,
            *("--device", "cpu", "--train-iters", f"{self.steps}", "--seed", f"{self.seed}"),
            *("--lr", f"{self.lr:g}", "--min-lr", f"{self.lr / 10:g}"),
            *arm_flags(self.arm.split("@")[0].split("*")[0], self.setting.seq_length, self.steps),
        )

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits of what decides the run's numbers."""
        what = json.dumps([self.setting.corpus, self.setting.vocab_size, *self.flags])
        return hashlib.sha256(what.encode()).hexdigest()[:12]

    @cached_property
    def plan(self) -> RunPlan:
        """What it will compute."""
        placeholders = ("--data-path", "none", "--tokenizer-type", "ByteTokenizer")
        return plan_flags((*placeholders, *self.flags), self.setting.vocab_size)

    @property
    def name(self) -> str:
        """For progress lines and folders."""
        return f"{self.setting.name}-{self.arm}-lr{self.lr:g}-seed{self.seed}"


@cache
def setting(name: str, folder: Path = HERE) -> Setting:
    """The setting of ``settings/NAME.yaml``."""
    content: dict[str, Any] = yaml.safe_load(_read(folder / "settings" / f"{name}.yaml"))
    return Setting(name, **{**content, "flags": tuple(shlex.split(content["flags"]))})


@cache
def arm_flags(name: str, seq_length: int, steps: int, folder: Path = HERE) -> tuple[str, ...]:
    """The flags of ``arms/NAME.flags``, its shares computed, rounded down."""

    def value(word: str) -> str:
        match = _SHARE.fullmatch(word)
        if match is None:
            return word
        whole = seq_length if match[1] == "S" else steps
        return f"{whole * int(match[2] or 1) // int(match[3] or 1)}"

    return tuple(map(value, shlex.split(_read(folder / "arms" / f"{name}.flags"), comments=True)))


def planned_runs(parts: tuple[str, ...] = (), folder: Path = HERE) -> list[Run]:
    """The runs of the plan, in its order; only those of ``parts`` where some are named."""
    runs = []
    for entry in yaml.safe_load(_read(folder / "plan.yaml")):
        if not parts or entry["part"] in parts:
            runs += list(_runs_of(entry))
    return runs


def _runs_of(entry: dict[str, Any]) -> Iterator[Run]:
    chosen = setting(entry["setting"])
    for seed in entry["seeds"]:
        for arm in entry["arms"]:
            for lr in entry.get("lr", [chosen.lr]):
                yield Run(entry["part"], chosen, arm, _steps(chosen, arm, lr), lr, seed)


def _steps(chosen: Setting, arm: str, lr: float) -> int:
    """The setting's steps; of a dense run at an arm's FLOPs as many as come nearest to those."""
    base, at, other = arm.partition("@")
    if at:
        assert base == DENSE, f"{arm}: only dense runs are planned for another arm's FLOPs"
        plan = Run("", chosen, other, chosen.steps, lr, 1).plan
        return round(plan.flops(plan.num_steps) / plan.dense_flops(1))
    _, times, share = arm.partition("*")
    return round(chosen.steps * float(share)) if times else chosen.steps


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); see plan.yaml for what names it") from None

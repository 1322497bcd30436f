"""The planned runs: combines the settings and arms that ``plan.yaml`` names to command lines.

    settings/NAME.yaml    model, data, steps, learning rate
    arms/NAME.flags       the flags of an arm; S/4 and T*2/3 are shares of the sequence and of the steps, 100/T a rate

A run is identified by ``Run.key``, a hash of its flags without folders. Runs whose key has a record are not repeated,
so an extended plan only executes the new runs.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml
from common.spec import plan_flags

from megatron.ltd.errors import UserError
from megatron.ltd.plan.run_plan import RunPlan
from megatron.ltd.tokenizers.byte import ByteTokenizer

from . import length_warmup

HERE = Path(__file__).resolve().parent
PLAN, READING = HERE / "plan.yaml", HERE / "reading.md"
DENSE = "dense"
_TOY_FLAGS = tuple("--hidden-size 32 --num-attention-heads 2 --micro-batch-size 2 --global-batch-size 4".split())
_RATE = re.compile(r"(\d+)/T")
_SHARE = re.compile(r"([ST])(?:\*(\d+))?(?:/(\d+))?")


@dataclass(frozen=True)
class Setting:
    """A model, its data and the length of its runs."""

    name: str
    title: str
    corpus: str
    """The text: "books" for the whole folder, or the name of one of its files."""
    vocab_size: int | None
    """Size of the SentencePiece vocabulary; None for bytes."""
    steps: int
    lr: float
    flags: tuple[str, ...]

    @property
    def vocabulary(self) -> str:
        """A description of the vocabulary."""
        return "bytes" if self.vocab_size is None else f"SentencePiece vocabulary of {self.vocab_size}"

    @cached_property
    def seq_length(self) -> int:
        """Number of tokens in a sample."""
        return self._number("--seq-length")

    @cached_property
    def batch_samples(self) -> int:
        """Number of samples in a step."""
        return self._number("--global-batch-size")

    def _number(self, flag: str) -> int:
        """The value of a flag; if it is given twice, the later one."""
        return int(self.flags[len(self.flags) - self.flags[::-1].index(flag)])


@dataclass(frozen=True)
class Run:
    """One training run: everything that determines its results, except for the folder of the data."""

    part: str
    setting: Setting
    arm: str
    steps: int
    lr: float
    seed: int

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of ``script``, without data and folders."""
        return (
            *self.setting.flags,
            *("--device", "cpu", "--train-iters", f"{self.steps}", "--seed", f"{self.seed}"),
            *("--lr", f"{self.lr:g}", "--min-lr", f"{self.lr / 10:g}"),
            *arm_flags(self.arm.split("@")[0].split("*")[0], self.setting.seq_length, self.steps),
        )

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that identify everything that determines the run's results."""
        what = json.dumps([self.setting.corpus, self.setting.vocab_size, *self.flags])
        return hashlib.sha256(what.encode()).hexdigest()[:12]

    @cached_property
    def plan(self) -> RunPlan:
        """The plan of the run."""
        placeholders = ("--data-path", "none", "--tokenizer-type", "ByteTokenizer")
        with length_warmup.installed():
            return plan_flags((*placeholders, *self.flags), self.setting.vocab_size or ByteTokenizer().vocab_size)

    @property
    def script(self) -> str:
        """The script that takes the flags."""
        return length_warmup.SCRIPT if length_warmup.FLAG in self.flags else "pretrain_gpt_ltd.py"

    @property
    def name(self) -> str:
        """The name in progress lines and of the folder."""
        return f"{self.setting.name}-{self.arm}-lr{self.lr:g}-seed{self.seed}"


@cache
def read_setting(name: str, folder: Path = HERE) -> Setting:
    """Read the setting in ``settings/NAME.yaml``."""
    content: dict[str, Any] = yaml.safe_load(_read(folder / "settings" / f"{name}.yaml"))
    return Setting(name, **{**content, "flags": tuple(shlex.split(content["flags"]))})


@cache
def arm_flags(name: str, seq_length: int, steps: int, folder: Path = HERE) -> tuple[str, ...]:
    """The flags in ``arms/NAME.flags``, with shares computed and rounded down."""

    def value(word: str) -> str:
        rate = _RATE.fullmatch(word)
        if rate is not None:
            return f"{int(rate[1]) / steps:.6f}"
        return ":".join(share(part) for part in word.split(":"))

    def share(word: str) -> str:
        match = _SHARE.fullmatch(word)
        if match is None:
            return word
        whole = seq_length if match[1] == "S" else steps
        return f"{whole * int(match[2] or 1) // int(match[3] or 1)}"

    return tuple(map(value, shlex.split(_read(folder / "arms" / f"{name}.flags"), comments=True)))


def planned_runs(plan: Path, parts: Sequence[str] = ()) -> list[Run]:
    """The runs of the plan, in its order; only those of ``parts``, if any are given. Raises ``UserError``."""
    entries = yaml.safe_load(_read(plan))
    known = dict.fromkeys(entry["part"] for entry in entries)
    for part in parts:
        if part not in known:
            raise UserError(f"--part {part}: the plan has no such part; give some of {' '.join(known)}")
    return [run for entry in entries if not parts or entry["part"] in parts for run in _runs_of(entry)]


def quick(runs: Sequence[Run]) -> list[Run]:
    """A toy run of every arm in every setting, with one seed, one learning rate, the same sequence length and few
    steps.
    """
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        first.setdefault((run.setting.name, run.arm), run)
    return [_toy(run) for run in first.values()]


def _toy(run: Run) -> Run:
    vocab_size = None if run.setting.vocab_size is None else 512
    setting = replace(run.setting, steps=12, vocab_size=vocab_size, flags=(*run.setting.flags, *_TOY_FLAGS))
    lr = setting.lr
    return Run(run.part, setting, run.arm, _steps(setting, run.arm, lr), lr, 1)


def _runs_of(entry: dict[str, Any]) -> Iterator[Run]:
    chosen = read_setting(entry["setting"])
    for seed in entry["seeds"]:
        for arm in entry["arms"]:
            for lr in entry.get("lr", [chosen.lr]):
                yield Run(entry["part"], chosen, arm, _steps(chosen, arm, lr), lr, seed)


def _steps(chosen: Setting, arm: str, lr: float) -> int:
    """The steps of a run: the setting's, a share of them (dense*0.6), or those nearest another arm's FLOPs (X@ARM)."""
    base, at, other = arm.partition("@")
    if at:
        plan = Run("", chosen, other, chosen.steps, lr, 1).plan
        return _steps_for(plan.flops(plan.num_steps), chosen, base, lr)
    _, times, share = arm.partition("*")
    return round(chosen.steps * float(share)) if times else chosen.steps


@cache
def _steps_for(flops: int, chosen: Setting, arm: str, lr: float) -> int:
    """The steps with which the FLOPs of an arm are nearest ``flops``."""

    def planned(steps: int) -> int:
        return Run("", chosen, arm, steps, lr, 1).plan.flops(steps)

    above = bisect_left(range(8 * chosen.steps), flops, lo=1, key=planned)
    return min(above - 1, above, key=lambda steps: abs(planned(steps) - flops)) if above > 1 else 1


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); see plan.yaml for what names it") from None

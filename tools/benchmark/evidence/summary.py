"""From records to figures: each arm at its best learning rate, against dense at equal steps and at equal FLOPs.

    cost     the arm's FLOPs over those of the dense run of as many steps
    eta      the share of dense steps that reach the arm's loss: where dense runs of s * N steps, each planned to end
             there, reach loss(s), eta solves loss(eta) = loss of the arm
    pays     eta > cost: the same loss from fewer FLOPs than dense takes

The dense curve loss(s) goes through the mean losses of the dense runs of several lengths, straight in log s between
neighbours and beyond the ends. Losses are compared by differences to the dense run of the same seed, so that what a
seed does to all arms alike cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from common.estimate import Estimate, estimate, paired

from .plan import DENSE
from .records import Record


@dataclass(frozen=True)
class Curve:
    """Dense loss minus that of the whole dense run, by share of its steps: at least two points, ascending shares."""

    points: tuple[tuple[float, float], ...]

    def loss_at(self, share: float) -> float:
        """The difference that a dense run of this share of the steps ends at."""
        (s0, d0), (s1, d1) = self._segment([point[0] for point in self.points], share)
        return d0 + (d1 - d0) * math.log(share / s0) / math.log(s1 / s0)

    def share_at(self, difference: float) -> float:
        """The share of the steps whose dense run ends at this difference; inverse of ``loss_at``."""
        (s0, d0), (s1, d1) = self._segment([-point[1] for point in self.points], -difference)
        return s0 * (s1 / s0) ** ((difference - d0) / (d1 - d0))

    def _segment(self, places: Sequence[float], place: float) -> tuple[tuple[float, float], tuple[float, float]]:
        last = len(self.points) - 2
        index = next((number for number in range(last + 1) if place <= places[number + 1]), last)
        return self.points[index], self.points[index + 1]


@dataclass(frozen=True)
class ArmSummary:
    """An arm at one learning rate, beside dense."""

    arm: str
    lr: float
    seeds: tuple[int, ...]
    loss: Estimate
    cost: float
    difference: Estimate | None
    """Loss minus that of dense, paired by seed: at equal steps, dense at its best learning rate."""
    at_equal_flops: Estimate | None
    """Loss minus that of dense runs planned for the arm's FLOPs, paired by seed; None where none were made."""
    eta: Estimate | None
    """None without dense runs of several lengths."""

    @property
    def relative(self) -> float | None:
        """The difference as a share of dense's loss."""
        return None if self.difference is None else self.difference.mean / (self.loss.mean - self.difference.mean)


class SettingSummary:
    """The records of one setting."""

    def __init__(self, name: str, records: Iterable[Record]) -> None:
        self.name = name
        self._runs: dict[tuple[str, float], dict[int, Record]] = {}
        for record in records:
            self._runs.setdefault((record.arm, record.lr), {})[record.seed] = record

    @property
    def arms(self) -> list[str]:
        """Every arm with a record that is no shorter dense run, dense first."""
        names = dict.fromkeys(arm for arm, _ in self._runs if not _is_shorter(arm))
        return sorted(names, key=lambda arm: arm != DENSE)

    def rates(self, arm: str) -> list[float]:
        """The learning rates at which the arm ran, ascending."""
        return sorted(lr for name, lr in self._runs if name == arm)

    def losses(self, arm: str, lr: float) -> dict[int, float]:
        """By seed."""
        return {seed: record.loss for seed, record in self._runs.get((arm, lr), {}).items()}

    def best_rate(self, arm: str) -> float:
        """The learning rate with the lowest mean loss over the seeds that all of the arm's rates share."""
        rates = self.rates(arm)
        shared = set.intersection(*(set(self.losses(arm, lr)) for lr in rates))
        assert shared, f"{self.name}, {arm}: its learning rates share no seed"
        return min(rates, key=lambda lr: sum(self.losses(arm, lr)[seed] for seed in shared))

    @cached_property
    def dense_curve(self) -> Curve | None:
        """At dense's best learning rate; None before there are two lengths."""
        lr = self.best_rate(DENSE)
        whole = self._runs[(DENSE, lr)]
        differences: dict[float, list[float]] = {1.0: [0.0]}
        for (arm, rate), runs in self._runs.items():
            if _is_shorter(arm) and rate == lr:
                for seed in runs.keys() & whole.keys():
                    share = runs[seed].steps / whole[seed].steps
                    differences.setdefault(share, []).append(runs[seed].loss - whole[seed].loss)
        means = sorted((share, sum(values) / len(values)) for share, values in differences.items())
        return Curve(tuple(means)) if len(means) > 1 else None

    def summary(self, arm: str, lr: float | None = None) -> ArmSummary:
        """The arm at its best learning rate, or at ``lr``; dense always at its best."""
        lr = self.best_rate(arm) if lr is None else lr
        runs, losses, dense_lr = self._runs[(arm, lr)], self.losses(arm, lr), self.best_rate(DENSE)
        dense = self.losses(DENSE, dense_lr)
        first = next(iter(runs.values()))
        loss = estimate(list(losses.values()))
        assert loss is not None, "an arm here has a record"
        difference = None if arm == DENSE else paired(losses, dense)
        eta = None
        if self.dense_curve is not None and difference is not None:
            gaps = [losses[seed] - dense[seed] for seed in losses.keys() & dense.keys()]
            eta = estimate([self.dense_curve.share_at(gap) for gap in gaps])
        equal_flops = paired(losses, self._dense_at_flops_of(arm, dense_lr))
        cost = first.flops / first.dense_flops
        return ArmSummary(arm, lr, tuple(sorted(runs)), loss, cost, difference, equal_flops, eta)

    def _dense_at_flops_of(self, arm: str, lr: float) -> Mapping[int, float]:
        """Losses of the dense runs that took as many FLOPs as the arm, to half a step."""
        wanted = next(iter(self._runs[(arm, self.best_rate(arm))].values())).flops
        found: dict[int, float] = {}
        for (name, rate), runs in self._runs.items():
            if _is_shorter(name) and rate == lr:
                found |= {
                    seed: run.loss for seed, run in runs.items() if abs(run.flops - wanted) <= run.flops / run.steps / 2
                }
        return found

    def dense_points(self) -> list[tuple[float, float]]:
        """(FLOPs, mean loss) of dense runs of every length at dense's best learning rate, ascending."""
        lr = self.best_rate(DENSE)
        whole = self.losses(DENSE, lr)
        mean = sum(whole.values()) / len(whole)
        flops = next(iter(self._runs[(DENSE, lr)].values())).flops
        curve = self.dense_curve.points if self.dense_curve is not None else ((1.0, 0.0),)
        return [(share * flops, mean + difference) for share, difference in curve]

    def flops(self, arm: str) -> int:
        """Of a run of the arm."""
        return next(iter(self._runs[(arm, self.best_rate(arm))].values())).flops

    def mean_loss(self, arm: str) -> float:
        """At the arm's best learning rate, of dense's seeds: dense's mean plus the paired difference."""
        found = self.summary(arm)
        dense = self.losses(DENSE, self.best_rate(DENSE))
        if found.difference is None:
            return found.loss.mean
        return sum(dense.values()) / len(dense) + found.difference.mean


def _is_shorter(arm: str) -> bool:
    """Whether the arm is a dense run of another length: "dense@ARM" or "dense*0.6"."""
    return "@" in arm or "*" in arm


def by_setting(records: Iterable[Record]) -> dict[str, SettingSummary]:
    """The settings in the order of their first record; only those where dense ran."""
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.setting, []).append(record)
    return {
        name: SettingSummary(name, group)
        for name, group in grouped.items()
        if any(record.arm == DENSE for record in group)
    }

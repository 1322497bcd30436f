"""Summarizes records: each arm at one learning rate, compared with dense at equal steps and at equal FLOPs.

    cost     the arm's FLOPs divided by those of the dense run of the setting's steps
    eta      the share of dense steps that reach the arm's loss: if dense runs of s * N steps, each planned to end
             there, reach loss(s), eta solves loss(eta) = loss of the arm
    pays     eta > cost: the arm reaches the same loss with fewer FLOPs than dense

The dense curve loss(s) interpolates the mean losses of dense runs of several lengths linearly in log s, and
extrapolates beyond the ends. Losses are compared by differences to the dense run of the same seed, so that the effect
of a seed on all arms cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from common.estimate import Estimate, estimate, paired

from .plan import DENSE
from .records import Record


@dataclass(frozen=True)
class Curve:
    """Loss of shorter dense runs minus that of the full dense run, by share of its steps.

    There are at least two points, with ascending shares.
    """

    points: tuple[tuple[float, float], ...]

    def loss_at(self, share: float) -> float:
        """The difference in loss at the end of a dense run of this share of the steps."""
        (s0, d0), (s1, d1) = self._segment([point[0] for point in self.points], share)
        return d0 + (d1 - d0) * math.log(share / s0) / math.log(s1 / s0)

    def share_at(self, difference: float) -> float:
        """The share of the steps after which a dense run has this difference in loss; the inverse of ``loss_at``."""
        (s0, d0), (s1, d1) = self._segment([-point[1] for point in self.points], -difference)
        return s0 * (s1 / s0) ** ((difference - d0) / (d1 - d0))

    def _segment(self, places: Sequence[float], place: float) -> tuple[tuple[float, float], tuple[float, float]]:
        last = len(self.points) - 2
        index = next((number for number in range(last + 1) if place <= places[number + 1]), last)
        return self.points[index], self.points[index + 1]


@dataclass(frozen=True)
class ArmSummary:
    """The results of an arm at one learning rate, compared with dense."""

    lr: float
    seeds: tuple[int, ...]
    loss: Estimate
    cost: float
    difference: Estimate | None
    """Loss minus that of dense, paired by seed, at equal steps."""
    at_equal_flops: Estimate | None
    """Loss minus that of dense runs planned for the arm's FLOPs, paired by seed; None if there are none."""
    eta: Estimate | None
    """Eta over seeds; None without dense runs of several lengths."""

    @property
    def relative(self) -> float | None:
        """The difference divided by dense's loss."""
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
        """All arms with a record, dense first, except for shorter dense runs."""
        names = dict.fromkeys(arm for arm, _ in self._runs if not _is_shorter(arm))
        return sorted(names, key=lambda arm: arm != DENSE)

    def rates(self, arm: str) -> list[float]:
        """The learning rates of the arm's runs, ascending."""
        return sorted(lr for name, lr in self._runs if name == arm)

    def _at(self, arm: str, lr: float | None = None) -> dict[int, Record]:
        """The records of an arm at one learning rate, by default ``compared_rate``, by seed."""
        return self._runs.get((arm, self.compared_rate(arm) if lr is None else lr), {})

    def losses(self, arm: str, lr: float | None = None) -> dict[int, float]:
        """The losses of an arm at one learning rate, by default ``compared_rate``, by seed."""
        return _losses(self._at(arm, lr))

    def best_rate(self, arm: str) -> float:
        """The learning rate with the lowest mean loss over the seeds that all of the arm's rates share."""
        return _best_rate({lr: self.losses(arm, lr) for lr in self.rates(arm)})

    def compared_rate(self, arm: str) -> float:
        """The rate at which an arm is compared with others: the best of those with the most seeds."""
        return _compared_rate({lr: self.losses(arm, lr) for lr in self.rates(arm)})

    @cached_property
    def _shorter(self) -> dict[int, dict[int, Record]]:
        """Dense runs of another length by steps, at the best of the rates with the most seeds, by seed."""
        found: dict[int, dict[float, dict[int, Record]]] = {}
        for (arm, rate), runs in self._runs.items():
            if _is_shorter(arm):
                for seed, run in runs.items():
                    found.setdefault(run.steps, {}).setdefault(rate, {})[seed] = run
        return {
            steps: rates[_compared_rate({lr: _losses(runs) for lr, runs in rates.items()})]
            for steps, rates in found.items()
        }

    @cached_property
    def dense_curve(self) -> Curve | None:
        """The curve of dense runs, each length at the rate it is compared at; None with fewer than two lengths."""
        whole = self._at(DENSE)
        means = [(1.0, 0.0)]
        for steps, runs in self._shorter.items():
            gap = paired(_losses(runs), _losses(whole))
            if gap is not None:
                means.append((steps / next(iter(whole.values())).steps, gap.mean))
        return Curve(tuple(sorted(means))) if len(means) > 1 else None

    def summary(self, arm: str) -> ArmSummary:
        """Summarize the arm at ``compared_rate``, at which dense is, too."""
        losses, dense = self.losses(arm), self.losses(DENSE)
        loss = estimate(list(losses.values()))
        assert loss is not None, "an arm here has a record"
        difference = None if arm == DENSE else paired(losses, dense)
        eta = None
        if self.dense_curve is not None and difference is not None:
            gaps = [losses[seed] - dense[seed] for seed in losses.keys() & dense.keys()]
            eta = estimate([self.dense_curve.share_at(gap) for gap in gaps])
        equal_flops = paired(losses, self._dense_at_flops_of(arm))
        cost = self.flops(arm) / self.flops(DENSE)
        return ArmSummary(self.compared_rate(arm), tuple(sorted(losses)), loss, cost, difference, equal_flops, eta)

    def _dense_at_flops_of(self, arm: str) -> Mapping[int, float]:
        """Losses by seed of the dense runs whose FLOPs equal the arm's to within half a step."""
        wanted = self.flops(arm)
        return {
            seed: run.loss
            for runs in self._shorter.values()
            for seed, run in runs.items()
            if abs(run.flops - wanted) <= run.flops / run.steps / 2
        }

    def dense_points(self) -> list[tuple[float, float]]:
        """(FLOPs, mean loss) of dense runs of every length, ascending."""
        mean, flops = fmean(self.losses(DENSE).values()), self.flops(DENSE)
        curve = self.dense_curve.points if self.dense_curve is not None else ((1.0, 0.0),)
        return [(share * flops, mean + difference) for share, difference in curve]

    def flops(self, arm: str) -> int:
        """The FLOPs of a run of the arm."""
        return next(iter(self._at(arm).values())).flops

    def mean_loss(self, arm: str) -> float:
        """The mean loss at the arm's ``compared_rate``, as dense's mean plus the paired difference."""
        found = self.summary(arm)
        if found.difference is None:
            return found.loss.mean
        return fmean(self.losses(DENSE).values()) + found.difference.mean


def _losses(runs: Mapping[int, Record]) -> dict[int, float]:
    return {seed: run.loss for seed, run in runs.items()}


def _compared_rate(losses: Mapping[float, Mapping[int, float]]) -> float:
    """The best of the learning rates with the most seeds; ``losses`` by rate, then by seed."""
    most = max(map(len, losses.values()))
    return _best_rate({lr: of_rate for lr, of_rate in losses.items() if len(of_rate) == most})


def _best_rate(losses: Mapping[float, Mapping[int, float]]) -> float:
    """The rate with the lowest mean loss over the seeds that all of these rates share."""
    shared = set.intersection(*map(set, losses.values()))
    assert shared, f"the learning rates {sorted(losses)} share no seed"
    return min(losses, key=lambda lr: sum(losses[lr][seed] for seed in shared))


def _is_shorter(arm: str) -> bool:
    """Whether the arm is a dense run of another length, such as "dense@ARM" or "dense*0.6"."""
    return arm.startswith((f"{DENSE}@", f"{DENSE}*"))


def by_setting(records: Iterable[Record]) -> dict[str, SettingSummary]:
    """Group records by setting, in the order of first records; settings without a dense run are omitted."""
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(record.setting, []).append(record)
    return {
        name: SettingSummary(name, group)
        for name, group in grouped.items()
        if any(record.arm == DENSE for record in group)
    }

"""Estimates over seeds: mean and standard error, and the difference of two arms paired by seed with its p-value.

    mean and standard error    x_bar,  s / sqrt(n)        s: sample standard deviation (n - 1)
    paired difference          mean and standard error of d_i = x_i - y_i; two-sided p of Student's t with n - 1 degrees

Runs of a pair have the same seed: the same initial weights and, at equal steps, the same order of data.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """Mean over ``count`` seeds and its standard error, which is None for one seed."""

    mean: float
    standard_error: float | None
    count: int

    def text(self, digits: int, *, sign: bool = False, scale: float = 1.0) -> str:
        """The estimate as text such as ``"1.4185 ± 0.0007"``."""
        mean = f"{self.mean * scale:{'+' if sign else ''}.{digits}f}"
        return mean if self.standard_error is None else f"{mean} ± {self.standard_error * scale:.{digits}f}"

    @property
    def p_value(self) -> float | None:
        """Two-sided p-value of the hypothesis that the mean is zero; None with one seed or no spread."""
        from scipy.stats import t

        if not self.standard_error:
            return None
        return float(2 * t.sf(abs(self.mean / self.standard_error), self.count - 1))


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Mean and standard error of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return Estimate(statistics.fmean(known), error, len(known))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """The difference ``values`` - ``baseline`` over the seeds that both have; None if they share none."""
    return estimate([value - baseline[seed] for seed, value in values.items() if seed in baseline])


def text(value: Estimate | None, digits: int, *, sign: bool = False, percent: bool = False) -> str:
    """The estimate as a cell of a table; "-" if there is none."""
    if value is None:
        return "-"
    return value.text(digits, sign=sign, scale=100.0 if percent else 1.0) + (" %" if percent else "")


def p_text(value: Estimate | None) -> str:
    """The p-value as a cell of a table; "-" if there is none."""
    p_value = None if value is None else value.p_value
    return "-" if p_value is None else "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}"

"""Figures over seeds against values computed by hand, and p-values against the published table of Student's t."""

from __future__ import annotations

import math

import pytest
from common.estimate import Estimate, estimate, p_text, paired, text


def test_mean_and_standard_error_by_hand() -> None:
    found = estimate([1.0, None, 2.0, 4.0])
    assert found is not None and (found.mean, found.count) == (pytest.approx(7 / 3), 3)
    assert found.standard_error == pytest.approx(math.sqrt(7 / 3) / math.sqrt(3))
    assert estimate([None]) is None and estimate([3.0]) == Estimate(3.0, None, 1)


def test_only_seeds_that_both_have_are_paired() -> None:
    """The paired differences 0.1, 0.2 and 0.3 have a mean of 0.2 and a standard deviation of 0.1."""
    found = paired({1: 1.1, 2: 2.2, 3: 4.3, 4: 9.0}, {3: 4.0, 1: 1.0, 2: 2.0, 5: 0.0})
    assert found is not None and found.count == 3
    assert (found.mean, found.standard_error) == (pytest.approx(0.2), pytest.approx(0.1 / math.sqrt(3)))
    assert paired({1: 1.0}, {2: 1.0}) is None


@pytest.mark.parametrize(("count", "t", "p_value"), [(4, 3.182, 0.05), (4, 5.841, 0.01), (2, 12.706, 0.05)])
def test_p_values_of_the_published_table(count: int, t: float, p_value: float) -> None:
    assert Estimate(-t * 0.01, 0.01, count).p_value == pytest.approx(p_value, rel=1e-3)
    assert Estimate(t, None, 1).p_value is None


def test_estimates_as_text() -> None:
    assert text(Estimate(0.12345, 0.011, 3), 2, sign=True) == "+0.12 ± 0.01" and text(None, 2) == "-"
    assert text(Estimate(0.5, None, 1), 1, percent=True) == "50.0 %"
    assert (p_text(Estimate(0.5, None, 1)), p_text(Estimate(9.0, 0.01, 9))) == ("-", "< 0.0001")

"""Curves of few points: running means against plain ones, extremes of long runs, and non-finite values."""

from __future__ import annotations

import numpy as np
import pytest

from megatron.ltd.reports.figures.curves import MAX_POINTS, marks, means, thinned


def test_means_are_over_the_last_steps_and_over_fewer_at_the_start() -> None:
    values = np.arange(150.0) ** 2
    values[[20, 100, 101, 102]] = np.nan, np.inf, np.nan, np.nan
    places, found = means(values)
    assert list(places) == list(range(1, 151))
    assert list(found[:10]) == [0, 1, 4, 9, 16, 25, 36, 49, 64, (64 + 81) / 2]  # a fifth of step ten is two
    assert found[149] == pytest.approx((147**2 + 148**2 + 149**2) / 3)  # at most a fiftieth of the run: three steps
    assert found[22] == pytest.approx((21**2 + 22**2) / 2)  # non-finite values are left out
    assert np.isnan(found[102]) and np.isfinite(np.delete(found, 102)).all()


def test_means_of_a_long_run_are_running_means_at_few_places() -> None:
    values = np.random.default_rng(0).normal(size=370_000)
    values[1000] = 1e20  # later means must not lose precision
    places, found = means(values)
    assert len(places) == MAX_POINTS and (places[0], places[-1]) == (1, 370_000)
    for place, value in list(zip(places, found, strict=True))[:: MAX_POINTS // 10]:
        assert value == pytest.approx(values[place - min(7400, max(1, place // 5)) : place].mean(), rel=1e-9)


def test_thinning_keeps_peaks_and_dips() -> None:
    values = np.random.default_rng(0).normal(size=370_000)
    values[[7, 123_456, 369_990]] = [50.0, -40.0, 30.0]
    values[200] = np.nan
    places, kept = thinned(values)
    assert len(places) <= MAX_POINTS + 2 and list(places) == sorted(set(places))
    assert (places[0], places[-1]) == (1, 370_000)
    assert {8: 50.0, 123_457: -40.0, 369_991: 30.0}.items() <= dict(zip(places, kept, strict=True)).items()
    assert np.array_equal(kept, values[places - 1])


def test_short_curves_keep_all_finite_values() -> None:
    places, kept = thinned(np.array([1.0, np.nan, 3.0]), np.array([0, 2, 4]))
    assert (list(places), list(kept)) == ([0, 4], [1.0, 3.0])


def test_marks_are_at_the_steps_that_went_wrong() -> None:
    assert list(marks(np.array([False, True, False, True])).places) == [2, 4]
    assert len(marks(np.zeros(3, dtype=bool)).places) == 0
    assert len(marks(np.ones(370_000, dtype=bool)).places) <= MAX_POINTS

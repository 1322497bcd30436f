"""TokenBypass by importance on several ranks: kept tokens, gradients and importances equal those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.layouts import BYPASS, LAYOUTS, RECOMPUTE, VARIANTS
from tests.distributed.runs import Outcome, Runs, assert_same

pytestmark = pytest.mark.distributed

CHECKED = {
    "tp2 sp": "RoPE",
    "pp4 uneven": "learned positions",
    "cp2 tp2 sp": "document masks",
    "dp2": "document masks",
    "pp2 interleaved dp2 sharded overlaps": "RoPE",
}


def bypass(strata: int) -> tuple[str, ...]:
    """Flags with which layers 3 to 5 of six keep 8, 16 and 24 of 32 tokens, chosen by importance; blanks, id 32, are
    always kept.
    """
    return (*BYPASS, *"--token-bypass-special-ids 32 --token-bypass-strata".split(), f"{strata}")


def reference(runs: Runs, strata: int, *more: str) -> Outcome:
    """The run in one process; checks that it selects tokens and learns importances."""
    found = runs.reference(strata, *bypass(strata), *more)
    assert {layer for _, layer, _ in found.kept} == {3, 4, 5}
    assert found.learned is not None and len(set(found.learned)) > 10
    return found


@pytest.mark.parametrize("name", CHECKED)
def test_equals_one_process(bypass_runs: Runs, name: str) -> None:
    layout, variant = LAYOUTS[name], VARIANTS[CHECKED[name]]
    found = bypass_runs.run(layout, *bypass(layout.strata), *variant)
    assert_same(found, reference(bypass_runs, layout.strata, *variant))


def test_recompute_changes_nothing(bypass_runs: Runs) -> None:
    found = bypass_runs.run(LAYOUTS["pp2"], *bypass(1), *VARIANTS["RoPE"], *RECOMPUTE["full uniform"])
    assert_same(found, reference(bypass_runs, 1, *VARIANTS["RoPE"]))


@pytest.mark.parametrize(("before", "after"), [("pp2", "cp2 dp2"), ("cp2 tp2 sp", "dp2 sharded")])
def test_learned_importances_move_to_another_layout(bypass_runs: Runs, tmp_path: Path, before: str, after: str) -> None:
    """Train two steps under one layout and one under another, and compare with three steps of one process."""
    flags = (*bypass(4), *VARIANTS["RoPE"])
    first = bypass_runs.run(LAYOUTS[before], *flags, "--save", str(tmp_path), "--exit-interval", "2")
    moved = first.then(bypass_runs.run(LAYOUTS[after], *flags, "--load", str(tmp_path)))
    assert_same(moved, reference(bypass_runs, 4, *VARIANTS["RoPE"]))

"""TokenBypass by importance on several ranks: kept tokens, gradients and importances equal those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.layouts import BYPASS, LAYOUTS, VARIANTS, one_process
from tests.distributed.runs import Outcome, Runs, assert_same

pytestmark = pytest.mark.distributed

CHECKED = {
    "tp2": "RoPE",
    "tp2 sp": "document masks",
    "pp2": "RoPE",
    "pp4 uneven": "learned positions",
    "cp2": "RoPE",
    "cp2 tp2 sp": "document masks",
    "dp2": "document masks",
    "pp2 interleaved dp2 sharded overlaps": "RoPE",
}
FULL_RECOMPUTE = tuple("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1".split())


BLANKS = "--token-bypass-special-ids 32"
RANDOM_PAIRS = "--token-bypass-selector random --token-bypass-block-size 2"


def bypass(strata: int, choice: str = BLANKS) -> tuple[str, ...]:
    """Flags with which layers 3 to 5 of six keep 8, 8, 16, 16 and 24 of 32 tokens.

    With ``BLANKS``, tokens are chosen by importance, and blanks, id 32, are always kept.
    """
    return (*BYPASS, *choice.split(), "--token-bypass-strata", f"{strata}")


def reference(runs: Runs, strata: int, *more: str) -> Outcome:
    """The run in one process; checks that it selects tokens and learns importances."""
    found = runs.run(one_process(strata), *bypass(strata), *more)
    assert {layer for _, layer, _ in found.kept} == {3, 4, 5}
    assert found.learned is not None and len(set(found.learned)) > 10
    return found


@pytest.mark.parametrize("name", CHECKED)
def test_equals_one_process(bypass_runs: Runs, name: str) -> None:
    layout, variant = LAYOUTS[name], VARIANTS[CHECKED[name]]
    found = bypass_runs.run(layout, *bypass(layout.strata), *variant)
    assert_same(found, reference(bypass_runs, layout.strata, *variant))


@pytest.mark.parametrize("name", ["tp2 sp", "pp2", "cp2", "dp2"])
def test_random_blocks_equal_one_process(bypass_runs: Runs, name: str) -> None:
    """Pairs of neighbouring tokens are kept, the same pairs of a sample in all layers of the span."""
    layout = LAYOUTS[name]
    flags = (*bypass(layout.strata, RANDOM_PAIRS), *VARIANTS["document masks"])
    expected = bypass_runs.run(one_process(layout.strata), *flags)
    assert {layer for _, layer, _ in expected.kept} == {3, 4, 5} and expected.learned is None
    for kept in expected.kept.values():
        assert kept[1::2] == tuple(even + 1 for even in kept[::2]) and not any(even % 2 for even in kept[::2])
    assert_same(bypass_runs.run(layout, *flags), expected)


def test_recompute_changes_nothing(bypass_runs: Runs) -> None:
    found = bypass_runs.run(LAYOUTS["pp2"], *bypass(1), *VARIANTS["RoPE"], *FULL_RECOMPUTE)
    assert_same(found, reference(bypass_runs, 1, *VARIANTS["RoPE"]))


@pytest.mark.parametrize(("before", "after"), [("pp2", "cp2 dp2"), ("cp2 tp2 sp", "dp2 sharded")])
def test_learned_importances_move_to_another_layout(bypass_runs: Runs, tmp_path: Path, before: str, after: str) -> None:
    """Train three steps under one layout and three under another, and compare with six steps of one process."""
    six = (*bypass(4), *VARIANTS["RoPE"], "--train-iters", "6")
    first = bypass_runs.run(LAYOUTS[before], *six, "--save", str(tmp_path), "--exit-interval", "3")
    moved = first.then(bypass_runs.run(LAYOUTS[after], *six, "--load", str(tmp_path)))
    assert_same(moved, reference(bypass_runs, 4, *six[-2:], *VARIANTS["RoPE"]))

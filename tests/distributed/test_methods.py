"""Every registered method under tensor, sequence, pipeline and data parallelism, compared with one process.

The model has the four layers and 32 tokens of ``tests.methods.cases``, and the tests of this file run for every method
with a line in ``CASES``, except random-LTD, which all layouts of ``test_layouts`` have. ``test_token_bypass`` covers
importance under more layouts.
"""

from __future__ import annotations

import pytest

from tests.distributed.layouts import LAYOUTS, Layout
from tests.distributed.runs import Runs, assert_same
from tests.methods.cases import CASES, MethodCase

pytestmark = pytest.mark.distributed

_FIVE_STEPS = ("--num-layers", "4", "--train-iters", "5")


def _strata(case: MethodCase, layout: Layout) -> tuple[str, ...]:
    return () if case.strata is None else (case.strata, str(layout.strata))


def _blocks(case: MethodCase, layout: Layout) -> tuple[str, ...]:
    """A block size with which each stratum keeps whole blocks."""
    sizes = [flag for flag in case.dropping if flag.endswith("-block-size")]
    return (sizes[0], "2") if sizes and layout.strata > 2 else ()


@pytest.mark.parametrize("name", ["tp2 sp pp2 dp2", "cp2"])
@pytest.mark.parametrize("method", [name for name in CASES if not name.startswith("random_ltd")])
def test_equals_one_process(bypass_runs: Runs, method: str, name: str) -> None:
    """Compare kept tokens, losses and every gradient of five steps during which the plan changes."""
    layout, case = LAYOUTS[name], CASES[method]
    flags = (*_FIVE_STEPS, *case.dropping, *_strata(case, layout), *_blocks(case, layout))
    expected = bypass_runs.reference(layout.strata, *flags)
    assert len(expected.loss) == 5 and bool(expected.kept) == (case.strata is not None)
    assert_same(bypass_runs.run(layout, *flags), expected)


@pytest.mark.usefixtures("triton_on_cpu")
@pytest.mark.parametrize("name", ["tp2 sp pp2 dp2", "cp2"])
def test_triton_equals_torch_in_one_process(bypass_runs: Runs, name: str) -> None:
    layout, case = LAYOUTS[name], CASES["random_ltd"]
    flags = (*_FIVE_STEPS, *case.dropping, *_strata(case, layout))
    expected = bypass_runs.reference(layout.strata, *flags)
    assert_same(bypass_runs.run(layout, *flags, "--ltd-kernels", "triton"), expected)

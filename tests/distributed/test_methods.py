"""Every method of the registry under tensor, sequence, pipeline and data parallelism, against one process.

The four layers and 32 tokens of ``tests.methods.cases``. ``test_layouts`` and ``test_token_bypass`` compare the methods
of this project under more layouts; this file is what a new method gets from its line in ``CASES``.
"""

from __future__ import annotations

import pytest

from tests.distributed.layouts import LAYOUTS, Layout
from tests.distributed.runs import Runs, assert_same
from tests.methods.cases import CASES, MethodCase

pytestmark = pytest.mark.distributed

_FOUR_LAYERS = ("--num-layers", "4")


def _strata(case: MethodCase, layout: Layout) -> tuple[str, ...]:
    return () if case.strata is None else (case.strata, str(layout.strata))


def _blocks(case: MethodCase, layout: Layout) -> tuple[str, ...]:
    """Blocks of which each stratum keeps whole ones."""
    sizes = [flag for flag in case.dropping if flag.endswith("-block-size")]
    return (sizes[0], "2") if sizes and layout.strata > 2 else ()


@pytest.mark.parametrize("name", ["tp2 sp pp2 dp2", "cp2"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_one_process(bypass_runs: Runs, case: MethodCase, name: str) -> None:
    """Five steps while the plan changes: kept tokens, losses and every gradient."""
    layout = LAYOUTS[name]
    flags = (*_FOUR_LAYERS, *case.dropping, *_strata(case, layout), *_blocks(case, layout))
    expected = bypass_runs.reference(layout.strata, *flags)
    assert len(expected.loss) == 5 and bool(expected.kept) == (case.strata is not None)
    assert_same(bypass_runs.run(layout, *flags), expected)

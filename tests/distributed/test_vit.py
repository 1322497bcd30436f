"""ViT on several ranks: samples, kept tokens, losses and every gradient equal those of one process."""

from __future__ import annotations

import pytest

from tests.distributed.layouts import LAYOUTS, RANDOM_LTD, RECOMPUTE, vit_command
from tests.distributed.pool import Pool
from tests.distributed.runs import Runs, assert_same

pytestmark = pytest.mark.distributed

BYPASS = tuple("--token-bypass --token-bypass-kept-tokens 9 --token-bypass-selector random".split())


@pytest.fixture(scope="module")
def runs(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of three steps of 16 of 37 images, which is more than one epoch, with 10 validation images in incomplete
    batches.

    The weights are large enough for attention to be far from uniform, and gradients are actually clipped.
    """
    folder = tmp_path_factory.mktemp("images")
    return Runs(pool, "cpu", vit_command(folder), folder)


@pytest.mark.parametrize("name", ["tp2", "dp2 sharded overlaps"])
def test_equals_one_process(runs: Runs, name: str) -> None:
    reference = runs.reference(1, *RANDOM_LTD)
    assert {layer for _, layer, _ in reference.kept} == {2, 3, 4, 5}
    assert_same(runs.run(LAYOUTS[name], *RANDOM_LTD), reference)


def test_recompute_on_two_ranks_changes_nothing(runs: Runs) -> None:
    """The run includes the entry layer of TokenBypass, whose kept tokens attend to all tokens."""
    assert_same(runs.run(LAYOUTS["tp2"], *BYPASS, *RECOMPUTE["full uniform"]), runs.reference(1, *BYPASS))

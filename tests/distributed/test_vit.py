"""ViT on several ranks: samples, kept tokens, losses and every gradient equal those of one process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.distributed.jobs import train_and_record
from tests.distributed.layouts import LAYOUTS, RANDOM_LTD, Layout, one_process, vit_command
from tests.distributed.pool import Pool
from tests.distributed.runs import Outcome, assert_same

pytestmark = pytest.mark.distributed

FULL_RECOMPUTE = tuple("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1".split())
BYPASS = tuple("--token-bypass --token-bypass-kept-tokens 9 --token-bypass-selector random".split())


@pytest.fixture(scope="module")
def run(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Train five steps of 16 of 37 images, which is more than two epochs, with 10 validation images in incomplete
    batches.

    The weights are large enough for attention to be far from uniform, and gradients are actually clipped.
    """
    folder = tmp_path_factory.mktemp("images")
    command = [*vit_command(folder), "--device", "cpu", "--log-dir", str(folder)]

    def train(layout: Layout, *more: str) -> Outcome:
        flags = [*command, *layout.flags, *more]
        return Outcome.of(pool.run(train_and_record, flags, world_size=layout.world_size))

    return train


@pytest.fixture(scope="module")
def reference(run: Callable[..., Outcome]) -> Outcome:
    return run(one_process(1), *RANDOM_LTD)


@pytest.mark.parametrize("name", ["tp2", "dp2 sharded overlaps"])
def test_equals_one_process(run: Callable[..., Outcome], reference: Outcome, name: str) -> None:
    assert {layer for _, layer, _ in reference.kept} == {2, 3, 4, 5}
    assert_same(run(LAYOUTS[name], *RANDOM_LTD), reference)


def test_recompute_on_two_ranks_changes_nothing(run: Callable[..., Outcome]) -> None:
    """The run includes the entry layer of TokenBypass, whose kept tokens attend to all tokens."""
    assert_same(run(LAYOUTS["tp2"], *BYPASS, *FULL_RECOMPUTE), run(one_process(1), *BYPASS))

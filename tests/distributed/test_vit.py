"""ViT on several ranks: samples, kept tokens, losses and every gradient equal those of one process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.distributed.jobs import train_and_record
from tests.distributed.layouts import LAYOUTS, RANDOM_LTD, Layout, one_process
from tests.distributed.pool import Pool
from tests.distributed.runs import Outcome, assert_same
from tests.support_vit import image_arrays

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
    flags = [
        *("--train-data-path", image_arrays(folder / "train.npz", 37)),
        *("--valid-data-path", image_arrays(folder / "valid.npz", 10, seed=1)),
        *"--img-h 31 --img-w 1 --patch-dim 1 --num-channels 1 --num-classes 3".split(),
        *"--num-layers 6 --hidden-size 32 --num-attention-heads 4 --init-method-std 0.1 --seed 5".split(),
        *"--attention-dropout 0 --hidden-dropout 0 --train-iters 5 --global-batch-size 16 --clip-grad 0.2".split(),
        *"--adam-eps 1e-4 --lr 3e-3 --lr-decay-style cosine --lr-warmup-iters 2 --log-interval 1000".split(),
        *("--device", "cpu", "--log-dir", str(folder)),
    ]

    def train(layout: Layout, *more: str) -> Outcome:
        ranks = pool.run(
            train_and_record, ["finetune_vit_ltd.py", *flags, *layout.flags, *more], world_size=layout.world_size
        )
        return Outcome.of(ranks)

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

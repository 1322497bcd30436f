"""A checkpoint of any layout can be resumed under any other, and the run equals the uninterrupted one.

Each step, or two, of a run is under another layout. Samples, kept tokens, learning rates, losses, gradients and weights
must be those of uninterrupted steps in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.distributed.layouts import LAYOUTS, VARIANTS, Layout, one_process
from tests.distributed.runs import EXACT, Outcome, Runs, assert_same

pytestmark = pytest.mark.distributed

STRATA = 4  # every layout can split the sequence into these
NUM_STEPS = 6
RUN = ("--train-iters", str(NUM_STEPS), "--ltd-growth-steps", str(NUM_STEPS), "--ltd-strata", str(STRATA))
RAMP = ("--rampup-batch-size", "4", "4", "24")  # batches of 4, 4 | 8, 12 | 16, 16 samples

CHAINS = {
    "RoPE": (
        "one process", "tp2 sp pp2 dp2", "tp2", "pp2 interleaved", "pp2 interleaved dp2 sharded overlaps", "cp2 tp2 sp",
    ),
    "document masks": ("cp2 dp2", "tp2 pp2", "dp2", "cp2", "dp2 sharded overlaps", "one process"),
    "learned positions": ("dp2 sharded", "pp4 uneven", "tp2 sp dp2", "pp2", "dp2 sharded buckets", "tp2 sp"),
}  # fmt: skip
"""The layout of each step, by the variant of ``VARIANTS``."""


def layout(name: str) -> Layout:
    return LAYOUTS.get(name, one_process(STRATA))


def moved(runs: Runs, folder: Path, names: Sequence[str], *flags: str, loading: tuple[str, ...] = ()) -> Outcome:
    """Train equally many of the steps under each layout; return all parts as one outcome. ``loading`` are flags of all
    but the first part.
    """
    steps = NUM_STEPS // len(names)
    flags = (*RUN, *flags, "--save", str(folder), "--exit-interval", str(steps))
    outcome = runs.run(layout(names[0]), *flags)
    assert len(outcome.loss) == steps
    for name in names[1:]:
        outcome = outcome.then(runs.run(layout(name), *flags, "--load", str(folder), *loading))
    return outcome


@pytest.mark.parametrize("variant", CHAINS)
def test_continues_under_another_layout(runs: Runs, tmp_path: Path, variant: str) -> None:
    """Where a layout has data or context parallelism, its processes share the reading."""
    flags = VARIANTS[variant]
    found = moved(runs, tmp_path, CHAINS[variant], *flags, loading=("--ckpt-fully-parallel-load",))
    assert_same(found, runs.reference(STRATA, *RUN, *flags))


def test_continues_in_the_middle_of_batch_ramp_up(runs: Runs, tmp_path: Path) -> None:
    expected = runs.reference(STRATA, *RUN, *RAMP)
    assert len(expected.samples) == 4 + 4 + 8 + 12 + 16 + 16
    assert_same(moved(runs, tmp_path, ("dp2 sharded", "tp2 sp", "cp2 dp2"), *RAMP), expected)


def test_continues_with_longer_samples(runs: Runs, tmp_path: Path) -> None:
    """``--override-data`` means the same under every layout."""
    flags = (*RUN, *VARIANTS["RoPE"])
    runs.run(layout("dp2"), *flags, "--save", str(tmp_path), "--exit-interval", "3")
    longer = (*flags, "--load", str(tmp_path), "--override-data", "--seq-length", "64")
    found, expected = (runs.run(one, *longer) for one in (layout("tp2 sp dp2"), one_process(STRATA)))
    assert_same(found, expected)
    assert set(found.samples) == set(range(3 * 16, NUM_STEPS * 16))


@pytest.mark.parametrize("precision", [("--bf16",), ("--fp16", "--initial-loss-scale", "256")], ids=["bf16", "fp16"])
def test_half_precision_resumes_bit_equal(runs: Runs, tmp_path: Path, precision: tuple[str, ...]) -> None:
    """The fp32 main weights and the loss scale are kept. Runs are bit-equal, as a sum over two ranks has only one
    order.
    """
    flags = (*precision, "--clip-grad", "1000")  # the norm is summed in another order, so it must not scale gradients
    found = moved(runs, tmp_path, ("dp2", "dp2 sharded", "dp2"), *flags)
    assert_same(found, runs.run(LAYOUTS["dp2"], *RUN, *flags), EXACT)

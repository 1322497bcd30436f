"""A checkpoint of any layout can be resumed under any other, and the run equals the uninterrupted one.

The first three steps run under one layout and the rest under another. Samples, kept tokens, learning rates, losses,
gradients and weights must be those of six uninterrupted steps in one process.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.layouts import LAYOUTS, VARIANTS, Layout, one_process
from tests.distributed.runs import EXACT, Outcome, Runs, assert_same

pytestmark = pytest.mark.distributed

STRATA = 4  # every layout can split the sequence into these
NUM_STEPS = 6
STEPS_BEFORE = 3
RUN = ("--train-iters", str(NUM_STEPS), "--ltd-strata", str(STRATA))
RAMP = ("--rampup-batch-size", "4", "4", "24")  # batches of 4, 4, 8 | 12, 16, 16 samples

PAIRS = [
    ("one process", "tp2 sp pp2 dp2", "RoPE"),
    ("tp2 sp pp2 dp2", "one process", "document masks"),
    ("tp2", "pp2 interleaved", "RoPE"),
    ("pp2 interleaved", "tp2 sp", "document masks"),
    ("pp2 interleaved dp2 sharded overlaps", "cp2 tp2 sp", "RoPE"),
    ("cp2 tp2 sp", "dp2 sharded overlaps", "RoPE"),
    ("dp2 sharded overlaps", "pp2 interleaved dp2 sharded overlaps", "RoPE"),
    ("cp2 dp2", "tp2 pp2", "document masks"),
    ("dp2 sharded", "pp4 uneven", "RoPE"),
    ("pp4 uneven", "dp2 sharded", "learned positions"),
    ("tp2 sp dp2", "pp2", "learned positions"),
    ("dp2", "cp2", "document masks"),
    ("dp2 sharded buckets", "tp2 sp", "RoPE"),
    ("pp2", "dp2 sharded buckets", "RoPE"),
]
"""The layout before, the layout after, and the variant of ``VARIANTS``."""


def layout(name: str) -> Layout:
    return LAYOUTS.get(name, one_process(STRATA))


def moved(runs: Runs, folder: Path, before: str, after: str, *flags: str, loading: tuple[str, ...] = ()) -> Outcome:
    """Train ``STEPS_BEFORE`` steps under one layout and the others under another; return both parts as one outcome."""
    flags = (*RUN, *flags)
    first = runs.run(layout(before), *flags, "--save", str(folder), "--exit-interval", str(STEPS_BEFORE))
    assert len(first.loss) == STEPS_BEFORE
    return first.then(runs.run(layout(after), *flags, "--load", str(folder), *loading))


@pytest.mark.parametrize(("before", "after", "variant"), PAIRS, ids=[" to ".join(pair[:2]) for pair in PAIRS])
def test_continues_under_another_layout(runs: Runs, tmp_path: Path, before: str, after: str, variant: str) -> None:
    """Where the second layout has data or context parallelism, its processes share the reading."""
    flags = VARIANTS[variant]
    found = moved(runs, tmp_path, before, after, *flags, loading=("--ckpt-fully-parallel-load",))
    assert_same(found, runs.reference(STRATA, *RUN, *flags))


@pytest.mark.parametrize(("before", "after"), [("dp2 sharded", "tp2 sp"), ("tp2 pp2", "cp2 dp2")])
def test_continues_in_the_middle_of_batch_ramp_up(runs: Runs, tmp_path: Path, before: str, after: str) -> None:
    expected = runs.reference(STRATA, *RUN, *RAMP)
    assert len(expected.samples) == 4 + 4 + 8 + 12 + 16 + 16
    assert_same(moved(runs, tmp_path, before, after, *RAMP), expected)


@pytest.mark.parametrize(("before", "after"), [("one process", "dp2 sharded"), ("dp2", "tp2 sp")])
def test_continues_with_longer_samples(runs: Runs, tmp_path: Path, before: str, after: str) -> None:
    """``--override-data`` means the same under every layout."""
    flags = (*RUN, *VARIANTS["RoPE"])
    runs.run(layout(before), *flags, "--save", str(tmp_path), "--exit-interval", str(STEPS_BEFORE))
    longer = (*flags, "--load", str(tmp_path), "--override-data", "--seq-length", "64")
    found, expected = (runs.run(one, *longer) for one in (layout(after), one_process(STRATA)))
    assert_same(found, expected)
    assert set(found.samples) == set(range(STEPS_BEFORE * 16, NUM_STEPS * 16))


@pytest.mark.parametrize("precision", [("--bf16",), ("--fp16", "--initial-loss-scale", "256")], ids=["bf16", "fp16"])
@pytest.mark.parametrize(("before", "after"), [("dp2", "dp2 sharded"), ("dp2 sharded", "dp2")])
def test_half_precision_resumes_bit_equal(
    runs: Runs, tmp_path: Path, before: str, after: str, precision: tuple[str, ...]
) -> None:
    """The fp32 main weights and the loss scale are kept. Runs are bit-equal, as a sum over two ranks has only one
    order.
    """
    flags = (*precision, "--clip-grad", "1000")  # the norm is summed in another order, so it must not scale gradients
    found = moved(runs, tmp_path, before, after, *flags)
    assert_same(found, runs.run(LAYOUTS["dp2"], *RUN, *flags), EXACT)

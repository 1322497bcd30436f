"""BERT on several ranks: samples, kept tokens, losses and every gradient equal those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.layouts import LAYOUTS, RANDOM_LTD, RECOMPUTE, VARIANTS
from tests.distributed.runs import Runs, assert_same, whole

pytestmark = pytest.mark.distributed

IMPORTANCE = tuple("--token-bypass --token-bypass-kept-tokens 16 --token-bypass-layers 3-5".split())
LLAMA = tuple(
    "--position-embedding-type rope --normalization RMSNorm --swiglu --untie-embeddings-and-output-weights".split()
)
CHECKED = {
    "tp2 sp, random-LTD": ("tp2 sp", RANDOM_LTD),
    "tp2 sp, random-LTD, masked tokens alone": ("tp2 sp", (*RANDOM_LTD, "--bert-no-binary-head")),
    "tp2 pp2, importance": ("tp2 pp2", IMPORTANCE),
    "pp2 interleaved, RoPE, untied": ("pp2 interleaved", (*RANDOM_LTD, *LLAMA)),
    "dp2, layer dropping": ("dp2", (*RANDOM_LTD, *VARIANTS["layer dropping"])),
    "pp2 interleaved dp2 sharded overlaps, random-LTD": ("pp2 interleaved dp2 sharded overlaps", RANDOM_LTD),
}


@pytest.mark.parametrize("case", CHECKED)
def test_equals_one_process(bert_runs: Runs, case: str) -> None:
    name, flags = CHECKED[case]
    assert_same(bert_runs.run(LAYOUTS[name], *flags), bert_runs.reference(LAYOUTS[name].strata, *flags))


def test_recompute_changes_nothing(bert_runs: Runs) -> None:
    found = bert_runs.run(LAYOUTS["pp2"], *RANDOM_LTD, *RECOMPUTE["full uniform"])
    assert_same(found, bert_runs.reference(1, *RANDOM_LTD))


def test_continues_under_another_layout(bert_runs: Runs, tmp_path: Path) -> None:
    """Train two steps under one layout and one under another; the learned importances are part of the checkpoint."""
    first = bert_runs.run(LAYOUTS["tp2 pp2"], *IMPORTANCE, "--save", str(tmp_path), "--exit-interval", "2")
    moved = first.then(bert_runs.run(LAYOUTS["dp2 sharded"], *IMPORTANCE, "--load", str(tmp_path)))
    assert_same(moved, bert_runs.reference(1, *IMPORTANCE))


def test_reference_drops_tokens_and_trains_every_tensor(bert_runs: Runs) -> None:
    """The comparisons above are only meaningful if tokens are dropped and every tensor gets a gradient."""
    run = bert_runs.reference(1, *RANDOM_LTD)
    assert sorted({kept for _, _, kept in run.kept}) == [8, 16, 24]
    for pieces in run.gradients:
        gradients = whole(pieces)
        assert len(gradients) == 3 + 6 * 12 + 2 + 4 + 1 + 4
        assert all((gradient != 0.0).any() for gradient in gradients.values())

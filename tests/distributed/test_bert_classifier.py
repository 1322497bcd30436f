"""BERT with a classifier on several ranks: kept tokens, losses and every gradient equal those of one process."""

from __future__ import annotations

import pytest

from tests.distributed.layouts import LAYOUTS, RANDOM_LTD, classifier_command
from tests.distributed.pool import Pool
from tests.distributed.runs import Runs, assert_same
from tests.support import small_sentences

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def tuned(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs on 16 of 37 sentence pairs per step, with 10 held-out pairs, whose last global batch is incomplete."""
    folder = tmp_path_factory.mktemp("pairs")
    command = classifier_command(folder, small_sentences(folder)[1])
    return Runs(pool, "cpu", command, folder, *RANDOM_LTD)


@pytest.mark.parametrize("name", ["tp2 sp", "pp2 interleaved dp2 sharded overlaps"])
def test_equals_one_process(tuned: Runs, name: str) -> None:
    layout = LAYOUTS[name]
    assert_same(tuned.run(layout), tuned.reference(layout.strata))

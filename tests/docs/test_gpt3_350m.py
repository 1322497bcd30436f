"""The 350M's scripts in small, each run to its end: what they share with the 1.3B's is looked at closely there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.gpt3_scripts import run
from tests.end_to_end.runs import metrics

pytestmark = pytest.mark.slow


def test_from_text_to_a_table_of_scores(repository: Path, tmp_path: Path) -> None:
    steps = (
        ("prepare_data.sh", (), {"WORKERS": "1"}),
        ("pretrain_random_ltd.sh", ("150B",), {}),
        ("pretrain_random_ltd_blocks.sh", ("150B",), {}),
        ("pretrain_dense.sh", ("150B",), {}),
        ("evaluate.sh", (), {"NPROC": "1"}),
    )
    for script, arguments, more in steps:
        settings = {"TINY": "1", "OUT": "out", "DATA_DIR": "data", **more}
        ended = run(repository, tmp_path, f"gpt3_350m/{script}", *arguments, **settings)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    runs = ("dense-150B", "random-ltd-150B", "random-ltd-blocks-150B")
    ends = {name: max(step for _, step in metrics(tmp_path / "out" / name)) for name in runs}
    assert ends["random-ltd-150B"] > ends["dense-150B"] > 1, "equal layer tokens are more steps where some are dropped"
    assert ends["random-ltd-blocks-150B"] == ends["random-ltd-150B"], (
        "blocks change which tokens are kept, not how many"
    )
    assert f"| task | metric | {' | '.join(runs)} |" in ended.stdout
    assert re.search(r"^\| LAMBADA[^|]* \| acc \| [\d.]+ ", ended.stdout, flags=re.MULTILINE)

"""The 350M example in its small version, run to the end; the tests of the 1.3B example check shared parts in detail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.example_scripts import NEW_PYTHON, run
from tests.end_to_end.runs import metrics

pytestmark = pytest.mark.slow

RUNS = ("dense-150B", "random_ltd_blocks-150B")


def test_from_text_to_a_table_of_scores(repository: Path, tmp_path: Path) -> None:
    """The scripts run from a folder and a checkout whose paths contain spaces."""
    home = tmp_path / "my home"
    home.mkdir()
    (home / "my checkout").symlink_to(repository)
    folders = [f"runs/gpt3-350m-tiny/{name}" for name in RUNS]
    steps = (
        ("prepare_data.sh", ["--workers", "1"], {}),
        *(("pretrain.sh", ["350m", name.partition("-")[0], "150B"], {}) for name in RUNS),
        ("evaluate.sh", folders, {"NPROC": "1", **NEW_PYTHON}),
    )
    for script, arguments, more in steps:
        ended = run(home / "my checkout", home, f"gpt3/{script}", *arguments, **{"TINY": "1", **more})
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    dense, blocks = (max(step for _, step in metrics(home / folder)) for folder in folders)
    assert blocks > dense > 1, "equal layer tokens are more steps where some are dropped"
    assert f"| task | metric | {' | '.join(RUNS)} |" in ended.stdout
    assert re.search(r"^\| LAMBADA[^|]* \| acc \| [\d.]+ ", ended.stdout, flags=re.MULTILINE)
